"""Containers: every kind of record is found, and damage is reported with its place, after what was read before."""

import bz2
import gzip
import io
import lzma
import os
import random
import struct
import sys
import threading
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from captures import block, enhanced, interface, old_packet, option, pcap, section, simple, tcp, udp
from sklearn.pipeline import make_pipeline

from sklearn_docids import CaptureError, CaptureWarning, FlowSampler
from sklearn_docids.capture import containers

PACKETS = [udp(sport=1000 + i, payload=b"x" * i) for i in range(10)]


def sampled(source, **parameters):
    return FlowSampler(fields="raw", **parameters).flows(source)


def as_file(data):
    file = io.BytesIO(data)
    file.name = "memory.pcap"
    return file


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("magic", "pad", "time_ns"),
    [(0xA1B2C3D4, b"", 1_500_000_000), (0xA1B23C4D, b"", 1_500_000_000), (0xA1B2CD34, bytes(8), 1_500_000_000)],
    ids=["microseconds", "nanoseconds", "modified"],
)
def test_classic_pcap_in_both_byte_orders_and_all_resolutions(order, magic, pad, time_ns):
    flows = sampled(as_file(pcap(PACKETS, order=order, magic=magic, pad=pad, times=[1.5] * 10)))
    assert flows.counters[0]["packets"] == 10
    assert set(flows.time_first) == {time_ns}
    assert flows.X[3, :80].tobytes().rstrip(b"\0") == bytes(PACKETS[3])


@pytest.mark.parametrize("version", [(2, 2), (543, 0), (2, 3)])
def test_old_versions_have_the_captured_length_behind_the_original_one(version):
    capture = bytearray(pcap([udp(payload=b"x" * 300)] * 3, captured=[100] * 3))
    struct.pack_into("<HH", capture, 4, *version)
    for at in (24, 140, 256):
        struct.pack_into("<II", capture, at + 8, 342, 100)
    flows = sampled(as_file(bytes(capture)))
    assert (flows.counters[0]["sampled"], flows.kept_bytes[0].tolist()) == (3, [80, 80, 80, 0])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [enhanced, old_packet, simple])
def test_pcapng_packet_blocks_in_both_byte_orders(order, kind):
    capture = section(order) + interface(order=order) + b"".join(kind(p, order=order) for p in PACKETS)
    flows = sampled(as_file(capture))
    assert len(flows) == 10
    assert flows.X[3, :80].tobytes().rstrip(b"\0") == bytes(PACKETS[3])


def test_pcapng_sections_of_different_byte_order_follow_each_other():
    capture = b"".join(
        section(order) + interface(order=order) + b"".join(enhanced(p, order=order) for p in packets)
        for order, packets in (("<", PACKETS[:5]), (">", PACKETS[5:]))
    )
    assert len(sampled(as_file(capture))) == 10


@pytest.mark.parametrize(
    ("resolution", "ticks", "time_ns"),
    [
        (bytes([6]), 1_500_000, 1_500_000_000),
        (bytes([9]), 1_500_000_000, 1_500_000_000),
        (bytes([3]), 1_500, 1_500_000_000),
        (bytes([0]), 2, 2_000_000_000),
        (bytes([12]), 1_500_000_000_000, 1_500_000_000),
        (bytes([0x80 | 1]), 3, 1_500_000_000),
        (bytes([0x80 | 20]), 3 << 19, 1_500_000_000),
        (bytes([0x80 | 127]), 2**63, 0),
        (bytes([127]), 2**63, 0),
        (bytes([6, 6, 6]), 1_500_000, 1_500_000_000),  # wrong length: ignored
    ],
)
def test_pcapng_time_resolution_of_the_interface(resolution, ticks, time_ns):
    capture = section() + interface(options=option(9, resolution)) + enhanced(PACKETS[0], ticks)
    assert sampled(as_file(capture)).time_first[0] == time_ns


