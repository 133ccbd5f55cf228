"""USTC-TFC2016: its tree of captures and archives, and the session images that were made of it."""

import gzip
import io
import os
import random
import struct
import tempfile
import zlib
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from captures import pcap, tcp, udp

from sklearn_docids import CaptureError, FlowSampler, paper
from sklearn_docids.datasets import _sevenzip, load_ustc_tfc2016, load_ustc_tk2016
from sklearn_docids.datasets._ustc import BENIGN, IMAGE_BYTES, MALWARE, MOST_SESSIONS, capture_of, unpacked

RAW = paper.sampler(fields="raw")


def capture(name, n_flows=3):
    return pcap([udp(sport=1000 + i, payload=name.encode()) for i in range(n_flows)])


@pytest.fixture
def home(tmp_path):
    for folder, classes in (("Benign", BENIGN), ("Malware", MALWARE)):
        (tmp_path / folder).mkdir()
        for name in classes:
            (tmp_path / folder / f"{name}.pcap").write_bytes(capture(name))
    (tmp_path / "Benign" / "SMB.pcap").unlink()
    for part in (1, 2):
        (tmp_path / "Benign" / f"SMB-{part}.pcap").write_bytes(capture(f"SMB-{part}", 4))
    (tmp_path / "README.md").write_text("not data")
    return tmp_path


def test_the_published_tree_has_twenty_classes(home):
    data = load_ustc_tfc2016(home, sampler=RAW)
    assert data.target_names.tolist() == sorted(BENIGN + MALWARE)
    assert len(data.X) == 19 * 3 + 8
    assert {name: int(np.sum(data.y == name)) for name in ("SMB", "Zeus")} == {"SMB": 8, "Zeus": 3}
    assert (data.malware == np.isin(data.y, MALWARE)).all()
    for group, path in enumerate(data.captures):
        assert (data.X[data.groups == group] == RAW.transform(path)).all()
    assert "SMB: 8 flows" in data.DESCR
    X, y = load_ustc_tfc2016(home, sampler=RAW, return_X_y=True)
    assert (X == data.X).all()
    assert (y == data.y).all()


def test_flows_are_those_of_the_paper_and_drawn_by_the_seed(home):
    first, again, other = (load_ustc_tfc2016(home, n_per_class=2, random_state=seed) for seed in (0, 0, 1))
    assert np.unique(first.y, return_counts=True)[1].tolist() == [2] * 20
    assert (first.X == again.X).all()
    assert (first.X != other.X).any()


def test_archives_are_unpacked_unless_their_capture_is_there(home):
    py7zr = pytest.importorskip("py7zr")
    expected = load_ustc_tfc2016(home, sampler=RAW)
    for name in ("Benign/FTP", "Malware/Zeus"):
        with py7zr.SevenZipFile(home / f"{name}.7z", "w") as archive:
            archive.write(home / f"{name}.pcap", "inner.pcap")
    (home / "Benign" / "FTP.pcap").unlink()  # that of Zeus stays beside its archive
    data = load_ustc_tfc2016(home, sampler=RAW)
    assert (data.X == expected.X).all()
    assert (data.y == expected.y).all()


def test_an_archive_is_skipped_where_its_parts_were_unpacked(home):
    py7zr = pytest.importorskip("py7zr")
    expected = load_ustc_tfc2016(home, sampler=RAW)
    with py7zr.SevenZipFile(home / "Benign" / "SMB.7z", "w") as archive:
        for part in (1, 2):
            archive.write(home / "Benign" / f"SMB-{part}.pcap", f"SMB-{part}.pcap")
    assert len(load_ustc_tfc2016(home, sampler=RAW).X) == len(expected.X)


