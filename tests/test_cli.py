"""The command line: sample, fit, score, demo, and messages for unusable input."""

import csv
import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from captures import pcap, udp
from sklearn.pipeline import Pipeline

from sklearn_docids import AutoencoderDetector, FlowSampler, load_detector, save_detector
from sklearn_docids.capture import FlowTable
from sklearn_docids.cli import main
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
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
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