def test_pcapng_time_offset_of_the_interface():
    capture = section() + interface(options=option(14, struct.pack("<q", 100))) + enhanced(PACKETS[0], 1_500_000)
    assert sampled(as_file(capture)).time_first[0] == 101_500_000_000


def test_pcapng_time_beyond_the_range_is_clamped():
    capture = section() + interface(options=option(9, bytes([0]))) + enhanced(PACKETS[0], 2**64 - 1)
    assert sampled(as_file(capture)).time_first[0] == 2**62 - 1


def test_options_that_lie_about_their_length_are_ignored():
    capture = section() + interface(options=struct.pack("<HH", 9, 60_000)) + enhanced(PACKETS[0], 1_500_000)
    assert sampled(as_file(capture)).time_first[0] == 1_500_000_000


def test_interfaces_keep_their_own_link_type():
    ethernet, raw = PACKETS[0], bytes(udp(sport=7, link=False))
    capture = section() + interface(1) + interface(101) + enhanced(ethernet, number=0) + enhanced(raw, number=1)
    assert sampled(as_file(capture)).link_type.tolist() == [1, 101]


def test_other_blocks_are_skipped():
    capture = section() + block(0xBAD, b"12345678") + interface() + block(5, b"1234") + enhanced(PACKETS[0])
    assert len(sampled(as_file(capture))) == 1


def test_the_magic_decides_not_the_suffix(write):
    capture = section() + interface() + enhanced(PACKETS[0])
    assert len(sampled(write(capture, "monday.pcap"))) == 1


def test_records_across_buffer_borders_are_whole(monkeypatch):
    # Records of 60 to 1,500 bytes through a buffer of one page: nearly every refill cuts one.
    packets = [udp(sport=1 + i, payload=bytes([i % 251]) * (i * 37 % 1400)) for i in range(200)]
    monkeypatch.setattr(containers, "BUFFER_BYTES", 2000)
    flows = sampled(as_file(pcap(packets)))
    monkeypatch.undo()
    assert (flows.X == sampled(as_file(pcap(packets))).X).all()
    assert len(flows) == 200


def test_a_record_longer_than_the_buffer_is_read(monkeypatch):
    monkeypatch.setattr(containers, "BUFFER_BYTES", 4096)
    packets = [udp(payload=b"x" * 12_000), *PACKETS]  # the first two share a five-tuple
    assert len(sampled(as_file(pcap(packets)))) == 10


def test_a_fifo_is_read_to_its_end(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    capture = pcap(PACKETS)

    def feed():
        with open(path, "wb", buffering=0) as pipe:
            for at in range(0, len(capture), 100):
                pipe.write(capture[at : at + 100])

    writer = threading.Thread(target=feed)
    writer.start()
    flows = sampled(path)
    writer.join(timeout=10)
    assert len(flows) == 10


# Compression


def in_two_members(pack):
    """Return what packs bytes as two members one behind the other."""
    return lambda data: pack(data[:1000]) + pack(data[1000:])


def pack_zstd(data):
    return pytest.importorskip("backports.zstd").compress(data)


def pack_lz4(data):
    return pytest.importorskip("lz4.frame").compress(data)


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": pack_zstd, "lz4": pack_lz4}
HEADERS = bytes(udp(payload=bytes(30)))[:42]
MANY = [HEADERS[:34] + struct.pack(">H", 1 + i) + HEADERS[36:] + random.Random(i).randbytes(30) for i in range(5000)]


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_a_packed_capture_gives_the_same_rows_whatever_its_name(pack, write):
    for capture in (pcap(MANY), section() + interface() + b"".join(map(enhanced, MANY))):
        assert (sampled(write(in_two_members(pack)(capture))).X == sampled(as_file(capture)).X).all()
    assert (sampled(as_file(pack(capture))).X == sampled(as_file(capture)).X).all()


def test_gzip_is_read_without_isal_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "isal", None)
    assert len(sampled(as_file(in_two_members(gzip.compress)(pcap(MANY)) + bytes(100)))) == 5000


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
@pytest.mark.parametrize("n_zeros", [1, 300, 300_000])
def test_members_behind_zero_padding_are_read(pack, n_zeros):
    capture = pcap(MANY)
    assert len(sampled(as_file(pack(capture[:1000]) + bytes(n_zeros) + pack(capture[1000:]) + bytes(n_zeros)))) == 5000