def test_damaged_archives_and_images_are_named(home, images):
    py7zr = pytest.importorskip("py7zr")
    path = home / "Malware" / "Zeus.7z"
    with py7zr.SevenZipFile(path, "w") as archive:
        archive.write(home / "Malware" / "Zeus.pcap", "Zeus.pcap")
    (home / "Malware" / "Zeus.pcap").unlink()
    whole = path.read_bytes()
    n_refused = 0
    for place in range(6, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with suppress(CaptureError), unpacked_or_refused(path) as refused:
            n_refused += refused
    assert n_refused > 10
    path = images / "t10k-images-idx3-ubyte.gz"
    packed = path.read_bytes()
    for place in range(12, len(packed) - 8, 40):
        path.write_bytes(packed[:place] + bytes([packed[place] ^ 255]) + packed[place + 1 :])
        with pytest.raises(ValueError, match=r"t10k-images.*: (damaged|no idx file|not the)"):
            load_ustc_tk2016(images)


@contextmanager
def unpacked_or_refused(path):
    """Yield whether an archive is refused by name."""
    try:
        with unpacked(path):
            pass
        refused = False
    except ValueError as error:
        refused = "Zeus.7z" in str(error)
        assert refused
    yield refused


# Archives of somebody who means harm


@pytest.fixture
def room(tmp_path, monkeypatch):
    """Return the folder in which archives are unpacked."""
    (tmp_path / "room").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "room"))
    return tmp_path / "room"


SETTINGS = {"LZMA2": {"preset": 1}, "PPMD": {"order": 6, "mem": 24}, "ZSTD": {"level": 3}, "BROTLI": {"level": 5}}


def packed(path, members, *, method=None, header_is_packed=True, **options):
    """Write an archive of bytes by name."""
    py7zr = pytest.importorskip("py7zr")
    if method is not None:
        options["filters"] = [{"id": getattr(py7zr, f"FILTER_{method}"), **SETTINGS.get(method, {})}]
    with py7zr.SevenZipFile(path, "w", **options) as archive:
        archive.set_encoded_header_mode(header_is_packed)
        for name, content in members.items():
            archive.writestr(content, name)
    return path


def with_checksums(data):
    """Return an archive with the checksums that its changed header needs."""
    place, size = struct.unpack_from("<QQ", data, 12)
    struct.pack_into("<I", data, 28, zlib.crc32(data[32 + place : 32 + place + size]))
    struct.pack_into("<I", data, 8, zlib.crc32(data[12:32]))
    return bytes(data)


def reason_of(path):
    """Return why an archive is refused, "" if it is not; nothing of it may be left behind."""
    try:
        with unpacked(path) as captures:
            assert all(str(file.parent.parent) == tempfile.gettempdir() for file in captures)
            assert all(str(file).isprintable() for file in captures)
        reason = ""
    except ValueError as error:
        begin, reason, end = (
            str(error).partition(": not a usable archive: ")[0],
            str(error),
            "get it again, or unpack it",
        )
        assert begin == str(path)
        assert end in reason
        assert reason.isprintable()
    assert os.listdir(tempfile.gettempdir()) == []
    return reason


@pytest.mark.parametrize("method", ["LZMA", "LZMA2", "BZIP2", "DEFLATE", "COPY", "PPMD", "ZSTD", "BROTLI", None])
def test_archives_are_unpacked_by_decompressors_of_python_alone(room, tmp_path, method):
    # The decompressor of PPMd corrupts the memory of the process when a bit of a stream is wrong.
    content = {"b/two.pcap": capture("two"), "one.pcap": b"", "b/a three.pcap": b"z"}
    path = packed(tmp_path / "SMB.7z", content, method=method)
    if method in ("PPMD", "ZSTD", "BROTLI"):
        assert "it is packed otherwise than by LZMA, LZMA2, bzip2 or Deflate" in reason_of(path)
        return
    with unpacked(path) as captures:
        assert [file.read_bytes() for file in captures] == [b"z", capture("two"), b""]
        assert [file.name.partition("-")[2] for file in captures] == ["member", "two.pcap", "one.pcap"]
    assert reason_of(path) == ""


@pytest.mark.parametrize("header_encryption", [False, True])
def test_an_encrypted_archive_is_refused(room, tmp_path, header_encryption):
    options = {"password": "x", "header_encryption": header_encryption}
    assert "encrypted" in reason_of(packed(tmp_path / "SMB.7z", {"SMB.pcap": capture("SMB")}, **options))


