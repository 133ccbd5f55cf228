"""Watching a stream, a folder or an interface: nothing is lost, all is counted, and signals are obeyed."""

import argparse
import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from captures import pcap, tcp, udp
from office import burst, capture_of, office

from sklearn_docids import FlowSampler, MultiViewDetector, load_detector, save_detector
from sklearn_docids._watch.alarms import AlarmDesk
from sklearn_docids._watch.counting import Delays
from sklearn_docids._watch.flows import LiveAssembler, Snapshot, decided_at
from sklearn_docids._watch.folders import FolderSource, natural
from sklearn_docids._watch.interfaces import check_filter, command_of, started
from sklearn_docids._watch.signals import Signals
from sklearn_docids._watch.states import StateLock, read_state, write_state
from sklearn_docids._watch.streams import Block, File
from sklearn_docids._watch.verdicts import Judge
from sklearn_docids._watch.watcher import Plan, Watcher
from sklearn_docids.capture.containers import Capture
from sklearn_docids.capture.headers import PACKET_FATES
from sklearn_docids.cli import _watch
from sklearn_docids.exceptions import CaptureError, CaptureWarning

SAMPLER = FlowSampler(layout="payload", output="flows", random_state=0)
RULES = SAMPLER._rules()
BEGUN, JUDGED = ("flows_begun", "flows_resumed", "flows_again"), ("flows_scored", "flows_dropped", "flows_open")


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    """Return captures of an office, and of another day of it with a burst of guesses."""
    folder = tmp_path_factory.mktemp("office")
    for name, dialogues in {"train": office(150, 0), "test": [*office(120, 1, 400), *burst(40, 1200.0)]}.items():
        (folder / f"{name}.pcap").write_bytes(capture_of(dialogues))
    return folder


