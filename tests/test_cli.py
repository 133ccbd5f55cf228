"""The command line: sample, fit, score, demo, and messages for unusable input."""

import csv
import gzip
import io
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from captures import pcap, tcp, udp
from office import burst, capture_of, office
from scapy.layers.inet import ICMP, IP
from sklearn.pipeline import Pipeline

from sklearn_docids import AutoencoderDetector, FlowSampler, load_detector, save_detector
from sklearn_docids.aggregation import FlowAggregator
from sklearn_docids.capture import FlowTable
from sklearn_docids.cli import _commands, _scoring, main
from sklearn_docids.cli._text import MAX_REASON, format_groups, format_p_value, in_options, main_reason
from sklearn_docids.datasets import make_traffic
from sklearn_docids.datasets._testbed import REFERENCE
from sklearn_docids.detectors import ViewReason
from sklearn_docids.detectors._multiview import VIEWS


@pytest.fixture(scope="module")
def traffic(tmp_path_factory):
    return make_traffic(tmp_path_factory.mktemp("traffic"), n_flows=30, n_reference=4, n_attacks=2, random_state=0)


@pytest.fixture(scope="module")
def model(traffic, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    reference = str(traffic.reference[0].parent)
    arguments = ["fit", str(traffic.train), "--reference", reference, "--model", str(path), "--max-epochs", "2"]
    assert main([*arguments, "--views", "bytes", "--fields", "portable", "--false-alarm-rate", "0.2"]) == 0
    return path


@pytest.fixture(scope="module")
def captures(tmp_path_factory):
    """Return captures of an office, of another day of it with a burst of guesses, and of the burst alone."""
    folder = tmp_path_factory.mktemp("office")
    strange = ([udp(9, 8443, b"=\x1b[31m", src="10.0.0.2", dst="10.0.9.9")], [1300.0])
    days = {"train": office(150, 0), "test": [*office(80, 1, 400), *burst(40, 1200.0), strange]}
    for name, dialogues in {**days, "burst": burst(40, 1200.0)}.items():
        (folder / f"{name}.pcap").write_bytes(capture_of(dialogues))
    return {path.stem: str(path) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def views_model(captures, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "views"
    arguments = ["fit", captures["train"], "--views", "requests,novelty,content", "--model", str(path)]
    assert main([*arguments, "--seed", "3"]) == 0
    return path


@pytest.fixture(scope="module")
def network_model(captures, traffic, tmp_path_factory):
    """Return a model with a view of bytes."""
    folder = tmp_path_factory.mktemp("model")
    arguments = ["fit", captures["train"], "--reference", str(traffic.reference[0].parent), "--max-epochs", "1"]
    arguments += ["--views", "novelty,bytes", "--checkpoint-folder", str(folder), "--false-alarm-rate", "0.05"]
    assert main([*arguments, "--model", str(folder / "model")]) == 0
    return folder / "model"


def table_of(path):
    """Return the rows of a table of scores, as dictionaries."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def ignored(n):
    """Return packets of which none makes a flow."""
    return [IP(src="10.0.0.1", dst="10.0.0.2") / ICMP()] * n


def test_sample_writes_the_array(traffic, tmp_path, capsys):
    assert main(["sample", str(traffic.train), "-o", str(tmp_path / "X.npy")]) == 0
    assert (np.load(tmp_path / "X.npy") == FlowSampler().transform(traffic.train)).all()
    assert "30 flows written to" in capsys.readouterr().out


def test_sample_reads_standard_input_and_takes_its_options(traffic, tmp_path):
    packets = Path(traffic.train).read_bytes()
    command = [sys.executable, "-m", "sklearn_docids", "sample", "-", "-o", str(tmp_path / "out"), "--jobs", "2"]
    result = subprocess.run(
        [*command, "--tunnels", "innermost", "--duplicate-window", "3"],
        input=gzip.compress(packets),
        capture_output=True,
    )
    assert (result.returncode, result.stderr) == (0, b"")
    expected = FlowSampler(tunnels="innermost", duplicate_window=3).flows(traffic.train)
    assert (FlowTable.load(tmp_path / "out").X == expected.X).all()


def test_fit_stores_the_sampler_it_used(model):
    detector = load_detector(model)
    assert detector.sampler_.fields == "portable"
    assert (detector.n_iter_, detector.false_alarm_rate) == (2, 0.2)
    assert detector.reference_classes_[:3].tolist() == ["dns", "ftp", "http"]


def test_fit_trains_the_views_that_are_named_on_rows_of_payload(views_model, network_model):
    detector, with_bytes = load_detector(views_model), load_detector(network_model)
    assert detector.view_names_ == ["requests", "novelty", "content"]
    assert (detector.sampler_.layout, detector.false_alarm_rate, detector.random_state) == ("payload", 0.01, 3)
    assert len(detector.calibration_scores_) == 150
    assert (with_bytes.view_names_, with_bytes.false_alarm_rate) == (["novelty", "bytes"], 0.05)
    assert with_bytes.detector_.n_iter_ == 1
    assert _commands.VIEWS == VIEWS


def test_fit_says_what_was_learned_and_how_the_threshold_was_set(captures, tmp_path, capsys):
    model = str(tmp_path / "m")
    assert main(["fit", captures["train"], "--views", "novelty", "--model", model]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"150 flows learned, by novelty; model written to {model}",
        "The threshold is that of 1 % false alarms; 150 flows have set it.",
    ]


def test_fit_without_a_reference_takes_the_bundled_one_and_says_so(captures, tmp_path, capsys):
    fit = ["fit", captures["train"], "--views", "bytes", "--max-epochs", "1", "--model", str(tmp_path / "m")]
    assert main([*fit, "--false-alarm-rate", "0.1"]) == 0
    out = capsys.readouterr().out
    assert "no --reference: the bundled one is used, 5900 flows of 22 services" in out
    assert "120 flows learned, by bytes;" in out
    assert "that of 10 % false alarms; 30 flows have set it" in out
    services = sorted(path.name.split(".")[0] for path in REFERENCE.iterdir())
    assert load_detector(tmp_path / "m").reference_classes_.tolist() == services


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--views novelty --max-epochs 3", "--max-epochs is for the network of bytes, a view that --views leaves out"),
        ("--views novelty --checkpoint-folder .", "--checkpoint-folder is for the network of bytes"),
        ("--views novelty --reference .", "--reference is what bytes are compared with"),
        ("--score-method knn", "--score-method is for bytes as the only view: --views bytes"),
        ("--false-alarm-rate 0.9", "--false-alarm-rate must be a float in the range (0.0, 0.5]"),
        ("--views bytes --max-epochs 0", "--max-epochs must be"),
        ("--views novelty --false-alarm-rate 0.001", "give more traffic, or --false-alarm-rate 0.007"),
        ("--views bytes --false-alarm-rate 0.01", "takes at least 99 flows that set it, but of 150 flows 30 do"),
    ],
)
def test_options_that_make_no_sense_together_are_refused(captures, tmp_path, capsys, options, message):
    assert main(["fit", captures["train"], "--model", str(tmp_path / "m"), *options.split()]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("views", ["", "bytes,", "bytes,bytes", "bytes,payload"])
def test_views_that_are_none_are_named(captures, views, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", captures["train"], "--model", "m", "--views", views])
    assert stopped.value.code == 2
    assert "is no list of different views, of bytes,statistics,requests,novelty,content" in capsys.readouterr().err


def test_errors_name_options_and_not_parameters_but_leave_names_alone():
    assert in_options("false_alarm_rate=0.01 needs 99 rows") == "--false-alarm-rate 0.01 needs 99 rows"
    assert in_options("The 'window' parameter of FlowAggregator must be") == "--window must be"
    assert in_options("give n_jobs=None, or random_state=3") == "give --jobs None, or --seed 3"
    for name in ("'window=5.pcap'", "window=5.pcap: no capture", "a/window=5", "my_window=5"):
        assert in_options(name) == name


def test_score_says_why_a_flow_is_flagged(captures, views_model, tmp_path, capsys):
    output = tmp_path / "scores.csv"
    assert main(["score", captures["test"], "--model", str(views_model), "--output", str(output)]) == 0
    rows = table_of(output)
    detector = load_detector(views_model)
    flows = detector.sampler_.flows(captures["test"])
    judged = detector.stream().judge(flows)
    by_port = dict(zip(flows.src_port.tolist(), range(len(flows)), strict=True))
    for row in rows:
        place = by_port[int(row["src_port"])]
        assert float(row["score"]) == judged.scores[place]
        flagged = judged.scores[place] < detector.offset_
        assert row["verdict"] == ("abnormal" if flagged else "normal")
        assert row["reason"] == (main_reason(judged.reasons(place)) if flagged else "")
    reasons = {int(row["src_port"]): row["reason"] for row in rows}
    assert re.match("content: .* flows like this from 10.0.0.1 in 10 s; normal are at most", reasons[30_039])
    assert reasons[9] == "novelty: udp/8443 was never a destination here"
    out = capsys.readouterr().out
    for level in ("channel", "host"):
        aggregator = FlowAggregator(level, combine="most_abnormal", false_alarm_rate=None).fit(flows, judged.scores)
        groups = aggregator.aggregate(flows, judged.scores)
        listed = out.split(f"of {len(groups)} {level}s")[1].split("\n\n")[0].splitlines()[1:]
        assert [line.split()[0] for line in listed] == [f"{group.score:.3f}" for group in groups[:10]]


def test_flows_scored_in_pieces_are_one_stream(captures, views_model, monkeypatch, capsys):
    monkeypatch.setattr(_scoring, "CHUNK_FLOWS", 30)
    both = [captures["train"], captures["test"]]
    printed = []
    for _ in range(2):
        assert main(["score", *both, "--model", str(views_model)]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    detector = load_detector(views_model)
    stream = detector.stream()
    pieces = list(_scoring.FlowStream(detector.sampler_, both))
    assert len(pieces) > 2
    expected = np.concatenate([stream.score_samples(flows) for flows in pieces])
    rows = list(csv.DictReader(io.StringIO(printed[0])))
    assert [float(row["score"]) for row in rows] == expected.tolist()


def test_reasons_are_short_and_cannot_steer_a_terminal_or_a_spreadsheet(write, views_model, capsys):
    message = b"\x1b]0;=1+1\x07\r\n\xff" * 4
    capture = write(capture_of([([udp(9, 53, message, src="10.0.0.1", dst="10.0.1.1")], [1300.0])]))
    for command in ("score", "explain"):
        assert main([command, str(capture), "--model", str(views_model)]) == 0
        out = capsys.readouterr().out
        assert r"requests: the request begins '\x1b]0;'=1+1\x07" in out or command == "explain"
        assert all(char.isprintable() or char == "\n" for char in out)
    long = main_reason([ViewReason("v", 0.01, "x" * 1000)])
    assert (len(long), long[:5], long[-4:]) == (MAX_REASON, "v: xx", "x...")
    assert main_reason([]) == "several views: a little unusual in each, very unusual in none"


def test_explain_says_what_each_view_finds_and_which_bytes(captures, views_model, network_model, capsys):
    detector = load_detector(views_model)
    flows = detector.sampler_.flows(captures["test"])
    most = int(np.argmin(detector.score_samples(flows)))
    assert main(["explain", captures["test"], "--model", str(views_model), "--flows", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{flows.src_ip[most]}:{flows.src_port[most]} ->" in lines[0]
    reasons = detector.explain(flows)[most]
    assert len(reasons) > 1
    for line, reason in zip(lines[2:], reasons, strict=False):
        assert line.split() == [reason.view, format_p_value(reason.p_value), *reason.text.split()]
    assert lines[2 + len(reasons) :][0] == ""
    assert main(["explain", captures["test"], "--model", str(network_model), "--flows", "2", "--bytes", "3"]) == 0
    out = capsys.readouterr().out
    assert (out.count("what is unusual"), out.count("header field")) == (2, 2)
    assert "payload length" in out
    assert (format_p_value(0.0123), format_p_value(0.0)) == ("0.012", "<1e-06")


def test_evaluate_scores_attacks_among_the_normal_flows_and_says_so(captures, views_model, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "burst.pcap").write_bytes(Path(captures["burst"]).read_bytes())
    command = ["evaluate", "--model", str(views_model), "--normal", captures["train"]]
    command += ["--attacks", str(tmp_path / "attacks"), "--train", captures["train"]]
    page, table = tmp_path / "page.html", tmp_path / "e.csv"
    assert main([*command, "--calibration", captures["test"], "--output", str(page), "--csv", str(table)]) == 0
    assert _commands.CONTEXT in capsys.readouterr().out
    text = page.read_text()
    assert _commands.CONTEXT in text
    assert "<td>content</td>" in text
    assert "header field" not in text  # no view of bytes
    rows = table_of(table)
    assert {row["level"] for row in rows} == {"flow", "channel", "host"}
    assert {row["detector"] for row in rows} > {"model", "IsolationForest"}
    (of_model,) = [r for r in rows if (r["detector"], r["level"], r["attack"]) == ("model", "flow", "burst")]
    assert (of_model["n_attack"], of_model["n_normal"]) == ("40", "150")
    assert float(of_model["tpr"]) > 0.8


def test_score_writes_a_row_per_flow(traffic, model, tmp_path, capsys):
    assert main(["score", str(traffic.test), "--model", str(model), "--output", str(tmp_path / "scores.csv")]) == 0
    rows = table_of(tmp_path / "scores.csv")
    detector = load_detector(model)
    flows = detector.sampler_.flows(traffic.test)
    scores = detector.score_samples(flows.X)
    assert [float(row["score"]) for row in rows] == scores.tolist()
    assert [row["verdict"] for row in rows] == np.where(detector.predict(flows.X) == 1, "normal", "abnormal").tolist()
    assert [row["src_ip"] for row in rows] == flows.src_ip.tolist()
    assert {row["protocol"] for row in rows} == {"tcp", "udp"}
    assert rows[0]["capture"] == str(traffic.test)
    assert all(row["time_first"] <= row["time_last"] and row["time_first"].startswith("2025-10-09T") for row in rows)
    out = capsys.readouterr().out
    assert f"40 flows, {np.sum(detector.predict(flows.X) == -1)} abnormal" in out
    ranked = out.split("most abnormal flows:\n")[1].split("\n\n")[0].splitlines()
    assert [float(line.split()[0]) for line in ranked] == pytest.approx(np.sort(scores)[:10], rel=1e-4)


def test_score_without_output_prints_the_table_alone(traffic, model, capsys):
    assert main(["score", str(traffic.test), "--model", str(model)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 41
    assert lines[0].split(",")[-2:] == ["score", "verdict"]


def test_a_capture_without_flows_gives_a_table_without_rows(model, write, capsys):
    assert main(["score", str(write(pcap([]))), "--model", str(model)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_flows_scored_as_they_end_have_the_scores_and_groups_of_the_whole(model, tmp_path, capsys, monkeypatch):
    # A flow of three hours, which is the first to begin and the last to end, among flows of one packet, in two files.
    long = [(t, udp(sport=1)) for t in range(0, 10_800, 100)]
    short = [(t + 0.5, udp(sport=2 + i, dst=f"10.0.1.{i % 5}")) for i, t in enumerate(range(0, 10_800, 77))]
    captures = [str(tmp_path / name) for name in ("a.pcap", "b.pcap")]
    for name, packets in zip(captures, (long + short, short[::2]), strict=True):
        times, packets = zip(*sorted(packets, key=lambda packet: packet[0]), strict=True)
        Path(name).write_bytes(pcap(packets, times=times))
    monkeypatch.setattr(_scoring, "CHUNK_FLOWS", 7)
    assert main(["score", *captures, "--model", str(model), "--output", str(tmp_path / "scores.csv")]) == 0
    detector = load_detector(model)
    flows = detector.sampler_.flows(captures)
    scores = detector.score_samples(flows.X)
    rows = table_of(tmp_path / "scores.csv")
    assert [row["src_port"] for row in rows].index("1") > 130  # it ended after those that had idled out
    by_flow = {(row["capture"], int(row["src_port"])): (float(row["score"]), row["verdict"]) for row in rows}
    verdicts = np.where(detector.predict(flows.X) == 1, "normal", "abnormal").tolist()
    names = [captures[number] for number in flows.capture]
    keys = zip(names, flows.src_port.tolist(), strict=True)
    assert by_flow == dict(zip(keys, zip(scores.tolist(), verdicts, strict=True), strict=True))
    out = capsys.readouterr().out
    for level in ("channel", "host"):
        groups = FlowAggregator(level, false_alarm_rate=None).fit(flows, scores).aggregate(flows, scores)
        assert f"most abnormal of {len(groups)} {level}s" in out
        listed = out.split(f"of {len(groups)} {level}s")[1].split("\n\n")[0].splitlines()[1:]
        assert {line.split()[0] for line in listed} == {line.split()[0] for line in format_groups(groups[:10], -np.inf)}


def test_commands_say_what_was_ignored_and_why(model, traffic, write, tmp_path, capsys):
    capture = str(write(pcap([udp(link=False), b"", *ignored(5)], link_type=101)))
    counted = "7 packets, 6 ignored (5 other protocol, 1 short), 1 flow"
    read = f"{counted}; of the ignored: 5 ICMP"
    for command, stream in [
        (["score", capture, "--model", str(model)], "err"),
        (["score", capture, "--model", str(model), "--output", str(tmp_path / "s.csv")], "out"),
        (["explain", capture, "--model", str(model)], "out"),
    ]:
        assert main(command) == 0
        assert read in getattr(capsys.readouterr(), stream)
    assert main(["sample", capture, "--output", str(tmp_path / "x.npy")]) == 0
    assert counted in capsys.readouterr().out
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "odd.pcap").write_bytes(Path(capture).read_bytes())
    evaluate = [
        "evaluate",
        "--model",
        str(model),
        "--normal",
        str(traffic.test),
        "--attacks",
        str(tmp_path / "attacks"),
    ]
    assert main([*evaluate, "--output", str(tmp_path / "page.html")]) == 0
    assert f"attack odd: read {read}" in capsys.readouterr().out
    assert f"<td>attack odd</td><td>read {read}</td>" in (tmp_path / "page.html").read_text()


def test_a_capture_of_which_nothing_can_be_used_is_a_failure_with_a_reason(model, traffic, write, tmp_path, capsys):
    capture = str(write(pcap(ignored(50), link_type=101)))
    reference = ["--reference", str(traffic.reference[0].parent), "--model", str(tmp_path / "m")]
    for command in (
        ["score", capture, "--model", str(model)],
        ["score", capture, "--model", str(model), "--output", str(tmp_path / "s.csv")],
        ["explain", capture, "--model", str(model)],
        ["sample", capture, "--output", str(tmp_path / "x.npy")],
        ["fit", capture, *reference, "--max-epochs", "1"],
    ):
        assert main(command) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith(f"docids: error: {'CAPTURE ' if command[0] == 'explain' else ''}{capture}: ")
        assert last.endswith("50 packets, 50 ignored (50 other protocol), 0 flows")


def test_names_neither_steer_a_terminal_nor_forge_lines_nor_become_formulas(
    model, traffic, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    names = ["\x1b[31mred.pcap", "=1+1.pcap", "a\n1.1.1.1,normal\n.pcap", "b;@SUM(A1).pcap", "\tx\r.pcap"]
    Path("attacks").mkdir()
    for port, name in enumerate(names, start=1):
        Path(name).write_bytes(pcap([udp(sport=port)]))
        Path("attacks", name).write_bytes(pcap([udp(sport=port)]))
    evaluate = ["evaluate", "--model", str(model), "--normal", str(traffic.test), "--attacks", "attacks"]
    printed = []
    for command in (
        ["sample", *names, "-o", "out"],
        ["score", *names, "--model", str(model)],
        ["score", *names, "--model", str(model), "--output", "s.csv"],
        [*evaluate, "--csv", "e.csv", "--output", "e.html"],
        ["score", "\x1b[31m\nx", "--model", str(model)],
    ):
        main(command)
        printed += capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["score", *names, "--\x1b[31m\nx", "--model", str(model)])
    printed += capsys.readouterr()
    written = [Path(name).read_text() for name in ("s.csv", "e.csv", "e.html")]
    for text in printed + written:
        assert all(char.isprintable() or char == "\n" for char in text)
        assert not any(line.startswith(("1.1.1.1", "x:")) for line in text.splitlines())
    expected = [r"\x1b[31mred.pcap", "'=1+1.pcap", r"a\n1.1.1.1,normal\n.pcap", "b;'@SUM(A1).pcap", r"\tx\r.pcap"]
    assert [row["capture"] for row in table_of("s.csv")] == expected
    attacks = {row["attack"].removesuffix(".pcap") for row in table_of("e.csv")}
    assert {name.removesuffix(".pcap") for name in expected} <= attacks


class Interrupted(io.RawIOBase):
    """A capture in which Ctrl-C is pressed."""

    def __init__(self, data):
        self.data = data

    def readinto(self, buffer):
        if not self.data:
            raise KeyboardInterrupt
        buffer[: len(self.data)], n_bytes = self.data, len(self.data)
        self.data = b""
        return n_bytes


def test_an_interrupted_or_full_disk_leaves_the_old_file_alone(model, write, tmp_path, capsys, monkeypatch):
    (tmp_path / "old").mkdir()
    output = tmp_path / "old" / "scores.csv"
    output.write_text("old")
    data = pcap([udp(sport=s) for s in range(1, 2000)], times=np.arange(1999) * 200.0)
    command = ["score", "--model", str(model), "--output", str(output)]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Interrupted(data)))
    assert main([*command, "-"]) == 130
    assert capsys.readouterr().err == "docids: interrupted\n"
    capture, limits = str(write(data)), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        assert main([*command, capture]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert capsys.readouterr().err == f"docids: error: [Errno 27] File too large: '{output}'\n"
    assert [(path.name, path.read_text()) for path in output.parent.iterdir()] == [("scores.csv", "old")]


@pytest.mark.parametrize(
    ("redirected", "status", "error"),
    [
        ("- < {capture} > /dev/full", 1, "docids: error: standard output: [Errno 28] No space left on device\n"),
        ("{capture} >&-", 1, "docids: error: standard output is closed: --output names a file for the table\n"),
        ("- <&-", 1, "docids: error: standard input is closed: there is nothing to read for -\n"),
        ("{capture} 2>&- | true; exit ${{PIPESTATUS[0]}}", 141, ""),
    ],
)
def test_closed_and_full_streams_end_in_a_message_or_a_status(model, traffic, redirected, status, error):
    redirected = redirected.format(capture=traffic.test)
    command = f"{sys.executable} -m sklearn_docids score --model {model} {redirected}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.returncode == status
    assert "".join(line for line in result.stderr.splitlines(True) if not line.startswith("docids: read")) == error


def test_a_table_can_go_to_a_device(model, traffic):
    command = [sys.executable, "-m", "sklearn_docids", "score", str(traffic.test), "--model", str(model)]
    result = subprocess.run([*command, "--output", "/dev/stdout"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("capture,time_first,")
    assert "40 flows, " in result.stdout


def test_a_damaged_capture_is_scored_up_to_the_damage_with_a_warning(model, write, capsys):
    capture = write(pcap([udp(sport=s) for s in range(1, 6)])[:-3])
    assert main(["score", str(capture), "--model", str(model)]) == 0
    streams = capsys.readouterr()
    assert len(streams.out.splitlines()) == 5
    assert "docids: warning: " in streams.err
    assert "record 5: record cut after 55 of 58 bytes" in streams.err


def test_unusable_input_gives_one_line_and_status_one(model, traffic, tmp_path, capsys):
    text = tmp_path / "text.pcap"
    text.write_text("no capture")
    (tmp_path / "empty").mkdir()
    reference = str(traffic.reference[0].parent)
    for arguments, message in [
        (["score", "missing.pcap", "--model", str(model)], "missing.pcap"),
        (["score", str(text), "--model", str(model)], "not a capture"),
        (["score", str(traffic.test), "--model", str(text)], "not a usable DOC-IDS model"),
        (["sample", str(tmp_path), "-o", str(tmp_path / "x.npy")], "Is a directory"),
        (["fit", str(traffic.train), "--reference", "missing", "--model", "m"], "missing"),
        (["fit", str(traffic.train), "--reference", str(tmp_path / "empty"), "--model", "m"], "holds no captures"),
        (["fit", str(text), "--reference", reference, "--model", "m"], "not a capture"),
        (["fit", "missing.pcap", "--reference", reference, "--model", "/nowhere/m"], "folder of --model /nowhere/m"),
        (["fit", "missing.pcap", "--reference", reference, "--model", str(tmp_path)], "is not a file name"),
        (["fit", "missing.pcap", "--reference", reference, "--model", ""], "is not a file name"),
        (["fit", "missing.pcap", "--reference", reference, "--model", "/dev/null"], "is not a file name"),
        (
            ["fit", "missing.pcap", "--reference", reference, "--model", "m", "--max-epochs", "0"],
            "--max-epochs must be",
        ),
        (
            ["fit", "missing.pcap", "--reference", reference, "--model", "m", "--checkpoint-folder", str(text)],
            "--checkpoint-folder",
        ),
    ]:
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("docids: error: ")
        assert message in error
        assert len(error.splitlines()) == 1


def test_a_talkative_sampler_does_not_spoil_the_table(model, traffic, tmp_path, capsys):
    detector = load_detector(model)
    save_detector(detector, tmp_path / "m", sampler=detector.sampler_.set_params(verbose=1))
    assert main(["score", str(traffic.test), "--model", str(tmp_path / "m")]) == 0
    assert capsys.readouterr().out.startswith("capture,time_first,")


def test_ctrl_c_gives_one_line(model, monkeypatch, capsys):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("sklearn_docids.persistence.load_detector", interrupted)
    assert main(["score", "x.pcap", "--model", str(model)]) == 130
    assert capsys.readouterr().err == "docids: interrupted\n"


def test_a_model_without_sampler_cannot_read_captures(traffic, tmp_path, capsys):
    X = FlowSampler().transform(traffic.train)
    bare = AutoencoderDetector(max_epochs=1).fit(X)
    save_detector(bare, tmp_path / "bare")
    assert main(["score", str(traffic.test), "--model", str(tmp_path / "bare")]) == 1
    assert "holds no sampler" in capsys.readouterr().err


def test_a_model_that_was_loaded_and_saved_again_scores_captures(model, traffic, tmp_path, capsys):
    save_detector(load_detector(model), tmp_path / "again")
    assert main(["score", str(traffic.test), "--model", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.startswith("capture,time_first,")


@pytest.mark.parametrize("name", ["--output", "--csv", "--model"])
@pytest.mark.parametrize("taken", ["input", "other capture", "packed capture", "damaged capture"])
def test_no_command_writes_over_a_capture(model, traffic, tmp_path, capsys, name, taken):
    paths = {
        kind: tmp_path / f"{kind}.pcap" for kind in ("input", "other capture", "packed capture", "damaged capture")
    }
    data = traffic.test.read_bytes()
    for path in paths.values():
        path.write_bytes(data)
    paths["packed capture"].write_bytes(gzip.compress(data))
    paths["damaged capture"].write_bytes(data[:24] + b"\xff" * 40)
    before = paths[taken].read_bytes()
    capture, output = str(paths["input"]), str(paths[taken])
    command = {
        "--output": ["score", capture, "--model", str(model), "--output", output, "--force"],
        "--csv": ["evaluate", "--model", str(model), "--normal", capture, "--attacks", str(tmp_path), "--csv", output],
        "--model": ["fit", capture, "--reference", str(traffic.reference[0].parent), "--model", output, "--force"],
    }[name]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert (
        f"{name} {output} is {'an input of this command' if taken == 'input' else 'a capture'}, and would be lost"
        in error
    )
    assert paths[taken].read_bytes() == before


def test_a_model_is_replaced_with_force_alone_and_never_where_it_is_an_input(model, traffic, tmp_path, capsys):
    taken = tmp_path / "m"
    taken.write_bytes(model.read_bytes())
    before = taken.read_bytes()
    for command in (
        ["fit", str(traffic.train), "--reference", str(traffic.reference[0].parent), "--model", str(taken)],
        ["score", str(traffic.test), "--model", str(model), "--output", str(taken)],
        ["sample", str(traffic.test), "--output", str(taken)],
        ["score", str(traffic.test), "--model", str(taken), "--output", str(taken), "--force"],
    ):
        assert main(command) == 1
        assert "would be lost" in capsys.readouterr().err
        assert taken.read_bytes() == before
    link = tmp_path / "link"
    link.symlink_to(taken)
    assert main(["score", str(traffic.test), "--model", str(taken), "--output", str(link), "--force"]) == 1
    assert "is an input of this command" in capsys.readouterr().err
    assert main(["score", str(traffic.test), "--model", str(model), "--output", str(taken), "--force"]) == 0
    assert taken.read_text().startswith("capture,time_first")


def test_a_saved_pipeline_scores_captures(traffic, tmp_path, capsys):
    pipeline = Pipeline([("sampler", FlowSampler()), ("detector", AutoencoderDetector(max_epochs=1, random_state=0))])
    save_detector(pipeline.fit([traffic.train]), tmp_path / "pipeline")
    assert main(["score", str(traffic.test), "--model", str(tmp_path / "pipeline")]) == 0
    scores = [float(line.split(",")[-2]) for line in capsys.readouterr().out.splitlines()[1:]]
    assert scores == pytest.approx(pipeline.score_samples([traffic.test]), rel=1e-5)


@pytest.fixture
def short_demo(monkeypatch):
    from sklearn_docids import datasets
    from sklearn_docids.cli import _demo

    def thinned(sampler):
        testbed = datasets.load_testbed(sampler=sampler)
        kept = np.arange(0, len(testbed.y_test), 20)
        for name in ("X_test", "y_test", "attack", "flows_test"):
            testbed[name] = testbed[name][kept]
        for name in ("X_train", "flows_train"):
            testbed[name] = testbed[name][::20]
        return testbed

    monkeypatch.setattr(_demo, "MAX_EPOCHS", 1)
    monkeypatch.setattr(_demo, "load_testbed", thinned)


def test_demo_prints_figures_a_ranking_and_a_picture_that_follow_the_seed(short_demo, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    outputs = []
    for run, seed in enumerate(["0", "0", "1"]):
        assert main(["demo", "--seed", seed, "--output", str(tmp_path / str(run))]) == 0
        outputs.append(capsys.readouterr().out.split("Abnormal are")[1].split("Picture")[0])
    assert outputs[0] == outputs[1] != outputs[2]
    for name in ("several views", "DOC-IDS", "IsolationForest", "OneClassSVM", "number of packets"):
        assert name in outputs[0].splitlines()[2]
    assert len([line for line in outputs[0].splitlines() if line.startswith("ROC-AUC ")]) == 13
    assert "was set with the 241 training flows" in outputs[0]
    ranked = outputs[0].split("most abnormal flows:\n")[1].strip("\n").splitlines()
    assert len(ranked) == 20
    assert {line.split(":")[0].strip() for line in ranked[1::2]} <= {*VIEWS, "several views"}
    assert (tmp_path / "0" / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_demo_without_matplotlib_says_so_and_succeeds(short_demo, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["demo", "--output", str(tmp_path)]) == 0
    assert "No picture: matplotlib is not installed" in capsys.readouterr().out
    assert not (tmp_path / "demo.png").exists()


def test_a_missing_extra_is_one_line_with_a_way_out(model, traffic, tmp_path, capsys, monkeypatch):
    packed = tmp_path / "flows.pcap.zst"
    packed.write_bytes(bytes.fromhex("28b52ffd") + bytes(20))
    monkeypatch.setitem(sys.modules, "backports", None)
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    assert main(["sample", str(packed), "--output", str(tmp_path / "x.npy")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("docids: error: ")
    assert "zstd" in error
    assert error.count("\n") == 1


def test_version_and_help(capsys):
    for argument in ("--version", "--help"):
        with pytest.raises(SystemExit) as stopped:
            main([argument])
        assert stopped.value.code == 0
    assert "demo" in capsys.readouterr().out


def test_tails_of_connections_are_told_apart_and_can_be_left_out(model, write, tmp_path, capsys):
    packets = [
        tcp(sport=port, flags=flags) for port in range(1, 40) for flags in (("S", "A") if port % 2 else ("A", "PA"))
    ]
    capture = str(write(pcap(packets)))
    output = tmp_path / "s.csv"
    assert main(["score", capture, "--model", str(model), "--output", str(output)]) == 0
    rows = table_of(output)
    tails = [row for row in rows if row["begin"] == "running"]
    assert (len(rows), len(tails), {row["end"] for row in rows}) == (39, 19, {"open"})
    n_abnormal = sum(row["verdict"] == "abnormal" for row in tails)
    out = capsys.readouterr().out
    assert f"({n_abnormal} of them midstream: the beginning of the connection was not seen)" in out
    assert out.count("  midstream") > 0
    assert main(["score", capture, "--model", str(model), "--output", str(output), "--midstream", "drop"]) == 0
    assert {row["begin"] for row in table_of(output)} == {"handshake"}
    assert "20 flows (19 dropped)" in capsys.readouterr().out