def test_an_archive_may_unpack_to_so_many_times_its_size_and_not_to_more(room, tmp_path, monkeypatch):
    path = packed(tmp_path / "SMB.7z", {"SMB.pcap": bytes(4_000_000)})
    size = path.stat().st_size
    assert f"its {size} bytes unpack to 4000000, more than 1000 times as much" in reason_of(path)
    monkeypatch.setattr(_sevenzip, "MOST_TIMES_PACKED", 4_000_000 // size)
    assert "more than" in reason_of(path)
    monkeypatch.setattr(_sevenzip, "MOST_TIMES_PACKED", 4_000_000 // size + 1)
    assert reason_of(path) == ""


def test_an_archive_may_not_unpack_to_more_than_the_data_set(room, tmp_path, monkeypatch):
    path = packed(tmp_path / "SMB.7z", {"a.pcap": bytes(600), "b.pcap": bytes(500)})
    monkeypatch.setattr(_sevenzip, "MOST_BYTES", 1100)
    assert reason_of(path) == ""
    monkeypatch.setattr(_sevenzip, "MOST_BYTES", 1099)
    assert "unpack to 1100, more than 1000 times as much or more than 1099" in reason_of(path)


def test_a_size_that_is_a_lie_costs_neither_memory_nor_disk(room, tmp_path):
    path = packed(tmp_path / "SMB.7z", {"a.pcap": bytes(10**6)}, method="DEFLATE", header_is_packed=False)
    data = bytearray(path.read_bytes())
    size = data.rindex(b"\x0c\xcf\x40\x42")  # of the stream: 2**16 * 0x0f + 0x4240
    data[size + 1 : size + 4] = b"\xc0\x05\x00"
    path.write_bytes(with_checksums(data))
    assert "CrcError" in reason_of(path)


def test_an_archive_may_hold_a_hundred_files_and_not_one_more(room, tmp_path):
    path, members = tmp_path / "SMB.7z", {f"{number}.pcap": b"" for number in range(100)}
    with unpacked(packed(path, members)) as captures:
        assert len(captures) == 100
    assert "it holds 101 files and folders, more than 100" in reason_of(packed(path, {**members, "more": b""}))
    long_names = {f"{'x' * 100}{number}": b"" for number in range(100)}
    assert "its header is damaged, encrypted, too large" in reason_of(packed(path, long_names))
    assert "bytes, too many for 100 files" in reason_of(packed(path, long_names, header_is_packed=False))


@pytest.mark.parametrize("name", ["../x.pcap", "/xx.pcap", "a\x1b[2Jp", "c/../../x"])
def test_names_in_an_archive_reach_neither_the_disk_nor_the_terminal(room, tmp_path, name):
    stands_for = "m" * len(name)
    path = packed(tmp_path / "SMB.7z", {stands_for: capture("SMB")}, header_is_packed=False)
    data = path.read_bytes().replace(stands_for.encode("utf-16-le"), name.encode("utf-16-le"))
    path.write_bytes(with_checksums(bytearray(data)))
    assert bool(reason_of(path)) == (".." in name)
    assert sorted(os.listdir(tmp_path)) == ["SMB.7z", "room"]


def test_links_in_an_archive_are_refused(room, tmp_path):
    py7zr = pytest.importorskip("py7zr")
    (tmp_path / "link.pcap").symlink_to("SMB.7z")
    with py7zr.SevenZipFile(tmp_path / "SMB.7z", "w") as archive:
        archive.write(tmp_path / "link.pcap", "link.pcap")
    assert "it holds a link or a special file" in reason_of(tmp_path / "SMB.7z")


def test_an_archive_of_folders_alone_is_refused(room, tmp_path):
    py7zr = pytest.importorskip("py7zr")
    (tmp_path / "folder").mkdir()
    with py7zr.SevenZipFile(tmp_path / "SMB.7z", "w") as archive:
        archive.writeall(tmp_path / "folder", "folder")
    assert "it holds no file" in reason_of(tmp_path / "SMB.7z")


@pytest.mark.parametrize("method", ["LZMA", "BZIP2", "DEFLATE", "COPY", None])
def test_damage_with_right_checksums_is_refused_or_harmless(room, tmp_path, method):
    path, rng = tmp_path / "SMB.7z", random.Random(0)
    members = {"SMB.pcap": capture("SMB"), "e.pcap": b""}
    whole = packed(path, members, method=method, header_is_packed=False).read_bytes()
    place = 32 + struct.unpack_from("<Q", whole, 12)[0]
    n_refused = 0
    for _ in range(150):
        data = bytearray(whole)
        data[rng.randrange(place, len(data))] = rng.choice([0, 255, rng.randrange(256)])
        path.write_bytes(with_checksums(data))
        n_refused += bool(reason_of(path))
    assert n_refused > 50


def test_an_error_of_the_disk_is_not_called_damage(room, tmp_path):
    path = packed(tmp_path / "SMB.7z", {"SMB.pcap": capture("SMB")})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        _sevenzip.extract(path, tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"gone\.7z"):
        _sevenzip.extract(tmp_path / "gone.7z", room)


def test_cached_flows_need_no_archive_to_be_unpacked_again(home, tmp_path_factory, monkeypatch):
    py7zr = pytest.importorskip("py7zr")
    with py7zr.SevenZipFile(home / "Malware" / "Zeus.7z", "w") as archive:
        for name in ("Zeus", "Virut"):  # two captures in one archive
            archive.write(home / "Malware" / f"{name}.pcap", f"{name}.pcap")
    (home / "Malware" / "Zeus.pcap").unlink()
    options = {"random_state": 0, "cache_folder": tmp_path_factory.mktemp("cache")}
    plain, first = load_ustc_tfc2016(home, random_state=0), load_ustc_tfc2016(home, **options)
    assert np.sum(first.y == "Zeus") == 6
    monkeypatch.setattr(py7zr, "SevenZipFile", None)
    again = load_ustc_tfc2016(home, **options)
    for data in (first, again):
        assert (data.X == plain.X).all()
        assert (data.y == plain.y).all()


def test_what_cannot_be_unpacked_is_named(home, monkeypatch):
    (home / "Benign" / "FTP.pcap").unlink()
    (home / "Benign" / "FTP.7z").write_bytes(b"7z\xbc\xaf\x27\x1c half of it")
    with pytest.raises(ValueError, match=r"FTP\.7z: not a usable archive"):
        load_ustc_tfc2016(home)
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"FTP\.7z is an archive: .* pip install py7zr"):
        load_ustc_tfc2016(home)


def test_missing_and_strange_files_are_named(home):
    with pytest.raises(FileNotFoundError, match=r"nowhere/Benign is missing; clone https"):
        load_ustc_tfc2016(home / "nowhere")
    (home / "Malware" / "Zeus.pcap").rename(home / "Malware" / "Zeuss.pcap")
    with pytest.raises(ValueError, match=r"Zeuss\.pcap belongs to no class of Malware"):
        load_ustc_tfc2016(home)
    (home / "Malware" / "Zeuss.pcap").unlink()
    (home / "Malware" / "Tinba.pcap").unlink()
    with pytest.raises(FileNotFoundError, match="Malware lacks Tinba, Zeus; the whole set is on"):
        load_ustc_tfc2016(home)


def test_a_class_without_flows_and_a_number_without_any_are_named(home, images):
    (home / "Malware" / "Zeus.pcap").write_bytes(pcap([]))
    with pytest.warns(UserWarning, match="no flows of Zeus"):
        load_ustc_tfc2016(home)
    for load, folder in ((load_ustc_tfc2016, home), (load_ustc_tk2016, images)):
        with pytest.raises(ValueError, match="n_per_class must be at least 1 or None, got 0"):
            load(folder, n_per_class=0)


def test_a_wrong_file_under_the_right_name_is_named(home):
    (home / "Malware" / "Zeus.pcap").write_text("<html>404</html>")
    with pytest.raises(CaptureError, match=r"Zeus\.pcap"):
        load_ustc_tfc2016(home)


# Session images


def session(i):
    """Return the capture of one session, longer or shorter than an image."""
    ports = {"sport": 2000 + i, "dport": 80}
    return pcap(
        [tcp(flags="S", **ports), tcp(flags="A", payload=b"x" * (20 + 300 * i), **ports), tcp(flags="F", **ports)]
    )


def image(i):
    return session(i)[:784].ljust(784, b"\0")


@pytest.fixture
def images(tmp_path):
    numbers = (np.arange(40) % 20).astype(np.uint8)
    pictures = b"".join(image(i % 4) for i in range(40))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(struct.pack(">4I", 0x803, 40, 28, 28) + pictures)
    )
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 40) + numbers.tobytes())
    return tmp_path


