"""CIC-IDS-2017 and BOS 2018 from captures made here, laid out as published; the cache of sampled flows."""

import hashlib
import json
import os
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
from captures import pcap, tcp

from sklearn_docids import CaptureError, CaptureWarning, FlowSampler
from sklearn_docids.capture import folders
from sklearn_docids.datasets import load_bos_2018, load_cic_ids_2017
from sklearn_docids.datasets._cache import NOTE, captured_flows, checksum
from sklearn_docids.datasets._cic import DAYS, MOST_LIVE_FLOWS, SCAN_INSIDE

ATTACKER, WEB, OTHER = "172.16.0.1", "192.168.10.50", "192.168.10.12"
HOME_HOST, ABROAD = "192.168.10.8", "93.184.216.34"


def seconds(day, time):
    return float(np.datetime64(f"{DAYS[day]}T{time}", "ns").astype(np.int64) / 1e9)


def connection(begin, source, sport, destination, dport, payload=b"x" * 300):
    """Return packets of a connection with their times."""
    ends = {"sport": sport, "dport": dport, "src": source, "dst": destination}
    back = {"sport": dport, "dport": sport, "src": destination, "dst": source}
    packets = [tcp(flags="S", **ends), tcp(flags="SA", **back), tcp(flags="A", payload=payload, **ends)]
    packets += [tcp(flags="A", payload=b"answer", **back)]
    return [(begin + i / 1000, packet) for i, packet in enumerate(packets)]


def normal(begin, sport):
    return connection(begin, HOME_HOST, sport, ABROAD, 443)


EVENTS = {
    "Monday": [("15:00", HOME_HOST, 2000 + i, ABROAD, 80, b"page") for i in range(5)],
    "Tuesday": [
        ("12:30", ATTACKER, 3000, WEB, 21, b"USER x"),
        ("12:31", ATTACKER, 3001, WEB, 21, b""),  # attempted: no payload
        ("17:30", ATTACKER, 3002, WEB, 22, b"y" * 200),
    ],
    "Wednesday": [("14:00", ATTACKER, 3100, WEB, 80, b"z" * 300)],
    "Thursday": [
        ("17:34", HOME_HOST, 3200, "192.168.10.5", 139, b""),  # the scan inside
        ("17:34:01", HOME_HOST, 3201, "192.168.10.5", 445, b""),
    ],
    "Friday": [("17:00", ATTACKER, 3300, WEB, 8080, b""), ("19:00", ATTACKER, 3301, WEB, 80, b"w" * 50)],
}


def day_capture(day):
    packets = normal(seconds(day, "12:00"), 1000) + normal(seconds(day, "20:05"), 1001)
    for time, *ends in EVENTS[day]:
        packets += connection(seconds(day, time), *ends)
    packets.sort(key=lambda entry: entry[0])
    return pcap([packet for _, packet in packets], times=[time for time, _ in packets])


@pytest.fixture
def home(tmp_path):
    folder = tmp_path / "cic"
    folder.mkdir()
    for day in DAYS:
        (folder / f"{day}-WorkingHours.pcap").write_bytes(day_capture(day))
    (folder / "README.txt").write_text("not a capture")
    return folder


def test_monday_trains_and_the_other_days_test(home):
    data = load_cic_ids_2017(home, random_state=0)
    assert data.X_train.shape == (7, 320)
    assert data.X_test.shape == (8 + 7, 320)  # two normal flows a day, and what was not only attempted
    assert sorted(data.attack[data.attack != ""]) == sorted(
        ["FTP-Patator", "SSH-Patator", "DoS Hulk", SCAN_INSIDE, SCAN_INSIDE, "PortScan", "DDoS"]
    )
    np.testing.assert_array_equal(data.y_test, np.where(data.attack == "", 1, -1))
    assert (data.attempted == -1).all()
    assert np.bincount(data.capture_test).tolist() == [0, 4, 3, 4, 4]
    assert [path.name for path in data.captures.values()] == [f"{day}-WorkingHours.pcap" for day in DAYS]