@pytest.fixture(scope="module")
def model(days, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    detector = MultiViewDetector(views=("requests", "novelty", "content"), false_alarm_rate=0.05, random_state=0)
    detector.fit(SAMPLER.transform(days / "train.pcap"))
    save_detector(detector, path, sampler=SAMPLER)
    return path


@pytest.fixture
def watch(model, tmp_path):
    """Return a function that watches a source until it ends, and returns the lines of EVE."""

    def watched(source, *options, until=None, output=None):
        parser = argparse.ArgumentParser()
        _watch.add_options(parser)
        path = output or tmp_path / "alarms.json"
        args = parser.parse_args([str(source), "--model", str(model), "-o", str(path), *options])
        args.quiet = False
        with stopping(path, until):
            _watch.run(args)
        return lines_of(path)

    return watched


def lines_of(path):
    with contextlib.suppress(FileNotFoundError):
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return []


def counters_of(lines):
    """Return the last counters, which add up."""
    found = [line["metadata"]["flowints"] for line in lines if line["event_type"] == "stats"]
    if not found:
        return {}
    last = found[-1]
    assert last["packets"] == sum(last[fate] for fate in PACKET_FATES)
    assert sum(last[name] for name in BEGUN) == sum(last[name] for name in JUDGED)
    return last


def alerts_of(lines):
    return [line for line in lines if line["event_type"] == "alert"]


@contextlib.contextmanager
def stopping(path, until, number=signal.SIGTERM):
    """Send this process a signal when the last counters fulfil a condition."""
    over = threading.Event()

    def wait():
        while not over.wait(0.02):
            counters = counters_of(lines_of(path))
            if counters and until(counters):
                os.kill(os.getpid(), number)
                return

    thread = threading.Thread(target=wait, daemon=True)
    if until:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if until:
            thread.join()


def expected(days, model):
    """Return the number of flows of the test day, and of those that are flagged."""
    detector = load_detector(model)
    flows = SAMPLER.flows(days / "test.pcap")
    order = np.argsort(flows.time_last, kind="stable")
    scores = np.concatenate([detector.stream().score_samples(flows[order])])
    return len(flows), int((scores < detector.offset_).sum())


def records_of(path):
    """Return the frames of a capture, and their times in s."""
    with open(path, "rb") as stream:
        found = [
            (data[record["start"] : record["start"] + record["captured_length"]].tobytes(), record["time"] / 1e9)
            for data, records in Capture(stream, str(path)).blocks()
            for record in records.copy()
        ]
    return zip(*found, strict=True)


def cut(path, folder, n_files, name="part{}.pcap"):
    """Write a capture as so many files; return their paths."""
    frames, times = records_of(path)
    borders = np.linspace(0, len(frames), n_files + 1).astype(int)
    paths = []
    for number, (first, last) in enumerate(itertools.pairwise(borders)):
        paths.append(folder / name.format(number + 1))
        paths[-1].write_bytes(pcap(frames[first:last], times=times[first:last]))
        os.utime(paths[-1], ns=(10**18 + number * 10**9,) * 2)
    return paths


def feed(assembler, path, first=0, last=None):
    """Give an assembler some packets of a capture; return the flows that came out, as sets of facts."""
    frames, times = records_of(path)
    part = io.BytesIO(pcap(frames[first:last], times=times[first:last]))
    for data, records in Capture(part, "part").blocks():
        assembler.add(data, records)
    assembler.flush()


def facts(rows):
    """Return what is known of each flow, but for its number."""
    return sorted(
        (record.item()[1:], X.tobytes()) for part in rows for record, X in zip(part.records, part.X, strict=True)
    )


def ended(assembler):
    for _ in assembler.finish():
        pass
    return facts(assembler.done)


def test_a_file_gives_the_alarms_of_its_flagged_flows_and_counters_that_add_up(watch, days, model):
    lines = watch(days / "test.pcap")
    counters, (n_flows, _) = counters_of(lines), expected(days, model)
    assert counters["flows_scored"] == n_flows
    assert counters["flagged"] >= 40  # the guesses
    assert (
        counters["alarms"]
        == len(alerts_of(lines))
        == counters["incidents"] + sum(line["alert"]["context"]["n_reported"] > 1 for line in alerts_of(lines))
    )
    assert "10.0.0.1" in {line["src_ip"] for line in alerts_of(lines)}


def test_standard_input_is_read_as_it_comes(watch, days, monkeypatch, tmp_path):
    reader, writer = os.pipe()
    data = (days / "test.pcap").read_bytes()

    def write():
        with open(writer, "wb") as file:
            file.write(data[:5000])
            file.flush()
            while not counters_of(lines_of(tmp_path / "alarms.json")).get("packets"):
                time.sleep(0.02)
            file.write(data[5000:])

    threading.Thread(target=write, daemon=True).start()
    with open(reader, "rb") as stream:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        lines = watch("-", "--stats", "0.1")
    assert counters_of(lines)["flows_scored"] == len(SAMPLER.flows(days / "test.pcap"))


def test_a_fifo_is_waited_for_and_read_to_its_end(watch, days, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    data = (days / "test.pcap").read_bytes()
    threading.Timer(0.3, lambda: (tmp_path / "fifo").write_bytes(data)).start()
    assert counters_of(watch(tmp_path / "fifo"))["packets"] == len(next(records_of(days / "test.pcap")))


def test_a_signal_ends_the_watch_of_a_silent_stream_and_judges_what_is_open(watch, days, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    is_over = threading.Event()

    def write():
        with open(tmp_path / "fifo", "wb") as file:
            file.write((days / "test.pcap").read_bytes())
            file.flush()
            is_over.wait(60)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    lines = watch(tmp_path / "fifo", "--stats", "0.1", until=lambda counters: counters["packets"] == 500)
    assert thread.is_alive()
    is_over.set()
    assert counters_of(lines)["flows_open"] == 0
    assert counters_of(lines)["flows_scored"] == len(SAMPLER.flows(days / "test.pcap"))


def test_a_damaged_stream_is_judged_up_to_the_damage_and_fails(watch, days, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    data = (days / "test.pcap").read_bytes()[:20_000]
    threading.Timer(0.1, lambda: (tmp_path / "fifo").write_bytes(data)).start()
    with pytest.raises(CaptureError, match=r"fifo: byte \d+, record \d+: record cut"):
        watch(tmp_path / "fifo")
    counters = counters_of(lines_of(tmp_path / "alarms.json"))
    assert counters["packets"] > 100
    assert counters["flows_open"] == 0


def test_of_a_damaged_file_the_rest_is_warned_of(watch, days, tmp_path):
    (tmp_path / "cut.pcap").write_bytes((days / "test.pcap").read_bytes()[:20_000])
    with pytest.warns(CaptureWarning, match=r"the \d+ records before it are kept"):
        assert counters_of(watch(tmp_path / "cut.pcap"))["packets"] > 100


def test_no_capture_is_refused(watch, tmp_path):
    (tmp_path / "text").write_text("hello")
    with pytest.raises(CaptureError, match="not a capture"):
        watch(tmp_path / "text")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nosuch"], "is no file, pipe or folder, and no interface: there are .*lo"),
        (["train.pcap", "--filter", "tcp"], "--filter is for an interface"),
        (["train.pcap", "--state", "x"], "--state is for a folder"),
    ],
)
def test_what_makes_no_sense_is_refused(watch, days, monkeypatch, arguments, reason):
    monkeypatch.chdir(days)
    with pytest.raises((OSError, ValueError), match=reason):
        watch(*arguments)


def test_a_clock_that_was_set_back_loses_nothing(watch, tmp_path):
    packets = [udp(sport=1000 + i, payload=b"hello") for i in range(60)]
    times = [10_000.0 + i for i in range(30)] + [5_000.0 + i for i in range(30)]
    (tmp_path / "back.pcap").write_bytes(pcap(packets, times=times))
    counters = counters_of(watch(tmp_path / "back.pcap"))
    assert (counters["packets"], counters["flows_scored"]) == (60, 60)


def test_a_reader_that_goes_ends_the_watch(watch, days, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    stream = open(writer, "w")  # noqa: SIM115 - its flush fails at the end, too
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(BrokenPipeError):
        watch(days / "test.pcap", output="-")
    with contextlib.suppress(BrokenPipeError):
        stream.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_named_and_counters_are_said(watch, days, tmp_path, capsys):
    (tmp_path / "full.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        watch(days / "test.pcap", output=tmp_path / "full.json")
    assert error.value.filename.endswith("full.json")
    assert "packets" in capsys.readouterr().err.splitlines()[-1]


def test_the_model_may_judge_before_a_flow_has_ended(watch, tmp_path):
    # Eight packets without payload complete a row; the connection itself goes on.
    packets = [tcp(flags="A", sport=5000) for _ in range(20)]
    (tmp_path / "long.pcap").write_bytes(pcap(packets, times=[1000 + 0.1 * i for i in range(20)]))
    (tmp_path / "alarms.json").touch()
    os.mkfifo(tmp_path / "fifo")

    def write():
        with open(tmp_path / "fifo", "wb") as file:
            file.write((tmp_path / "long.pcap").read_bytes())
            file.flush()
            while not counters_of(lines_of(tmp_path / "alarms.json")).get("flows_scored"):
                time.sleep(0.02)

    threading.Thread(target=write, daemon=True).start()
    counters = counters_of(watch(tmp_path / "fifo", "--verdict", "early", "--stats", "0.1"))
    assert (counters["flows_begun"], counters["flows_scored"], counters["flows_open"]) == (1, 1, 0)


def test_a_folder_is_read_once_in_the_order_of_time(watch, days, tmp_path):
    spool = tmp_path / "spool"
    spool.mkdir()
    paths = cut(days / "test.pcap", spool, 12)
    before = sorted(os.listdir(spool))
    n_packets = len(next(records_of(days / "test.pcap")))
    lines = watch(spool, "--settle", "0.2", "--stats", "0.1", until=lambda counters: counters["files"] == 12)
    counters = counters_of(lines)
    assert (counters["packets"], counters["files_lost"], counters["files_damaged"]) == (n_packets, 0, 0)
    assert sorted(os.listdir(spool)) == before  # a read-only folder would do
    first = counters["flows_scored"]
    again = watch(spool, "--settle", "0.2", "--stats", "0.1", until=lambda counters: counters["flows_resumed"] > 0)
    counters = counters_of(again)
    assert counters["packets"] == 0
    assert first + counters["flows_open"] == len(SAMPLER.flows(paths))
    assert stat.S_IMODE(os.stat(f"{spool}.docids-state").st_mode) == 0o600


def test_what_is_no_capture_is_said_and_the_rest_is_read(watch, days, tmp_path, capsys):
    spool = tmp_path / "spool"
    spool.mkdir()
    first, second = cut(days / "test.pcap", spool, 2)
    n_whole = len(next(records_of(days / "test.pcap")))
    (spool / "note.txt").write_text("hello")
    (spool / ".hidden.pcap").write_bytes(first.read_bytes())
    first.write_bytes(first.read_bytes()[:-7])
    strange = spool / "a\n\x1b[31m.pcap"
    second.rename(strange)
    os.utime(strange)
    lines = watch(spool, "--settle", "0.2", "--stats", "0.1", until=lambda counters: counters["files"] == 3)
    counters = counters_of(lines)
    assert (counters["packets"], counters["files_damaged"]) == (n_whole - 1, 2)
    err = capsys.readouterr().err
    assert "note.txt: not a capture" in err
    assert "part1.pcap: byte" in err
    assert "\x1b" not in err


def folder_source(path, signals, settle=0.0):
    return FolderSource(str(path), signals, settle=settle, note=lambda text: None)


def read_now(source, n_idle=1):
    """Return the names of files and the number of records that a source yields until it has nothing."""
    names, n_records = [], 0
    for event in source.events():
        if isinstance(event, File):
            names.append(event.name)
        elif isinstance(event, Block):
            n_records += len(event.records)
        elif source.between_files and not source._next():
            n_idle -= 1
            if not n_idle:
                return names, n_records


def test_the_file_that_is_written_to_is_left_until_it_settles(days, tmp_path):
    paths = cut(days / "test.pcap", tmp_path, 3)
    with Signals() as signals:
        source = folder_source(tmp_path, signals, settle=0.3)
        assert read_now(source)[0] == ["part1.pcap", "part2.pcap"]
        os.utime(paths[2])
        assert source._next() is None
        time.sleep(0.35)
        assert source._next() == "part3.pcap"


def test_a_file_that_grows_is_read_on_and_one_that_is_replaced_is_read_anew(tmp_path):
    path = tmp_path / "a.pcap"
    packets = [udp(sport=1000 + i) for i in range(10)]
    with Signals() as signals:
        source = folder_source(tmp_path, signals)
        path.write_bytes(pcap(packets[:4]))
        assert read_now(source) == (["a.pcap"], 4)
        path.write_bytes(pcap(packets))
        assert read_now(source) == (["a.pcap"], 6)
        path.write_bytes(pcap(packets, times=range(500, 510)))
        assert read_now(source) == (["a.pcap"], 10)


def test_a_file_that_is_removed_too_early_is_counted(tmp_path):
    with Signals() as signals:
        source = folder_source(tmp_path, signals, settle=60)
        (tmp_path / "a.pcap").write_bytes(pcap([udp()]))
        assert source._next() is None
        (tmp_path / "a.pcap").unlink()
        assert source._next() is None
        assert source.drops()["files_lost"] == 1


def test_numbers_in_names_count_as_numbers():
    assert sorted(["x10", "x9", "x", "x1"], key=natural) == ["x", "x1", "x9", "x10"]


class Killed(BaseException):
    """Ends a watcher as kill -9 would: nothing more is written."""


class Recorder(AlarmDesk):
    """Notes each judged flow; is killed at one of its calls."""

    def __init__(self, killed_at=None):
        self.flows = []
        self._n_left = killed_at

    def _call(self):
        if self._n_left is not None:
            self._n_left -= 1
            if self._n_left < 0:
                raise Killed

    def add_packets(self, data, records):
        self._call()

    def take(self, scored):
        self._call()
        records, scores = scored.flows.rows.records, scored.scores.round(9).tolist()
        self.flows += [(*record.item()[1:], score) for record, score in zip(records, scores, strict=True)]

    def counters(self):
        return {}

    def write_stats(self, counters, time_ns):
        pass

    def sync(self):
        self._call()

    drift = ""


def watched(spool, model, state, killed_at=None):
    """Watch a folder until all is read, or until it is killed; return the judged flows."""
    recorder = Recorder(killed_at)
    with Signals() as signals:
        source = folder_source(spool, signals)

        def note_end(text):
            pass

        class Ending(FolderSource):
            def _next(self):
                name = super()._next()
                if name is None and not self._waiting:
                    signals.stop = True
                return name

        source.__class__ = Ending
        plan = Plan(state=str(state), state_every=0.0, stats_every=3600)
        detector = load_detector(model)
        detector.sampler_.set_params(verbose=0)
        watcher = Watcher(
            source, Judge(detector), recorder, signals, plan, note=note_end, reload=lambda judge: judge
        )  # fmt: skip
        with contextlib.suppress(Killed):
            watcher.run()
            return recorder.flows, watcher.counters()
    return recorder.flows, None


def test_kills_at_any_moment_lose_no_flow_and_cut_none(days, model, tmp_path):
    spool = tmp_path / "spool"
    spool.mkdir()
    cut(days / "test.pcap", spool, 6)
    plain, counters = watched(spool, model, tmp_path / "plain")
    assert counters["flows_open"] > 0
    found, n_kills = [], 0
    for killed_at in (0, 1, 2, 3, 4, 3, None):
        flows, at_end = watched(spool, model, tmp_path / "killed", killed_at)
        found += flows
        n_kills += at_end is None
    assert n_kills >= 4
    # Facts and score: what the model remembers has survived as well.
    assert set(found) == set(plain)
    assert at_end["flows_open"] == counters["flows_open"]


@pytest.mark.parametrize("early", [False, True])
def test_an_assembler_goes_on_from_a_snapshot_as_if_nothing_had_been(days, tmp_path, early):
    rules = SAMPLER._rules(emit_early=early)
    whole = LiveAssembler(rules)
    feed(whole, days / "test.pcap")
    for place in (0, 1, 50, 333, 700):
        before, after = LiveAssembler(rules), LiveAssembler(rules)
        feed(before, days / "test.pcap", 0, place)
        write_state(str(tmp_path / "state"), {}, before.snapshot().arrays())
        _, arrays = read_state(str(tmp_path / "state"), after.snapshot().arrays())
        after.restore(Snapshot.of(arrays, rules))
        assert after.n_open + sum(map(len, after.done)) == before.n_open
        feed(after, days / "test.pcap", place)
        after.done[:0] = before.done
        assert ended(after) == ended(LiveAssembler_of(rules, days / "test.pcap"))


def LiveAssembler_of(rules, path):
    assembler = LiveAssembler(rules)
    feed(assembler, path)
    return assembler


def test_a_damaged_state_is_refused(tmp_path):
    path = tmp_path / "state"
    like = LiveAssembler(RULES).snapshot().arrays()
    write_state(str(path), {"files": {}}, like)
    assert read_state(str(path), like)[0]["files"] == {}
    good = path.read_bytes()
    for bad in (b"", b"{}\n", good[:-1], good.replace(b"files", b"fi\xffes"), good[:-1] + bytes([good[-1] ^ 1])):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"no state of docids watch, or damaged.*remove it"):
            read_state(str(path), like)


def test_arrays_that_compiled_code_could_not_bear_are_refused():
    assembler = LiveAssembler(RULES)
    for name, value in {"entries": np.ones(3, np.int64), "given_out": np.zeros(1, bool), "keys": np.zeros(0)}.items():
        arrays = {**assembler.snapshot().arrays(), name: value.astype(assembler.snapshot().arrays()[name].dtype)}
        with pytest.raises(ValueError, match="fit together"):
            Snapshot.of(arrays, RULES)


def test_a_state_has_one_user(tmp_path):
    lock = StateLock(str(tmp_path / "state"))
    with pytest.raises(FileExistsError, match="another docids watch uses the state"):
        StateLock(str(tmp_path / "state"))
    lock.close()
    StateLock(str(tmp_path / "state")).close()


def test_the_state_of_another_folder_is_refused(watch, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.pcap").write_bytes(pcap([udp()]))
    options = ("--state", str(tmp_path / "state"), "--settle", "0.1", "--stats", "0.1")
    watch(tmp_path / "a", *options, until=lambda counters: counters["files"] == 1)
    with pytest.raises(ValueError, match=r"is that of the folder .*/a, not of .*/b"):
        watch(tmp_path / "b", *options)


def connection(port=5000, closed=True, first=1000.0):
    """Return packets of a connection, and their times."""
    there, back = {"sport": port, "dport": 80}, {"sport": 80, "dport": port, "src": "10.0.0.2", "dst": "10.0.0.1"}
    packets = [tcp(flags="S", **there), tcp(flags="SA", **back), tcp(flags="PA", payload=b"GET /", **there)]
    packets += [tcp(flags="FA", **back), tcp(flags="FA", **there), tcp(flags="A", **back)] if closed else []
    return packets, [first + 0.01 * i for i in range(len(packets))]


def passed(assembler, packets, times):
    """Give an assembler packets, and let it look for flows that have ended."""
    for data, records in Capture(io.BytesIO(pcap(packets, times=times)), "x").blocks():
        assembler.add(data, records)
    assembler.flush_ended()
    return sum(map(len, assembler.done))


def test_a_closed_connection_comes_out_after_a_moment_of_silence():
    assembler = LiveAssembler(RULES)
    packets, times = connection()
    assert passed(assembler, packets, times) == 0
    assert passed(assembler, [udp()], [times[-1] + 0.2]) == 0
    assert passed(assembler, [udp()], [times[-1] + 0.4]) == 1
    (flow,) = assembler.done[0].records
    assert (flow["end"], flow["packets_forward"], flow["packets_backward"]) == (1, 3, 3)
    assert decided_at(assembler.done[0].records, RULES).tolist() == [round(times[-1] * 1e9)]
    assert assembler.n_open == 1


def test_an_idle_flow_comes_out_when_it_has_idled_out_and_not_an_eighth_of_the_timeout_later():
    assembler = LiveAssembler(RULES)
    assert passed(assembler, [udp(sport=1)], [1000.0]) == 0
    assert passed(assembler, [udp(sport=2)], [1119.9]) == 0
    assert passed(assembler, [udp(sport=2)], [1120.1]) == 1
    assert decided_at(assembler.done[0].records, RULES).tolist() == [1120 * 10**9]


def test_without_a_timeout_no_flow_idles_out():
    assembler = LiveAssembler(FlowSampler(idle_timeout=None)._rules())
    assert passed(assembler, [udp(sport=1), udp(sport=2)], [1000.0, 10.0**9]) == 0
    assert assembler.n_open == 2


def test_nothing_hides_behind_a_forged_end():
    assembler = LiveAssembler(RULES)
    packets, times = connection(closed=False)
    passed(assembler, [*packets, tcp(flags="R", sport=5000)], [*times, 1000.1])
    assert passed(assembler, [udp()], [1001.0]) == 1
    attack = tcp(flags="PA", sport=5000, payload=b"attack")
    assert passed(assembler, [attack, udp()], [1002.0, 1003.0]) == 2
    assert b"attack" not in assembler.done[0].X.tobytes()
    assert b"attack" in assembler.done[1].X.tobytes()
    assert passed(assembler, [udp()], [1004.0]) == 2


def test_the_idle_flows_of_a_quiet_link_come_out_by_the_clock_of_the_machine(watch, model, days, tmp_path):
    # Closed connections of now: the stream goes on, but nothing comes.
    os.mkfifo(tmp_path / "fifo")

    def write():
        with open(tmp_path / "fifo", "wb") as file:
            file.write(pcap(*[connection(first=time.time())[0]], times=connection(first=time.time())[1]))
            file.flush()
            while not counters_of(lines_of(tmp_path / "alarms.json")).get("flows_scored"):
                time.sleep(0.02)

    threading.Thread(target=write, daemon=True).start()
    lines = watch(tmp_path / "fifo", "--stats", "0.1")
    assert counters_of(lines)["flows_scored"] == 1
    stats = [line["metadata"]["flowints"] for line in lines if line["event_type"] == "stats"]
    delays = [each["delay_p99_ms"] for each in stats if "delay_p99_ms" in each]
    assert len(delays) == 1
    assert delays[0] > 300


def test_delays_are_counted_exactly_to_ten_milliseconds():
    delays = Delays()
    assert delays.taken() == {}
    delays.add(np.array([5, 15, 25] * 33 + [4000]) * 10**6)
    assert delays.taken() == {"delay_p50_ms": 20, "delay_p99_ms": 30}
    delays.add(np.array([-5, 10**12]) * 10**6)
    assert delays.taken() == {"delay_p50_ms": 10, "delay_p99_ms": 60_010}


def signalled(tmp_path, data, steps):
    """Write data to a FIFO, and take steps one after the other, each when lines have come; then end it."""
    os.mkfifo(tmp_path / "fifo")

    def write():
        with open(tmp_path / "fifo", "wb") as file:
            file.write(data)
            file.flush()
            for step in steps:
                n_lines = len(lines_of(tmp_path / "alarms.json"))
                step()
                deadline = time.monotonic() + 10
                while len(lines_of(tmp_path / "alarms.json")) <= n_lines and time.monotonic() < deadline:
                    time.sleep(0.02)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    return thread


def test_sigusr1_asks_for_counters_at_once(watch, days, tmp_path, capsys):
    ask = lambda: os.kill(os.getpid(), signal.SIGUSR1)  # noqa: E731
    thread = signalled(tmp_path, (days / "test.pcap").read_bytes(), [ask, ask])
    lines = watch(tmp_path / "fifo", "--stats", "3600")
    thread.join()
    assert len([line for line in lines if line["event_type"] == "stats"]) == 3
    assert capsys.readouterr().err.count(" packets") == 3


def test_sighup_opens_the_output_anew_and_keeps_a_model_where_the_new_one_is_none(
    watch, model, days, tmp_path, capsys, monkeypatch
):
    allow = tmp_path / "allow.toml"
    allow.write_text("")
    old = model.read_bytes()

    def damage():
        (tmp_path / "alarms.json").rename(tmp_path / "alarms.1.json")
        model.write_bytes(old[:100])
        allow.write_text("rule = 3")
        os.kill(os.getpid(), signal.SIGHUP)

    thread = signalled(tmp_path, (days / "test.pcap").read_bytes(), [lambda: None, damage])
    try:
        lines = watch(tmp_path / "fifo", "--stats", "0.2", "--allow-list", str(allow))
    finally:
        thread.join()
        model.write_bytes(old)
    assert counters_of(lines)["flows_scored"] == len(SAMPLER.flows(days / "test.pcap"))
    assert lines_of(tmp_path / "alarms.1.json")
    err = capsys.readouterr().err
    assert "the model stays as it was" in err
    assert "the allow-list stays as it was" in err


def test_hidden_flows_are_counted(watch, days, tmp_path):
    (tmp_path / "allow.toml").write_text('[[rule]]\nsource = "10.0.0.1"\nwhy = "a test of passwords"\n')
    lines = watch(days / "test.pcap", "--allow-list", str(tmp_path / "allow.toml"))
    counters = counters_of(lines)
    assert counters["flagged"] >= counters["hidden"] >= 40
    assert "10.0.0.1" not in {line["src_ip"] for line in alerts_of(lines)}


def test_the_packets_of_an_alarm_are_written(watch, days, tmp_path):
    lines = watch(days / "test.pcap", "--write-pcap", str(tmp_path / "alarms.pcapng"))
    flows = SAMPLER.flows(tmp_path / "alarms.pcapng")
    assert set(flows.community_id) == {line["community_id"] for line in alerts_of(lines)}


RUN = """
import argparse, sys
from sklearn_docids.cli import _watch
parser = argparse.ArgumentParser()
_watch.add_options(parser)
args = parser.parse_args(sys.argv[1:])
args.quiet = False
_watch.run(args)
"""


def test_a_process_that_was_killed_before_it_wrote_a_state_reads_all_again(model, days, tmp_path):
    spool = tmp_path / "spool"
    spool.mkdir()
    command = [sys.executable, "-c", RUN, str(spool), "--model", str(model), "--settle", "0.1", "--stats", "0.1"]
    paths = cut(days / "test.pcap", tmp_path, 2)
    for number, path in enumerate(paths, 1):
        shutil.copy(path, spool)
        output = tmp_path / f"{number}.json"
        with subprocess.Popen([*command, "-o", str(output)], stderr=subprocess.DEVNULL) as process:
            while counters_of(lines_of(output)).get("files") != number and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL if number == 1 else signal.SIGTERM)
    assert process.returncode == 0
    counters = counters_of(lines_of(output))
    assert counters["flows_resumed"] == 0
    assert counters["flows_scored"] + counters["flows_open"] == len(SAMPLER.flows(paths))


HELPER = """#!/bin/sh
# Stands for tcpdump: {what}
trap 'echo "5 packets captured, 7 packets received by filter, 2 packets dropped by kernel" >&2' USR1
trap 'exit 0' TERM
{body}
"""


@pytest.fixture
def tcpdump(tmp_path, monkeypatch):
    """Return a function that puts a program of this name in front of all others."""

    def made(body, what="it"):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        (folder / "tcpdump").write_text(HELPER.format(what=what, body=body))
        (folder / "tcpdump").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    return made


def test_without_the_right_to_capture_it_says_what_to_do(watch, tcpdump, monkeypatch, tmp_path):
    tcpdump('echo "tcpdump: lo: You do not have permission to perform this capture on that device" >&2; exit 1')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(PermissionError, match=r"nothing can be captured on lo: tcpdump: lo: .*setcap cap_net_raw"):
        watch("lo")


def test_an_interface_that_goes_is_an_error_behind_all_that_came(watch, tcpdump, days, tmp_path):
    tcpdump(f'cat "{days}/test.pcap"; echo "tcpdump: pcap_loop: The interface disappeared" >&2; exit 1')
    with pytest.raises(OSError, match=r"nothing more can be captured on lo: tcpdump: .*The interface disappeared"):
        watch("lo")
    assert counters_of(lines_of(tmp_path / "alarms.json"))["flows_scored"] == len(SAMPLER.flows(days / "test.pcap"))


def test_what_the_kernel_has_dropped_is_counted(watch, tcpdump, days):
    tcpdump(f'cat "{days}/test.pcap"; while :; do sleep 0.05; done')
    lines = watch("lo", "--stats", "0.2", until=lambda counters: counters.get("kernel_drops") == 2)
    assert counters_of(lines)["kernel_drops"] == 2
    assert {line["in_iface"] for line in alerts_of(lines)} == {"lo"}


def test_helpers_take_no_filter_for_an_option():
    assert command_of("/usr/bin/tcpdump", "eth0", "-z sh", 96)[-4:] == ["-s", "96", "--", "-z sh"]
    assert command_of("/usr/bin/dumpcap", "eth0", "-z sh", None)[-2:] == ["-f", "-z sh"]


@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="no tcpdump")
def test_a_filter_that_cannot_be_compiled_is_refused():
    check_filter("tcp port 80")
    with pytest.raises(ValueError, match=r"--filter 'tcp foo': .*syntax error"):
        check_filter("tcp foo")


def may_capture():
    if shutil.which("tcpdump") is None:
        return False
    try:
        started("lo", "udp port 1", None).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not may_capture(), reason="no tcpdump, or no right to capture")
def test_an_interface_is_captured_on(watch, tmp_path):
    def send():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, socket.socket(*udp_socket) as receiver:
            receiver.bind(("127.0.0.1", 0))
            port.append(receiver.getsockname()[1])
            bound.set()
            while not counters_of(lines_of(tmp_path / "alarms.json")):
                time.sleep(0.02)
            for _ in range(50):
                sender.sendto(b"hello", receiver.getsockname())

    udp_socket, port, bound = (socket.AF_INET, socket.SOCK_DGRAM), [], threading.Event()
    threading.Thread(target=send, daemon=True).start()
    bound.wait()
    options = ("--filter", f"udp port {port[0]}", "--stats", "0.1")
    counters = counters_of(watch("lo", *options, until=lambda counters: counters["packets"] >= 50))
    assert (counters["packets"], counters["flows_scored"], counters["kernel_drops"]) == (50, 1, 0)
