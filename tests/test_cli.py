"""The command line: sample, fit, score, demo, and messages for unusable input."""

import csv
import gzip
import io
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from captures import pcap, tcp, udp
from scapy.layers.inet import ICMP, IP
from sklearn.pipeline import Pipeline

from sklearn_docids import AutoencoderDetector, FlowSampler, load_detector, save_detector
from sklearn_docids.aggregation import FlowAggregator
from sklearn_docids.capture import FlowTable
from sklearn_docids.cli import _scoring, main
from sklearn_docids.cli._text import format_groups
from sklearn_docids.datasets import make_traffic


@pytest.fixture(scope="module")
def traffic(tmp_path_factory):
    return make_traffic(tmp_path_factory.mktemp("traffic"), n_flows=30, n_reference=4, n_attacks=2, random_state=0)


@pytest.fixture(scope="module")
def model(traffic, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    reference = str(traffic.reference[0].parent)
    arguments = ["fit", str(traffic.train), "--reference", reference, "--model", str(path), "--max-epochs", "2"]
    assert main([*arguments, "--fields", "portable", "--false-alarm-rate", "0.2"]) == 0
    return path


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
        (["fit", "missing.pcap", "--reference", reference, "--model", "m", "--max-epochs", "0"], "max_epochs"),
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
        testbed.X_train = testbed.X_train[::20]
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
    for name in ("DOC-IDS", "Autoencoder", "IsolationForest", "OneClassSVM", "number of packets"):
        assert name in outputs[0].splitlines()[2]
    assert len([line for line in outputs[0].splitlines() if line.startswith("ROC-AUC ")]) == 13
    assert "kept out of training;" in outputs[0]
    assert len(outputs[0].split("most abnormal flows:\n")[1].strip().splitlines()) == 10
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