def test_addresses_are_random_on_monday_alone(home):
    first, second, again = (
        load_cic_ids_2017(home, sampler=FlowSampler(fields="paper"), random_state=seed) for seed in (0, 1, 0)
    )
    np.testing.assert_array_equal(first.X_train, again.X_train)
    addresses = slice(26, 34)
    assert (first.X_train[:, addresses] != second.X_train[:, addresses]).any()
    np.testing.assert_array_equal(first.X_test, second.X_test)
    raw = FlowSampler(fields="raw").flows([path for day, path in first.captures.items() if day != "Monday"])
    kept = load_cic_ids_2017(home, sampler=FlowSampler(fields="paper"), attempted="attack")
    np.testing.assert_array_equal(kept.X_test, raw.X)


@pytest.mark.parametrize(
    ("policy", "n_rows", "n_attacks"),
    [
        ({"attempted": "ignore"}, 15, 7),
        ({"attempted": "benign"}, 16, 7),
        ({"attempted": "attack"}, 16, 8),
        ({"labels": "paper"}, 16, 6),  # with the attempt, without the scan inside
        ({"labels": "paper", "attempted": "benign"}, 16, 6),
    ],
)
def test_policies(home, policy, n_rows, n_attacks):
    data = load_cic_ids_2017(home, **policy)
    assert len(data.X_test) == len(data.attack) == len(data.attempted) == len(data.capture_test) == n_rows
    assert np.sum(data.y_test == -1) == n_attacks
    if policy.get("labels") == "paper":
        assert SCAN_INSIDE not in data.attack


def test_counts_stand_beside_those_of_the_paper_and_the_corrected_tables(home, capsys):
    data = load_cic_ids_2017(home, verbose=1)
    by_name = {count["attack"]: count for count in data.counts}
    assert by_name["FTP-Patator"] == {
        "attack": "FTP-Patator", "carried_out": 1, "attempted": 1, "paper": 3499, "corrected_carried_out": 3972,
        "corrected_attempted": 12,
    }  # fmt: skip
    assert (by_name["DDoS"]["paper"], by_name[SCAN_INSIDE]["paper"]) == (None, None)
    assert sum(count["carried_out"] for count in data.counts) == 7
    printed = capsys.readouterr().out
    assert data.DESCR in printed
    assert "Monday-WorkingHours.pcap" in printed
    (line,) = (line for line in data.DESCR.splitlines() if line.startswith("FTP-Patator"))
    assert line.split() == ["FTP-Patator", "1", "1", "3499", "3972", "12"]


def test_paper_counts_are_those_of_the_paper():
    from sklearn_docids.datasets import _cic

    n_attacks = sum(_cic.PAPER_COUNTS.values())
    assert (n_attacks, n_attacks + _cic.PAPER_BENIGN) == (192_857, 1_153_985)


def test_duplicates_and_disorder_are_repaired(home):
    expected = load_cic_ids_2017(home, random_state=0)
    path = home / "Wednesday-WorkingHours.pcap"
    events = normal(seconds("Wednesday", "12:00"), 1000) + normal(seconds("Wednesday", "20:05"), 1001)
    for time, *ends in EVENTS["Wednesday"]:
        events += connection(seconds("Wednesday", time), *ends)
    events.sort(key=lambda entry: entry[0])
    twice = [entry for time, packet in events for entry in ((time, packet), (time + 1e-5, packet))]
    mixed = [twice[i ^ 1] for i in range(len(twice) - 2)] + twice[-2:]
    path.write_bytes(pcap([packet for _, packet in mixed], times=[time for time, _ in mixed]))
    repaired = load_cic_ids_2017(home, random_state=0)
    np.testing.assert_array_equal(repaired.X_test, expected.X_test)
    np.testing.assert_array_equal(repaired.attack, expected.attack)
    assert len(load_cic_ids_2017(home, sampler=FlowSampler(fields="raw")).X_test) == len(expected.X_test)


def test_missing_days_are_all_named(home):
    for day in ("Tuesday", "Friday"):
        (home / f"{day}-WorkingHours.pcap").unlink()
    with pytest.raises(FileNotFoundError, match=r"captures of Tuesday, Friday .*unb\.ca"):
        load_cic_ids_2017(home)
    with pytest.raises(FileNotFoundError):
        load_cic_ids_2017(home / "nowhere")


def test_captures_behind_links_out_of_the_folder_are_skipped_by_name(home, tmp_path):
    capture = home / "Monday-WorkingHours.pcap"
    capture.rename(tmp_path / "elsewhere.pcap")
    capture.symlink_to(tmp_path / "elsewhere.pcap")
    with (
        pytest.warns(UserWarning, match=r"skipped .*Monday-WorkingHours.pcap: links that lead out of the folder"),
        pytest.raises(FileNotFoundError, match="lacks the captures of Monday"),
    ):
        load_cic_ids_2017(home)