class Trickle(io.RawIOBase):
    """Gives few bytes at a time; ends with an exception if there is one."""

    def __init__(self, data, size, error=None):
        self.file, self.size, self.error = io.BytesIO(data), size, error

    def readinto(self, buffer):
        data = self.file.read(min(self.size, len(buffer)))
        buffer[: len(data)] = data
        if not data and self.error:
            raise self.error
        return len(data)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_long_gzip_header_may_lie_across_reads(size):
    plain = gzip.compress(pcap(PACKETS))
    header = bytes([31, 139, 8, 8 | 16 | 2]) + plain[4:10] + b"name.pcap\0" + b"a comment\0"
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    assert len(sampled(Trickle(header + plain[10:], size))) == 10


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), OSError("gone"), ValueError("odd")], ids=repr)
def test_an_error_of_the_packed_source_comes_through_whatever_it_is(error):
    packed = gzip.compress(pcap(MANY))
    with pytest.raises(type(error)):
        sampled(Trickle(packed[: len(packed) // 2], 4096, error))


def test_a_non_blocking_stream_without_data_is_not_its_end():
    reading, writing = os.pipe()
    os.write(writing, pcap(PACKETS))
    os.set_blocking(reading, False)
    with open(reading, "rb", buffering=0) as pipe, pytest.raises(BlockingIOError, match="no data now"):
        sampled(pipe)
    os.close(writing)


def test_a_packed_fifo_is_read_to_its_end(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(gzip.compress(pcap(MANY))))
    writer.start()
    flows = sampled(path)
    writer.join(timeout=10)
    assert len(flows) == 5000


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_a_packed_capture_that_is_cut_keeps_what_came_before(pack, write):
    packed = in_two_members(pack)(pcap(MANY))
    with pytest.warns(CaptureWarning, match=r"capture.pcap: byte \d+, record \d+: the packed data is damaged: it ends"):
        flows = sampled(write(packed[: len(packed) * 3 // 4]))
    assert 10 < len(flows) < 5000
    assert (sampled(as_file(pcap(MANY))).X[: len(flows)] == flows.X).all()


@pytest.mark.parametrize("isal", [True, False])
def test_a_wrong_checksum_loses_no_record(isal, write, monkeypatch):
    if not isal:
        monkeypatch.setitem(sys.modules, "isal", None)
    packed = bytearray(gzip.compress(pcap(MANY)))
    packed[-8] ^= 1
    with pytest.warns(CaptureWarning, match="the packed data is damaged: .*the 5000 records before it are kept"):
        assert len(sampled(write(bytes(packed)))) == 5000


def test_every_flipped_byte_of_a_packed_capture_is_survived():
    packed = gzip.compress(pcap(PACKETS), mtime=0)
    whole = sampled(as_file(pcap(PACKETS))).X
    n_refused = n_warned = 0
    for at in range(len(packed)):
        broken = packed[:at] + bytes([packed[at] ^ 0x41]) + packed[at + 1 :]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", CaptureWarning)
            try:
                rows = sampled(as_file(broken)).X
            except CaptureError:
                n_refused += 1
                continue
        n_warned += bool(caught)
        assert caught or np.array_equal(rows, whole)  # what is not said has done no harm
    assert n_refused > 0
    assert n_warned > 0


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_a_bomb_stops_with_a_warning_in_little_memory(pack, write):
    bomb = write(pack(pcap(PACKETS) + bytes(200_000_000)))
    sampled(as_file(pcap(PACKETS)))
    tracemalloc.start()
    with (
        pytest.warns(CaptureWarning, match="most packets are in no flow"),
        pytest.warns(CaptureWarning, match=r"record 1011: 1000 empty records in a row, the rest is not read"),
    ):
        flows = sampled(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(flows), flows.counters[0]["short"]) == (10, 1000)
    assert peak < 64e6


HEADER_BOMBS = {
    "file headers": pcap(PACKETS) + pcap([]) * 20_000,
    "section headers": section() + interface() + b"".join(map(enhanced, PACKETS)) + section() * 20_000,
    "interfaces": section() + interface() + b"".join(map(enhanced, PACKETS)) + (section() + interface() * 99) * 200,
}


@pytest.mark.parametrize("capture", HEADER_BOMBS.values(), ids=HEADER_BOMBS)
def test_endless_headers_without_packets_stop_with_a_warning(capture):
    with pytest.warns(CaptureWarning, match=r"record 11: 10000 headers and no packet between them"):
        assert len(sampled(as_file(gzip.compress(capture)))) == 10


def test_endless_empty_members_stop_with_a_warning():
    packed = gzip.compress(pcap(PACKETS)) + gzip.compress(b"") * 2000
    with pytest.warns(CaptureWarning, match="1000 empty members in a row"):
        assert len(sampled(as_file(packed))) == 10


def test_a_zstd_window_of_128_mib_is_refused():
    zstd = pytest.importorskip("backports.zstd")
    packed = zstd.compress(pcap(PACKETS) + bytes(2**27), options={zstd.CompressionParameter.window_log: 27})
    with pytest.raises(CaptureError, match="memory"):
        sampled(as_file(packed))


def test_no_thread_is_left_behind_when_reading_stops_early(write):
    path = write(gzip.compress(pcap(MANY[:1]) + bytes(20_000_000)))
    with (
        pytest.warns(CaptureWarning, match="most packets are in no flow"),
        pytest.warns(CaptureWarning, match="empty records"),
    ):
        sampled(path)
    with pytest.raises(CaptureError, match="neither pcap nor pcapng"):
        sampled(write(gzip.compress(bytes(20_000_000))))
    stream = FlowSampler(fields="raw", n_packets=1).iter_flows(write(gzip.compress(pcap(MANY * 20))))
    next(stream)
    stream.close()
    assert [thread.name for thread in threading.enumerate() if "unpack" in thread.name] == []


def test_what_is_packed_twice_is_refused(write):
    with pytest.raises(CaptureError, match="packed more than once"):
        sampled(write(gzip.compress(gzip.compress(pcap(PACKETS)))))


ZSTD_IS_BUILT_IN = pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python has zstd of its own")


@pytest.mark.parametrize(
    ("module", "magic"),
    [
        pytest.param("backports", b"\x28\xb5\x2f\xfd", marks=ZSTD_IS_BUILT_IN),
        ("lz4", b"\x04\x22\x4d\x18"),
    ],
)
def test_a_missing_decompressor_is_named(module, magic, write, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"pip install {module}"):
        sampled(write(magic + bytes(100)))


def test_an_unreadable_packed_stream_raises_the_error_of_the_stream():
    class Broken(io.BytesIO):
        def readinto1(self, buffer):
            if self.tell() > 500_000:
                raise OSError("disk on fire")
            return super().readinto1(buffer)

    with pytest.raises(OSError, match="disk on fire"):
        sampled(Broken(gzip.compress(pcap(MANY * 10))))


# Damage


@pytest.mark.parametrize("second", [{}, {"order": ">"}, {"magic": 0xA1B23C4D}, {"magic": 0xA1B2CD34, "pad": bytes(8)}])
@pytest.mark.parametrize("first", [{}, {"order": ">"}, {"magic": 0xA1B2CD34, "pad": bytes(8)}])
def test_captures_put_one_behind_the_other_are_all_read_with_a_warning(first, second):
    capture = pcap(PACKETS[:5], **first)
    both = capture + pcap(PACKETS[5:], **second) + pcap([], **first)
    with pytest.warns(CaptureWarning, match=rf"byte {len(capture)}, record 6: another capture begins here"):
        assert (sampled(as_file(both)).X == sampled(as_file(pcap(PACKETS))).X).all()
    with pytest.raises(CaptureError, match="record 6: another capture begins here"):
        sampled(as_file(both), on_error="raise")


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (pcap([])[:20], "record cut after 20 of 24 bytes"),
        (section() + interface() + enhanced(PACKETS[0]), "a capture of another kind begins here"),
        (gzip.compress(pcap(MANY)), "a capture of another kind begins here"),
    ],
)
def test_a_second_capture_that_cannot_be_read_is_reported_with_its_place(second, reason):
    capture = pcap(PACKETS)
    with pytest.warns(CaptureWarning, match=rf"byte {len(capture)}, record 11: {reason}.*the 10 records before"):
        assert len(sampled(as_file(capture + second))) == 10


def test_packets_of_a_second_capture_that_cannot_be_parsed_are_skipped_and_named():
    with pytest.warns(CaptureWarning) as caught:
        assert len(sampled(as_file(pcap(PACKETS) + pcap(PACKETS, link_type=147)))) == 10
    assert "10 packets of unsupported link type 147 (USER0) are skipped" in str(caught[-1].message)


def test_a_pcap_behind_a_pcapng_is_reported():
    with pytest.warns(CaptureWarning, match="record 2: a capture of another kind begins here"):
        assert len(sampled(as_file(section() + interface() + enhanced(PACKETS[0]) + pcap(PACKETS)))) == 1


def test_a_file_that_was_read_already_is_said_to_be_at_its_end():
    file = as_file(pcap(PACKETS))
    sampled(file)
    with pytest.raises(CaptureError, match="at its end already"):
        sampled(file)


def test_per_packet_information_around_an_unknown_link_type_is_named():
    capture = pcap([bytes.fromhex("00000800c3000000") + bytes(60)], link_type=192)
    with pytest.raises(CaptureError, match=r"link type 195 \(IEEE802_15_4\) is not supported"):
        sampled(as_file(capture))


def test_thousands_of_captures_one_behind_the_other_are_no_recursion():
    with pytest.warns(CaptureWarning, match="another capture begins here"):
        assert len(sampled(as_file(pcap([]) * 5000 + pcap(PACKETS)))) == 10


def test_a_few_empty_records_are_no_damage():
    with pytest.warns(CaptureWarning, match=r"most packets are in no flow.*999 short"):
        sampled(as_file(pcap([*PACKETS, *[b""] * 999], times=[0.0] * 1009)), on_error="raise")


def test_every_cut_of_a_pcap_keeps_the_records_before_it():
    capture = pcap(PACKETS[:3])
    ends = [24]
    for packet in PACKETS[:3]:
        ends.append(ends[-1] + 16 + len(bytes(packet)))
    for cut in range(24, len(capture)):
        whole = sum(end <= cut for end in ends) - 1
        if cut in ends:
            assert len(sampled(as_file(capture[:cut]))) == whole
        else:
            with pytest.warns(CaptureWarning, match=rf"byte {ends[whole]}, record {whole + 1}: record cut after"):
                assert len(sampled(as_file(capture[:cut]))) == whole


def test_every_cut_of_a_pcapng_keeps_the_records_before_it():
    capture = section() + interface() + b"".join(enhanced(p) for p in PACKETS[:3])
    whole = sampled(as_file(capture))
    for cut in range(29, len(capture)):
        try:
            with pytest.warns(CaptureWarning, match=r"memory.pcap: byte"):
                flows = sampled(as_file(capture[:cut]))
        except pytest.fail.Exception:  # a cut between blocks is no damage
            flows = sampled(as_file(capture[:cut]))
        assert (whole.X[: len(flows)] == flows.X).all()


@pytest.mark.parametrize("length", [0x7FFFFFFF, 0xFFFFFFFF, 17 * 2**20])
def test_an_absurd_record_length_stops_without_allocation(length):
    capture = pcap(PACKETS[:2]) + struct.pack("<IIII", 0, 0, length, length) + bytes(100)
    with pytest.warns(CaptureWarning, match=rf"record 3: record claims {length} bytes"):
        assert len(sampled(as_file(capture))) == 2


def test_a_record_longer_than_the_file_is_dropped_with_a_warning():
    capture = pcap(PACKETS[:2]) + struct.pack("<IIII", 0, 0, 300_000, 300_000) + bytes(100)
    with pytest.warns(CaptureWarning, match="record cut after 116 of 300016 bytes; the 2 records before it are kept"):
        assert len(sampled(as_file(capture))) == 2


def test_damage_raises_if_asked_to():
    # 24 bytes of file header, 16 of record header, 42 of the first packet
    with pytest.raises(CaptureError, match=r"memory.pcap: byte 82, record 2: record cut") as raised:
        sampled(as_file(pcap(PACKETS[:2])[:-1]), on_error="raise")
    assert (raised.value.offset, raised.value.record) == (82, 2)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (struct.pack("<II", 6, 13), "length of 13 bytes"),
        (struct.pack("<II", 6, 8), "length of 8 bytes"),
        (enhanced(PACKETS[0])[:-4] + b"\0\0\0\0", "does not fit"),
        (enhanced(PACKETS[0], number=9), "interface 9, but the section has 1"),
        (block(6, struct.pack("<IIIII", 0, 0, 0, 999, 999) + bytes(8)), "length of 999 bytes"),
        (block(6, b"1234"), "length of 16 bytes"),
        (block(1, b"1234"), "interface block of 16 bytes"),
        (block(0x0A0D0D0A, bytes(16)), "no byte-order mark"),
    ],
)
def test_a_damaged_pcapng_block_stops_with_its_place(damage, reason):
    before = section() + interface() + enhanced(PACKETS[0])
    with pytest.warns(CaptureWarning, match=rf"byte {len(before)}, record 2: .*{reason}"):
        assert len(sampled(as_file(before + damage.ljust(40, b"\0")))) == 1


def test_a_flood_of_interfaces_stops(monkeypatch):
    monkeypatch.setattr(containers, "MAX_INTERFACES", 20)
    with pytest.warns(CaptureWarning, match="more than 65536 interfaces"):
        sampled(as_file(section() + interface() * 21))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"\xd4\xc3", "2 bytes only"),
        (b"hello world, no capture", "begins with b'hell'"),
        (b"\x1f\x8b\x08\x00" + bytes(30), "the packed data is damaged"),
        (b"PK\x03\x04" + bytes(30), "zip archive"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
        (b"<!DOCTYPE html>", "web page"),
        (pcap([])[:20], "header cut after 20 of 24 bytes"),
        (gzip.compress(b"", mtime=0), "packed, but empty"),
        (pcap([], link_type=147), r"link type 147 \(USER0\) is not supported"),
        (b"\x0a\x0d\x0d\x0a" + bytes(40), "no byte-order mark"),
        (section()[:20], "cut after 20 of 28"),
        (section() + interface(147) + enhanced(PACKETS[0]), r"link type 147 \(USER0\) is not supported"),
    ],
)
def test_what_is_no_capture_is_refused_by_name(write, data, reason):
    with pytest.raises(CaptureError, match=f"capture.pcap: .*{reason}"):
        sampled(write(data))