@pytest.mark.parametrize("i", range(5))
def test_an_image_is_the_beginning_of_its_session(i):
    kept = capture_of(image(i))
    table = RAW.set_params(on_error="raise")
    whole, cut = table.flows(io.BytesIO(session(i))), table.flows(io.BytesIO(kept))
    assert len(cut) == 1
    # The second packet begins at byte 110 and is cut at 784; the last one is lost if that leaves no room for it.
    n_kept = 80 if i < 2 else 0
    assert (cut.X[0, :160] == whole.X[0, :160]).all()
    assert (cut.X[0, 160 : 160 + n_kept] == whole.X[0, 160 : 160 + n_kept]).all()


def test_session_images_are_loaded_with_their_classes(images):
    data = load_ustc_tk2016(images, sampler=paper.sampler(fields="raw"))
    assert np.unique(data.y, return_counts=True)[1].tolist() == [2] * 20
    assert data.target_names.tolist() == sorted(BENIGN + MALWARE)
    assert data.groups.tolist() == [0] * 40
    assert data.captures == [images]
    expected = FlowSampler(fields="raw").transform
    zeus = data.X[data.y == "Zeus"]
    assert (zeus == expected([io.BytesIO(capture_of(image(i % 4))) for i in (19, 39)])).all()


def test_images_that_do_not_fit_are_named(images):
    with pytest.raises(ValueError, match="subset must be"):
        load_ustc_tk2016(images, subset="validation")
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte is missing, packed or not"):
        load_ustc_tk2016(images, subset="train")
    labels = images / "t10k-labels-idx1-ubyte"
    good = labels.read_bytes()
    for bad, message in (
        (good[:-1], "not the 40 bytes that its head says"), (good + b"\0", "not the 40 bytes that its head says"),
        (b"\0\0\x08\x03" + good[4:], "no idx file"), (b"", "no idx file"), (good[:7], "no idx file"),
        (struct.pack(">2I", 0x801, 39) + good[8:-1], "40 images of 28 x 28 bytes and 39 labels do not fit"),
        (good[:-1] + b"\x14", "not of 20 classes"),
        (struct.pack(">2I", 0x801, 2**32 - 1) + good[8:], "4294967295 bytes, and those of 262144 sessions at most are"),
    ):  # fmt: skip
        labels.write_bytes(bad)
        with pytest.raises(ValueError, match=message):
            load_ustc_tk2016(images)
    labels.write_bytes(good)
    pictures = images / "t10k-images-idx3-ubyte.gz"
    data = pictures.read_bytes()
    pictures.write_bytes(data[:-20])
    with pytest.raises(ValueError, match=r"images-idx3-ubyte\.gz: damaged"):
        load_ustc_tk2016(images)
    pictures.write_bytes(gzip.compress(struct.pack(">4I", 0x803, 40, 28, 28) + bytes(40 * 784)))
    with pytest.raises(ValueError, match="only SessionAllLayers can be read"):
        load_ustc_tk2016(images)