def test_a_pipe_is_no_checksum(home):
    os.mkfifo(home / "Monday-WorkingHours.md5")
    assert len(load_cic_ids_2017(home).X_train) == 7


def test_tables_and_checksums_beside_the_captures_are_no_captures(home):
    for name in ("Monday-WorkingHours.pcap_ISCX.csv", "Monday-WorkingHours.pcap.txt", "monday-notes.txt"):
        (home / name).write_text("a table")
    assert load_cic_ids_2017(home).captures["Monday"].name == "Monday-WorkingHours.pcap"


def test_a_stray_date_does_not_refuse_a_day(home):
    path = home / "Tuesday-WorkingHours.pcap"
    many = [entry for i in range(1500) for entry in normal(seconds("Tuesday", "15:00") + i, 10_000 + i)]
    many += connection(5.0, HOME_HOST, 9, ABROAD, 9)
    data = pcap([packet for _, packet in many], times=[time for time, _ in many])
    path.write_bytes(path.read_bytes() + data[24:])
    assert np.sum(load_cic_ids_2017(home).capture_test == 1) == 4 + 1501


def test_flows_split_by_direction_are_refused(home):
    with pytest.raises(ValueError, match="bidirectional=True"):
        load_cic_ids_2017(home, sampler=FlowSampler(bidirectional=False))


def test_two_captures_of_a_day_are_refused(home):
    (home / "monday-again.pcapng").write_bytes(day_capture("Monday"))
    with pytest.raises(ValueError, match="2 captures of Monday"):
        load_cic_ids_2017(home)


def test_the_wrong_day_under_the_right_name(home):
    (home / "Thursday-WorkingHours.pcap").write_bytes(day_capture("Wednesday"))
    with pytest.raises(ValueError, match=r"Thursday-Wor.*2017-07-05T12:00:00Z.* but Thursday is 2017-07-06"):
        load_cic_ids_2017(home)


def test_half_a_capture_is_refused(home):
    path = home / "Friday-WorkingHours.pcap"
    path.write_bytes(path.read_bytes()[:-900])  # the evening is gone
    with (
        pytest.warns(CaptureWarning, match="cut"),
        pytest.raises(
            ValueError, match=r"not the whole of Friday.*2017-07-07T17:00:00Z.*until 2017-07-07T20:01:24Z; .*pcapfix"
        ),
    ):
        load_cic_ids_2017(home)


def test_other_files_under_the_right_name(home):
    path = home / "Monday-WorkingHours.pcap"
    path.write_bytes(b"PK\x03\x04 half an archive")
    with pytest.raises(CaptureError, match="a zip archive: extract it first"):
        load_cic_ids_2017(home)
    path.write_bytes(pcap([]))
    with pytest.raises(ValueError, match="has no flows"):
        load_cic_ids_2017(home)


def test_checksums_beside_a_capture_are_checked(home, tmp_path, reads):
    capture = home / "Tuesday-WorkingHours.pcap"
    digest = hashlib.md5(capture.read_bytes()).hexdigest()
    beside = home / "Tuesday-WorkingHours.md5"
    beside.write_text(f"{digest.upper()} *Tuesday-WorkingHours.pcap\n")
    load_cic_ids_2017(home, cache_folder=tmp_path)
    beside.write_text("0123456789abcdef0123456789abcdef  Tuesday-WorkingHours.pcap\n")
    with pytest.raises(
        ValueError, match=rf"Tuesday-WorkingHours.pcap has the MD5 checksum {digest}, but .*get it again"
    ):
        load_cic_ids_2017(home)
    load_cic_ids_2017(home, cache_folder=tmp_path)  # it was right when it was sampled
    assert len(reads) == 5


def test_a_checksum_file_without_a_checksum_is_named_and_not_read_to_its_end(home):
    beside = home / "Tuesday-WorkingHours.md5"
    with beside.open("wb") as file:
        file.truncate(2**40)  # a tebibyte of NUL bytes that takes no room
    with pytest.raises(ValueError, match=r"Tuesday-WorkingHours\.md5 holds no MD5 checksum of .*or remove it"):
        load_cic_ids_2017(home)
    beside.unlink()
    os.mkfifo(beside)  # whoever opens it waits for ever
    load_cic_ids_2017(home)