def test_a_file_that_mixes_in_an_unknown_link_type_keeps_the_known_one():
    capture = section() + interface(1) + interface(147) + enhanced(PACKETS[0]) + enhanced(b"1234", number=1)
    with pytest.warns(CaptureWarning, match=r"1 packets of unsupported link type 147 \(USER0\) are skipped"):
        flows = sampled(as_file(capture))
    assert flows.counters[0]["unknown_link_type"] == 1
    assert len(flows) == 1


def test_a_capture_without_packets_gives_no_flows_and_no_warning(write):
    assert FlowSampler(fields="raw").transform(write(pcap([]))).shape == (0, 320)


def test_missing_paths_and_directories_raise_the_builtin_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing.pcap"):
        sampled(tmp_path / "missing.pcap")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        sampled(tmp_path)


def test_a_name_that_is_not_utf8_is_read_and_shown_with_escapes(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"\xff.pcap")
    with open(path, "wb") as file:
        file.write(pcap(PACKETS)[:-1])
    with pytest.warns(CaptureWarning, match=r"\\udcff.pcap"):
        assert len(sampled(path)) == 9


def test_a_text_file_object_is_refused(tmp_path):
    with open(tmp_path / "text", "w+") as file, pytest.raises(TypeError, match="open it with mode 'rb'"):
        sampled(file)