def test_images_that_unpack_without_end_are_not_read_to_it(images, monkeypatch):
    pictures = images / "t10k-images-idx3-ubyte.gz"
    pictures.write_bytes(gzip.compress(struct.pack(">4I", 0x803, 40, 28, 28) + bytes(10**7)))
    n_read = []
    monkeypatch.setattr(
        gzip.GzipFile, "read", lambda file, size=-1, read=gzip.GzipFile.read: n_read.append(size) or read(file, size)
    )
    with pytest.raises(ValueError, match="not the 31360 bytes that its head says"):
        load_ustc_tk2016(images)
    assert n_read == [16, 31361]
    pictures.write_bytes(gzip.compress(struct.pack(">4I", 0x803, MOST_SESSIONS + 1, 28, 28)))
    with pytest.raises(
        ValueError, match=f"those of {MOST_SESSIONS} sessions at most are {MOST_SESSIONS * IMAGE_BYTES}"
    ):
        load_ustc_tk2016(images)


@pytest.mark.parametrize("shape", [(2**16, 2**16, 0), (40, 7, 4), (0, 28, 28), (1, 28, 28 * 40)])
def test_images_of_another_shape_are_named(images, shape):
    size = shape[0] * shape[1] * shape[2]
    (images / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(struct.pack(">4I", 0x803, *shape) + bytes(size)))
    with pytest.raises(ValueError, match=rf"{shape[0]} images of {shape[1]} x {shape[2]} bytes"):
        load_ustc_tk2016(images)