@pytest.mark.parametrize("wrong", [{"labels": "papers"}, {"attempted": "drop"}, {"labels": None}])
def test_parameters_are_checked_before_anything_is_read(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        load_cic_ids_2017("nowhere", **wrong)


# The cache.


@pytest.fixture
def reads(monkeypatch):
    """Count how often captures are read."""
    counted = []
    write = FlowSampler.write

    def counting(self, captures, out):
        counted.append(captures)
        return write(self, captures, out)

    monkeypatch.setattr(FlowSampler, "write", counting)
    return counted


def test_cached_flows_are_the_same_and_read_once(home, tmp_path, reads):
    plain = load_cic_ids_2017(home, random_state=0)
    for n_reads in (5, 5):
        cached = load_cic_ids_2017(home, random_state=0, cache_folder=tmp_path / "cache")
        assert len(reads) == n_reads
        for name in ("X_train", "X_test", "attack", "capture_test"):
            np.testing.assert_array_equal(cached[name], plain[name])
    assert len(list((tmp_path / "cache").iterdir())) == 5


def test_another_field_policy_uses_the_same_cache_and_other_settings_do_not(home, tmp_path, reads):
    options = {"random_state": 0, "cache_folder": tmp_path}
    load_cic_ids_2017(home, **options)
    portable = load_cic_ids_2017(
        home,
        sampler=FlowSampler(
            duplicate_window=9999, reorder_window=10_000, max_live_flows=MOST_LIVE_FLOWS, fields="portable"
        ),
        **options,
    )
    assert len(reads) == 5
    assert (portable.X_test[:, 26:34] == 0).all()
    shorter = load_cic_ids_2017(home, sampler=FlowSampler(n_bytes=40), **options)
    assert len(reads) == 10
    assert shorter.X_test.shape[1] == 160


def test_a_changed_capture_is_read_again(home, tmp_path, reads):
    load_cic_ids_2017(home, cache_folder=tmp_path)
    path = home / "Monday-WorkingHours.pcap"
    extra = connection(seconds("Monday", "20:10"), HOME_HOST, 5000, ABROAD, 80)
    path.write_bytes(path.read_bytes() + pcap([p for _, p in extra], times=[t for t, _ in extra])[24:])
    assert len(load_cic_ids_2017(home, cache_folder=tmp_path).X_train) == 8
    assert len(reads) == 6


@pytest.mark.parametrize("damage", ["byte", "cut", "missing", "note", "other"])
def test_a_damaged_cache_is_made_again(home, tmp_path, reads, damage):
    capture = home / "Friday-WorkingHours.pcap"
    expected = captured_flows(capture, FlowSampler(), tmp_path)
    (folder,) = tmp_path.glob("Friday*")
    rows = folder / "X.npy"
    if damage == "byte":
        data = bytearray(rows.read_bytes())
        data[-5] ^= 1
        rows.write_bytes(data)
    elif damage == "cut":
        rows.write_bytes(rows.read_bytes()[:-100])
    elif damage == "missing":
        rows.unlink()
    elif damage == "note":
        (folder / NOTE).write_text("{")
    else:
        note = json.loads((folder / NOTE).read_text())
        note["described"]["sampler"]["n_packets"] = 8
        (folder / NOTE).write_text(json.dumps(note))
    expected = np.array(FlowSampler(fields="raw").flows(capture).X)
    with pytest.warns(UserWarning, match="is damaged and made again"):
        again = captured_flows(capture, FlowSampler(), tmp_path)
    np.testing.assert_array_equal(again.X, expected)
    assert len(reads) == 2
    captured_flows(capture, FlowSampler(), tmp_path)
    assert len(reads) == 2


def test_damage_of_a_capture_is_told_from_the_cache_too(home, tmp_path, reads):
    capture = home / "Friday-WorkingHours.pcap"
    capture.write_bytes(capture.read_bytes()[:-10])
    for _ in range(2):
        with pytest.warns(CaptureWarning, match="record cut"):
            captured_flows(capture, FlowSampler(), tmp_path)
    assert len(reads) == 1


def test_captures_alike_in_name_size_and_time_are_not_taken_for_each_other(tmp_path, reads):
    found = []
    for port in (1111, 2222):
        path = tmp_path / str(port) / "x.pcap"
        path.parent.mkdir()
        path.write_bytes(pcap([tcp(sport=port)]))
        os.utime(path, (1000, 1000))
        found.append(captured_flows(path, FlowSampler(), tmp_path / "cache").src_port.tolist())
    assert found == [[1111], [2222]]


def test_evicted_flows_are_told(home, tmp_path):
    capture = home / "Tuesday-WorkingHours.pcap"
    for cache in (None, tmp_path, tmp_path):
        with pytest.warns(UserWarning, match=r"flows were ended early.*max_live_flows"):
            captured_flows(capture, FlowSampler(max_live_flows=1, idle_timeout=None), cache)


def test_another_process_may_be_first(home, tmp_path, monkeypatch):
    capture, cache = home / "Monday-WorkingHours.pcap", tmp_path / "cache"
    write = FlowSampler.write

    def overtaken(self, captures, out):
        result = write(self, captures, out)
        if not list(cache.glob("Monday*")):
            monkeypatch.setattr(FlowSampler, "write", write)
            captured_flows(capture, FlowSampler(), cache)
        return result

    monkeypatch.setattr(FlowSampler, "write", overtaken)
    assert len(captured_flows(capture, FlowSampler(), cache)) == 7
    assert len(list(cache.iterdir())) == 1


def test_others_may_read_a_cache_as_far_as_the_umask_allows_and_nobody_changes_the_umask(home, tmp_path, monkeypatch):
    mask = os.umask(0o027)
    try:
        with monkeypatch.context() as patched:
            patched.delattr(os, "umask")
            captured_flows(home / "Monday-WorkingHours.pcap", FlowSampler(), tmp_path)
    finally:
        os.umask(mask)
    (folder,) = tmp_path.glob("Monday*")
    assert folder.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o640}


