"""The command line: sample, fit, score, demo, and messages for unusable input."""

import csv
import gzip
import io
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from captures import pcap, udp
from office import burst, capture_of, office
from scapy.layers.inet import ICMP, IP
from sklearn.pipeline import Pipeline

from sklearn_docids import AutoencoderDetector, FlowSampler, load_detector, save_detector
from sklearn_docids.capture import FlowTable
from sklearn_docids.cli import _evaluate, _fit, main
from sklearn_docids.cli._text import MAX_REASON, format_p_value, main_reason
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
    streams = capsys.readouterr()
    assert (streams.out, "30 flows written to" in streams.err) == ("", True)


def test_sample_reads_standard_input_and_takes_its_options(traffic, tmp_path):
    packets = Path(traffic.train).read_bytes()
    command = [sys.executable, "-m", "sklearn_docids", "sample", "-", "-o", str(tmp_path / "out"), "--jobs", "2"]
    result = subprocess.run(
        [*command, "--tunnels", "innermost", "--duplicate-window", "3", "--quiet"],
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
    assert _fit.VIEWS == VIEWS


def test_fit_says_what_was_learned_and_how_the_threshold_was_set(captures, tmp_path, capsys):
    model = str(tmp_path / "m")
    assert main(["fit", captures["train"], "--views", "novelty", "--model", model, "--json"]) == 0
    streams = capsys.readouterr()
    assert streams.err.splitlines()[-2:] == [
        f"docids: 150 flows learned, by novelty; model written to {model}",
        "docids: the threshold is that of 1 % false alarms, from 150 flows, in blocks that views judge before they "
        "learn them",
    ]
    found = json.loads(streams.out)
    assert (found["model"], found["flows_learned"], found["views"]) == (model, 150, ["novelty"])
    assert found["threshold"] == load_detector(model).offset_


def test_fit_without_a_reference_takes_the_bundled_one_and_says_so(captures, tmp_path, capsys):
    fit = ["fit", captures["train"], "--views", "bytes", "--max-epochs", "1", "--model", str(tmp_path / "m")]
    assert main([*fit, "--false-alarm-rate", "0.1"]) == 0
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "no --reference: the bundled one is used, 5900 flows of 22 services" in streams.err
    assert "120 flows learned, by bytes;" in streams.err
    assert "that of 10 % false alarms, from 30 flows kept out of training" in streams.err
    services = sorted(path.name.split(".")[0] for path in REFERENCE.iterdir())
    assert load_detector(tmp_path / "m").reference_classes_.tolist() == services


def test_few_flows_give_the_lowest_rate_that_they_allow_and_very_few_are_refused(write, tmp_path, capsys):
    few, very_few = (str(write(capture_of(office(n, 0)), name)) for n, name in ((60, "few"), (19, "very-few")))
    fit = ["--views", "statistics", "--model", str(tmp_path / "m")]
    assert main(["fit", few, *fit]) == 0
    assert "of 60 flows 60 do: it is that of 1.7 %, until more traffic is learned" in capsys.readouterr().err
    assert load_detector(tmp_path / "m").false_alarm_rate == 0.017
    assert main(["fit", very_few, *fit, "--force"]) == 1
    assert "19 flows are too few to learn what is normal: give at least 20, or a day" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--views novelty --max-epochs 3", "--max-epochs is for the view of bytes, which --views leaves out"),
        ("--views novelty --checkpoint-folder .", "--checkpoint-folder is for the view of bytes"),
        ("--views novelty --reference .", "--reference is for the view of bytes"),
        ("--score-method knn", "--score-method is for bytes as the only view: --views bytes"),
        ("--views novelty --layout packets", "--layout packets is for bytes as the only view"),
        ("--idle-timeout -1", "--idle-timeout must be a float in the range (0.0, inf) or None. Got -1 instead"),
        ("--power abc", "--power must be a float in the range [1.0, inf). Got 'abc' instead"),
        ("--views bytes --lr 0", "--lr must be a float in the range (0.0, inf)"),
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


def test_reasons_are_short_and_cannot_steer_a_terminal_or_a_spreadsheet(write, views_model, capsys):
    message = b"\x1b]0;=1+1\x07\r\n\xff" * 4
    capture = write(capture_of([([udp(9, 53, message, src="10.0.0.1", dst="10.0.1.1")], [1300.0])]))
    for command in (["score", "--output", "-"], ["score"], ["explain"]):
        assert main([*command, str(capture), "--model", str(views_model)]) == 0
        out = capsys.readouterr().out
        assert r"requests: the request begins '\x1b]0;'=1+1\x07" in out or command[-1] != "-"
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
    assert _evaluate.CONTEXT in capsys.readouterr().out
    text = page.read_text()
    assert _evaluate.CONTEXT in text
    assert '<th scope="row">content</th>' in text
    assert "header field" not in text  # no view of bytes
    rows = table_of(table)
    assert {row["level"] for row in rows} == {"flow", "channel", "host"}
    assert {row["detector"] for row in rows} > {"model", "IsolationForest"}
    (of_model,) = [r for r in rows if (r["detector"], r["level"], r["attack"]) == ("model", "flow", "burst")]
    assert (of_model["n_attack"], of_model["n_normal"]) == ("40", "150")
    assert float(of_model["tpr"]) > 0.8


def test_commands_say_what_was_ignored_and_why(model, traffic, write, tmp_path, capsys):
    capture = str(write(pcap([udp(link=False), b"", *ignored(5)], link_type=101)))
    counted = "7 packets, 6 ignored (5 other protocol, 1 short), 1 flow"
    read = f"read {counted}; of the ignored: 5 ICMP"
    for command, stream in [
        (["score", capture, "--model", str(model)], "out"),
        (["score", capture, "--model", str(model), "--output", str(tmp_path / "s.csv")], "out"),
        (["explain", capture, "--model", str(model)], "err"),
    ]:
        assert main(command) == 0
        assert read in getattr(capsys.readouterr(), stream)
    assert main(["sample", capture, "--output", str(tmp_path / "x.npy"), "-v"]) == 0
    assert f"{capture}: {counted}" in capsys.readouterr().err
    attacks = tmp_path / "attacks"
    attacks.mkdir()
    (attacks / "odd.pcap").write_bytes(Path(capture).read_bytes())
    evaluate = ["evaluate", "--model", str(model), "--normal", str(traffic.test), "--attacks", str(attacks)]
    assert main([*evaluate, "--output", str(tmp_path / "page.html")]) == 0
    assert f"attack odd: {read}" in capsys.readouterr().out
    assert read.removeprefix("read ") in (tmp_path / "page.html").read_text()


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
        ("{capture} >&-", 1, "docids: error: standard output is closed: --output names a file\n"),
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
    assert "40 flows from 2025-10-09T" in result.stdout


def test_a_damaged_capture_is_scored_up_to_the_damage_with_a_warning(model, write, capsys):
    capture = write(pcap([udp(sport=s) for s in range(1, 6)])[:-3])
    assert main(["score", str(capture), "--model", str(model)]) == 0
    streams = capsys.readouterr()
    assert streams.out.startswith("read 4 packets, 0 ignored, 4 flows\n")
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
        (["sample", str(tmp_path / "empty"), "-o", str(tmp_path / "x.npy")], "there is no capture in this folder"),
        (["fit", str(traffic.train), "--reference", "missing", "--model", "m"], "missing"),
        (["fit", str(traffic.train), "--reference", str(tmp_path / "empty"), "--model", "m"], "holds no captures"),
        (["fit", str(text), "--reference", reference, "--model", "m"], "not a capture"),
        (
            ["fit", str(traffic.train), "--reference", reference, "--model", "/nowhere/m"],
            "folder of --model /nowhere/m",
        ),
        (["fit", str(traffic.train), "--reference", reference, "--model", str(tmp_path)], "is not a file name"),
        (["fit", str(traffic.train), "--reference", reference, "--model", ""], "is not a file name"),
        (["fit", str(traffic.train), "--reference", reference, "--model", "/dev/null"], "is not a file name"),
        (
            ["fit", str(traffic.train), "--reference", reference, "--model", "m", "--max-epochs", "0"],
            "--max-epochs must be",
        ),
        (
            ["fit", str(traffic.train), "--reference", reference, "--model", "m", "--checkpoint-folder", str(text)],
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
    assert capsys.readouterr().out.startswith("read 373 packets")


def test_ctrl_c_gives_one_line(model, monkeypatch, capsys):
    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("sklearn_docids.persistence.load_detector", interrupted)
    assert main(["score", str(model), "--model", str(model)]) == 130
    assert capsys.readouterr().err == "docids: interrupted\n"


def test_a_model_without_sampler_cannot_read_captures(traffic, tmp_path, capsys):
    X = FlowSampler().transform(traffic.train)
    bare = AutoencoderDetector(max_epochs=1).fit(X)
    save_detector(bare, tmp_path / "bare")
    assert main(["score", str(traffic.test), "--model", str(tmp_path / "bare")]) == 1
    assert "holds no sampler" in capsys.readouterr().err


def test_a_model_that_was_loaded_and_saved_again_scores_captures(model, traffic, tmp_path, capsys):
    save_detector(load_detector(model), tmp_path / "again")
    printed = []
    for path in (model, tmp_path / "again"):
        assert main(["score", str(traffic.test), "--model", str(path), "--output", "-"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[0].startswith("capture,time_first,")


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
    taken = tmp_path / "m.csv"
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
    assert main(["score", str(traffic.test), "--model", str(tmp_path / "pipeline"), "--output", "-"]) == 0
    scores = [float(row["score"]) for row in csv.DictReader(io.StringIO(capsys.readouterr().out))]
    assert scores == pytest.approx(pipeline.score_samples([traffic.test]), rel=1e-5)


@pytest.fixture
def short_demo(monkeypatch):
    from sklearn_docids import datasets
    from sklearn_docids.cli import _testbed

    def thinned(sampler):
        testbed = datasets.load_testbed(sampler=sampler)
        kept = np.arange(0, len(testbed.y_test), 20)
        for name in ("X_test", "y_test", "attack", "flows_test"):
            testbed[name] = testbed[name][kept]
        for name in ("X_train", "flows_train"):
            testbed[name] = testbed[name][::20]
        return testbed

    monkeypatch.setattr(_testbed, "MAX_EPOCHS", 1)
    monkeypatch.setattr(_testbed, "load_testbed", thinned)


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
    n_incidents, ranked = re.search(r"are (\d+) incidents .*?:\n(.*)", outputs[0], re.DOTALL).groups()
    lines = ranked.strip("\n").splitlines()
    assert len(lines) == 2 * min(10, int(n_incidents)) > 0
    assert {line.split(":")[0].strip() for line in lines[1::2]} <= {*VIEWS, "several views"}
    scores = [float(line.split()[0]) for line in lines[::2]]
    assert scores == sorted(scores)
    assert (tmp_path / "0" / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_demo_without_matplotlib_says_so_and_succeeds(short_demo, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["demo", "--output", str(tmp_path)]) == 0
    assert "No picture: matplotlib is not installed" in capsys.readouterr().out
    assert not (tmp_path / "demo.png").exists()


def test_a_missing_extra_is_one_line_with_a_way_out(model, traffic, tmp_path, capsys, monkeypatch):
    packed = tmp_path / "flows.pcap.lz4"
    packed.write_bytes(bytes.fromhex("04224d18") + bytes(20))
    monkeypatch.setitem(sys.modules, "lz4", None)
    assert main(["sample", str(packed), "--output", str(tmp_path / "x.npy")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("docids: error: ")
    assert "lz4" in error
    assert error.count("\n") == 1


def test_version_and_help(capsys):
    for argument in ("--version", "--help"):
        with pytest.raises(SystemExit) as stopped:
            main([argument])
        assert stopped.value.code == 0
    assert "demo" in capsys.readouterr().out


def test_demo_writes_the_bundled_captures_and_over_no_other_file(tmp_path, capsys):
    for _ in range(2):  # equal files are no obstacle
        assert main(["demo", "--captures", "--output", str(tmp_path)]) == 0
    assert "27 files" in capsys.readouterr().out
    assert len(FlowSampler().flows(tmp_path / "reference" / "ntp.pcap.xz")) > 0
    (tmp_path / "train.pcap.xz").write_bytes(b"mine")
    (tmp_path / "test.csv").unlink()
    assert main(["demo", "--captures", "--output", str(tmp_path)]) == 1
    assert "train.pcap.xz exists and is another file" in capsys.readouterr().err
    assert (tmp_path / "train.pcap.xz").read_bytes() == b"mine"
    assert not (tmp_path / "test.csv").exists()