@pytest.mark.parametrize("wrong", [5, None, {"a": 1}.keys, 1.5])
def test_a_source_of_another_type_is_refused(wrong):
    with pytest.raises(TypeError, match="capture"):
        sampled(wrong)
    with pytest.raises(TypeError, match="a capture is a path or an open binary file"):
        sampled([wrong])


def test_an_error_survives_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(CaptureError("cut", "a.pcap", 24, 1)))
    assert str(error) == "a.pcap: byte 24, record 1: cut"


def test_an_open_file_stays_open(write):
    with open(write(pcap(PACKETS)), "rb") as file:
        sampled(file)
        assert not file.closed


def test_damage_in_one_of_many_captures_leaves_the_others(write):
    good, bad = write(pcap(PACKETS), "good.pcap"), write(b"nothing", "bad.pcap")
    with pytest.warns(CaptureWarning, match=r"bad.pcap: not a capture.*left out"):
        flows = sampled([bad, good, good])
    assert np.bincount(flows.capture).tolist() == [0, 10, 10]
    with pytest.raises(CaptureError, match=r"bad.pcap"):
        sampled([bad, good], on_error="raise")
    with pytest.raises(CaptureError, match=r"bad.pcap"):
        sampled([bad, bad])


def test_the_timestamps_of_tcp_packets_may_run_backwards():
    flows = sampled(as_file(pcap([tcp(), tcp(flags="A"), tcp(flags="A")], times=[100.0, 40.0, 70.0])))
    assert flows.packets_forward.tolist() == [3]
    assert (flows.time_first[0], flows.time_last[0]) == (100 * 10**9, 100 * 10**9)


def test_a_decompressing_stream_that_breaks_off_keeps_what_came_before():
    packed = gzip.compress(pcap([udp(sport=s, payload=os.urandom(30)) for s in range(1, 5000)]))
    stream = gzip.GzipFile(fileobj=io.BytesIO(packed[: len(packed) // 2]))
    with stream, pytest.warns(CaptureWarning, match="the packed data is damaged: Compressed file ended"):
        flows = sampled(stream)
    assert len(flows) > 1000


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize("method", ["transform", "pipeline", "iter_flows", "write"])
def test_a_warning_names_the_line_of_the_caller(write, tmp_path, method, n_jobs):
    path = write(pcap([udp(), udp()])[:-5])
    sampler = FlowSampler(n_jobs=n_jobs)
    calls = {
        "transform": lambda: sampler.transform([path, path]),
        "pipeline": lambda: make_pipeline(sampler, "passthrough").fit_transform([path, path]),
        "iter_flows": lambda: list(sampler.iter_flows(path)),
        "write": lambda: sampler.write([path, path], tmp_path / "X.npy"),
    }
    with pytest.warns(CaptureWarning) as caught:
        calls[method]()
    assert {warning.filename for warning in caught} == {__file__}