def tampered(folder, **arrays):
    """Write arrays into a cached folder with checksums that fit, as somebody would who wants them to be believed."""
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    folders.seal(folder)
    note = json.loads((folder / NOTE).read_text())
    note["sha256"] = {name: checksum(folder / name) for name in folders.NAMES}
    (folder / NOTE).write_text(json.dumps(note))


def too_many_bytes(rows):
    kept_bytes = rows.kept_bytes.copy()
    kept_bytes[-1] = 65_535
    return {"kept_bytes": kept_bytes}


POISONED = {
    "kept_bytes": too_many_bytes,
    "narrow": lambda rows: {"X": rows.X[:, :160], "kept_bytes": np.minimum(rows.kept_bytes, 40)},
    "packets": lambda rows: {"kept_bytes": np.repeat(rows.kept_bytes, 2, axis=1) // 2},
    "types": lambda rows: {"X": rows.X.astype(np.int16)},
}


@pytest.mark.parametrize("poison", POISONED)
def test_a_cache_that_does_not_fit_its_sampler_is_made_again_whatever_its_checksums_say(home, tmp_path, reads, poison):
    capture = home / "Friday-WorkingHours.pcap"
    honest = captured_flows(capture, FlowSampler(), tmp_path).rows.copy()
    (folder,) = tmp_path.glob("Friday*")
    tampered(folder, **POISONED[poison](honest))
    with pytest.warns(
        UserWarning, match="is damaged and made again: .*(room for 80|do not fit|not of 4 packets of 80)"
    ):
        again = captured_flows(capture, FlowSampler(), tmp_path)
    np.testing.assert_array_equal(again.kept_bytes, honest.kept_bytes)
    np.testing.assert_array_equal(again.X, honest.X)
    assert len(list(tmp_path.glob("*"))) == len(list(tmp_path.iterdir())) == 2  # with the captures' folder


@pytest.mark.parametrize(
    "change",
    [{"sha256": {}}, {"sha256": {"../../secret": "0"}}, {"damage": [{}]}, {"damage": "text"}, {"described": 1}],
)
def test_a_note_of_other_content_is_damage(home, tmp_path, reads, change):
    capture = home / "Friday-WorkingHours.pcap"
    captured_flows(capture, FlowSampler(), tmp_path)
    (note,) = tmp_path.glob(f"Friday*/{NOTE}")
    note.write_text(json.dumps(json.loads(note.read_text()) | change))
    with pytest.warns(UserWarning, match="is damaged and made again"):
        captured_flows(capture, FlowSampler(), tmp_path)
    assert len(reads) == 2


@pytest.mark.parametrize("name", [NOTE, *folders.NAMES])
def test_a_pipe_in_a_cache_is_damage(home, tmp_path, reads, name):
    capture = home / "Friday-WorkingHours.pcap"
    captured_flows(capture, FlowSampler(), tmp_path)
    (path,) = tmp_path.glob(f"Friday*/{name}")
    path.unlink()
    os.mkfifo(path)
    with pytest.warns(UserWarning, match=f"is damaged and made again: {name} is missing, or not a file"):
        captured_flows(capture, FlowSampler(), tmp_path)
    assert len(reads) == 2


def test_warnings_of_others_are_neither_kept_nor_recorded(home, tmp_path, monkeypatch):
    write = FlowSampler.write

    def warning(self, captures, out):
        warnings.warn("of another thread", CaptureWarning, stacklevel=1)
        return write(self, captures, out)

    monkeypatch.setattr(FlowSampler, "write", warning)
    with pytest.warns(CaptureWarning, match="of another thread"):
        captured_flows(home / "Friday-WorkingHours.pcap", FlowSampler(), tmp_path)
    (note,) = tmp_path.glob(f"Friday*/{NOTE}")
    assert json.loads(note.read_text())["damage"] == []


def test_numbers_of_numpy_are_settings_too(home, tmp_path):
    capture, cache = home / "Monday-WorkingHours.pcap", tmp_path / "cache"
    for n_packets in (np.int64(4), 4):
        captured_flows(capture, FlowSampler(n_packets=n_packets), cache)
    assert len(list(cache.iterdir())) == 1


def test_nothing_is_left_of_a_failure(home, tmp_path):
    capture = home / "Monday-WorkingHours.pcap"
    capture.write_bytes(b"not a capture")
    with pytest.raises(CaptureError):
        captured_flows(capture, FlowSampler(), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_warnings_that_are_errors_do_not_break_the_cache(home, tmp_path):
    capture = home / "Friday-WorkingHours.pcap"
    capture.write_bytes(capture.read_bytes()[:-10])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CaptureWarning):
            captured_flows(capture, FlowSampler(), tmp_path)
    with pytest.warns(CaptureWarning):
        assert len(captured_flows(capture, FlowSampler(), tmp_path)) == 4


# The paper's experiment on both.


def experiment(dataset, home, tmp_path):
    """Run the paper's experiment with a reference of two classes; return its result lines."""
    reference = tmp_path / "reference"
    reference.mkdir()
    for number, name in enumerate(("dns", "tls")):
        packets = [tcp(sport=1000 + i, dport=53 + number, payload=bytes([i]) * 40) for i in range(8)]
        (reference / f"{name}.pcap").write_bytes(pcap(packets))
    main = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "paper_experiment.py"))["main"]
    options = ["--dataset", dataset, "--folder", str(home), "--reference", str(reference), "--max-epochs", "1"]
    return main([*options, "--cache-folder", str(tmp_path / "cache"), "--output", str(tmp_path / "out")])


def test_the_papers_experiment_runs_on_cic_ids_2017(home, tmp_path, capsys):
    results = experiment("cic-ids-2017", home, tmp_path)
    attacks = {"all attacks", "FTP-Patator", "SSH-Patator", "DoS Hulk", "PortScan", "DDoS"}
    assert {line["attack"] for line in results} == attacks  # with the paper's labels, the scan inside is normal
    printed = capsys.readouterr().out
    assert "Table 4, target" in printed
    assert "Monday, train" in printed
    assert len(list((tmp_path / "out").glob("*.png"))) == 5


def test_the_papers_experiment_runs_on_bos_2018(bos, tmp_path, capsys):
    results = experiment("bos-2018", bos, tmp_path)
    assert {line["attack"] for line in results} == {"all attacks", "progress 7", "progress 8"}
    assert "Table 3, target" in capsys.readouterr().out


# BOS 2018.

SERVER = "203.0.113.9"


@pytest.fixture
def bos(tmp_path):
    folder = tmp_path / "bos"
    layout = {
        "progress2/day1.pcap": [normal(10.0, 1000), normal(20.0, 1001)],
        "progress2/day2.pcap": [normal(30.0, 1002)],
        "level_7.pcapng": [normal(40.0, 1003), connection(50.0, HOME_HOST, 1500, SERVER, 443)],
        "more/lv8-b.pcap": [connection(60.0, SERVER, 4000, HOME_HOST, 1500), normal(70.0, 1004)],
        "progress5/unused.pcap": [connection(1.0, HOME_HOST, 1, SERVER, 2)],
    }
    for name, connections in layout.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        packets = [entry for each in connections for entry in each]
        path.write_bytes(pcap([p for _, p in packets], times=[t for t, _ in packets]))
    (folder / "c2_addresses.txt").write_text(f"# servers\n{SERVER}\n\n2001:DB8:0::1\n")
    return folder


def test_levels_2_7_and_8_are_train_and_test(bos, tmp_path, capsys):
    data = load_bos_2018(bos, random_state=0, verbose=1, cache_folder=tmp_path / "cache")
    assert data.X_train.shape == (3, 320)
    assert data.attack.tolist() == ["", "progress 7", "progress 8", ""]
    assert data.y_test.tolist() == [1, -1, -1, 1]
    assert data.capture_test.tolist() == [0, 0, 1, 1]
    assert [path.name for path in data.captures] == ["level_7.pcapng", "lv8-b.pcap"]
    assert "progress 7: 1 (12051)" in data.DESCR
    assert data.DESCR in capsys.readouterr().out


def test_levels_can_be_given(bos):
    levels = {"progress5/unused.pcap": 7, "progress2/day1.pcap": 2, "more/lv8-b.pcap": 8}
    data = load_bos_2018(bos, levels=levels, c2_addresses=[SERVER])
    assert data.attack.tolist() == ["progress 7", "progress 8", ""]
    with pytest.raises(ValueError, match=r"does not have: nothing\.pcap"):
        load_bos_2018(bos, levels={"nothing.pcap": 2})


def test_what_is_missing_is_named(bos):
    (bos / "level_7.pcapng").unlink()
    with pytest.raises(FileNotFoundError, match=r"no captures of progress level 7; .*MWS"):
        load_bos_2018(bos)
    (bos / "c2_addresses.txt").unlink()
    with pytest.raises(FileNotFoundError, match="c2_addresses"):
        load_bos_2018(bos)


@pytest.mark.parametrize(
    ("addresses", "message"),
    [
        (["10.0.0"], "c2_addresses: .*does not appear"),
        ([], "at least one"),
        (SERVER, "must be a list"),
        (["10.9.9.9"], "no flow of"),
    ],
)
def test_unusable_addresses(bos, addresses, message):
    with pytest.raises(ValueError, match=message):
        load_bos_2018(bos, c2_addresses=addresses)


def test_pipes_are_neither_captures_nor_addresses(bos):
    os.mkfifo(bos / "progress2" / "pipe.pcap")
    with pytest.warns(UserWarning, match=r"skipped .*pipe.pcap"):
        assert len(load_bos_2018(bos).X_train) == 3
    (bos / "progress2" / "pipe.pcap").unlink()
    (bos / "c2_addresses.txt").unlink()
    os.mkfifo(bos / "c2_addresses.txt")
    with pytest.raises(FileNotFoundError, match="c2_addresses"):
        load_bos_2018(bos)


def test_lists_of_addresses_as_people_write_them(bos):
    path = bos / "c2_addresses.txt"
    path.write_bytes(b"\xef\xbb\xbf" + f"{SERVER}  # of the second stage\r\n".encode())
    assert load_bos_2018(bos).attack.tolist() == ["", "progress 7", "progress 8", ""]
    path.write_bytes(b"\x83T\x81[\x83o\n")
    with pytest.raises(ValueError, match=r"c2_addresses\.txt: "):
        load_bos_2018(bos)


def test_a_list_of_addresses_that_does_not_end_is_refused(bos):
    path = bos / "c2_addresses.txt"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"c2_addresses\.txt has more than 1000000 characters: it must hold"):
        load_bos_2018(bos)
    path.write_text("9" * 10**6)
    with pytest.raises(ValueError, match=r"c2_addresses\.txt: '9+$"):
        load_bos_2018(bos)


def test_a_path_with_two_levels_is_refused(bos):
    (bos / "level_7.pcapng").rename(bos / "progress2" / "level_7.pcapng")
    with pytest.raises(ValueError, match=r"progress2/level_7\.pcapng has the levels \[2, 7\]"):
        load_bos_2018(bos)


def test_training_traffic_with_a_server_is_refused(bos):
    with pytest.raises(ValueError, match=r"day1.pcap is of level 2, but holds flows with a command-and-control"):
        load_bos_2018(bos, c2_addresses=[ABROAD])
