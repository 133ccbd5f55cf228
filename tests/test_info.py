"""``docids info`` and ``docids calibrate``: what they say, refuse and write."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from captures import pcap, udp
from office import capture_of, office
from sklearn.pipeline import Pipeline
from test_persistence import rewritten

from sklearn_docids import AutoencoderDetector, FlowSampler, MultiViewDetector, load_detector, save_detector
from sklearn_docids._provenance import storable_settings
from sklearn_docids.cli import _calibrate, _info
from sklearn_docids.exceptions import ModelFileError
from sklearn_docids.persistence import described_traffic

SAMPLER = FlowSampler(2, 24, layout="payload", output="flows")


@pytest.fixture(scope="module")
def captures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("office")
    for name, some in {"monday.pcap": office(300, 0), "tuesday.pcap": office(200, 1)}.items():
        (folder / name).write_bytes(capture_of(some))
    return [str(folder / name) for name in ("monday.pcap", "tuesday.pcap")]


@pytest.fixture(scope="module")
def fitted(captures):
    flows = SAMPLER.flows(captures[0])
    detector = MultiViewDetector(views=("statistics", "novelty"), false_alarm_rate=0.05, random_state=0).fit(flows)
    return detector, {"traffic": described_traffic(flows), "settings": {"fields": "no_addresses", "seed": 3}}


@pytest.fixture
def model(fitted, tmp_path):
    save_detector(fitted[0], tmp_path / "office.model", sampler=SAMPLER, provenance=fitted[1])
    return str(tmp_path / "office.model")


def run(command, *arguments):
    parser = argparse.ArgumentParser()
    command.add_options(parser)
    parser.add_argument("--quiet", action="store_true")
    command.run(parser.parse_args([str(argument) for argument in arguments]))


def info(capsys, path):
    """Return what is printed, by title."""
    run(_info, path)
    found, title = {}, ""
    for line in capsys.readouterr().out.splitlines():
        title = line[: _info.MARGIN].strip() or title
        found.setdefault(title, []).append(line[_info.MARGIN :])
    return found


def info_json(capsys, path):
    run(_info, path, "--json")
    return json.loads(capsys.readouterr().out)


# --------------------------------------------------------------------------------------------------------------------
# docids info


def test_it_says_what_a_model_learned_from_and_what_its_threshold_is_worth(capsys, model, captures, fitted):
    found = info(capsys, model)
    assert found["learned from"] == [
        "300 flows of 5 hosts in 1 capture, 1970-01-01T00:16:40Z to 1970-01-01T00:26:38Z",
        f"  {captures[0]}: 1050 packets, 300 flows, 1970-01-01T00:16:40Z to 1970-01-01T00:26:38Z",
        "2 services: tcp/80 (150), udp/53 (150)",
    ]
    assert found["threshold"] == [
        f"{fitted[0].offset_:.6g}: 5 % false alarms, from 300 normal flows",
        "of new flows like these, it flags 2.83 % to 7.71 % in 95 of 100 cases",
        "0.05 % needs 56 min more of such traffic, 1699 more flows that set it",
    ]
    assert found["views"] == ["statistics, novelty"]
    assert found["network"] == ["none"]
    assert found["settings"] == ["fields no_addresses, seed 3"]
    assert found["versions"][0].startswith("sklearn_docids ")
    assert found["calibrations"][0].startswith("*0  ")


def test_what_it_prints_as_json_is_what_the_file_holds(capsys, model, fitted):
    found, (detector, provenance) = info_json(capsys, model), fitted
    assert found["learned_from"] == provenance["traffic"]
    assert found["settings"] == provenance["settings"]
    assert found["threshold"]["offset"] == detector.offset_
    assert found["threshold"]["n_thinned"] == len(detector.thinned_scores_)
    assert found["parameters"]["views"] == ["statistics", "novelty"]
    assert found["sampler"]["n_packets"] == 2
    assert [one["n_flows"] for one in found["calibrations"]] == [300]


def test_a_network_is_counted(capsys, tmp_path):
    X = np.random.default_rng(0).integers(0, 256, (60, 12), dtype=np.uint8)
    detector = AutoencoderDetector(max_epochs=2, random_state=0).fit(X)
    save_detector(detector, tmp_path / "m")
    found = info_json(capsys, tmp_path / "m")
    n_weights = sum(value.numel() for value in detector.network_.state_dict().values())
    assert found["network"] == {
        "weights": n_weights, "epochs": 2, "interrupted": False, "reference_classes": None,
    }  # fmt: skip
    assert (found["views"], found["learned_from"], found["sampler"]) == (None, None, None)
    lines = info(capsys, tmp_path / "m")
    assert lines["threshold"][0].endswith("docids calibrate sets it by other flows")
    assert lines["learned from"] == ["unknown: whoever saved it did not say"]
    assert lines["sampler"] == ["none: it cannot read captures"]


def test_a_threshold_set_by_hand_is_called_so(capsys, fitted, tmp_path):
    save_detector(fitted[0], tmp_path / "m", sampler=SAMPLER)
    path = rewritten(tmp_path / "m", tmp_path / "hand", lambda config: config.update(offset=-3.5))
    assert info(capsys, path)["threshold"][0].startswith("-3.5, set by hand: ")


def test_names_in_a_model_cannot_steer_the_terminal(capsys, fitted, tmp_path):
    def change(config):
        config["provenance"]["traffic"]["captures"][0]["name"] = "\x1b[31mred\n"
        config["provenance"]["settings"]["\x07bell"] = "\u202eright to left"
        config["versions"]["torch"] = "\x9b2J"

    save_detector(fitted[0], tmp_path / "m", sampler=SAMPLER, provenance=fitted[1])
    run(_info, rewritten(tmp_path / "m", tmp_path / "hostile", change))
    text = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in text)
    assert r"\x1b[31mred\n: 1050 packets" in text


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(versions={"torch": 5}),
        lambda config: config.update(versions={"x" + str(n): "" for n in range(21)}),
        lambda config: config.update(estimator=["x"]),
        lambda config: config.update(parameters=None),
        lambda config: config["parameters"].update(views={"a": 1}),
        lambda config: config.update(sampler=[]),
        lambda config: config.update(provenance={}),
        lambda config: config["provenance"]["traffic"].update(time_first=None),
        lambda config: config["provenance"]["traffic"].update(n_flows=-1),
        lambda config: config["provenance"]["traffic"].update(services=[["tcp/80"]]),
        lambda config: config.update(offset=None),
        lambda config: config.update(network="x"),
        lambda config: config.update(calibrations=None),
        lambda config: config["calibrations"][0].update(n_flows="many"),
        lambda config: config.pop("active_calibration"),
        lambda config: config.pop("estimator"),
    ],
)
def test_a_field_that_is_none_is_refused_and_not_printed(model, tmp_path, change):
    path = rewritten(model, tmp_path / "m", lambda config: change(config) and None)
    with pytest.raises(ModelFileError, match="not a usable DOC-IDS model"):
        run(_info, path)


def test_damage_shows(model, tmp_path):
    data = bytearray(Path(model).read_bytes())
    data[-1] ^= 1
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(ModelFileError, match="its checksum is wrong"):
        run(_info, tmp_path / "m")


def test_what_is_no_model_is_refused(captures, tmp_path):
    with pytest.raises(ModelFileError, match=r"monday.pcap: not a usable DOC-IDS model"):
        run(_info, captures[0])
    with pytest.raises(FileNotFoundError):
        run(_info, tmp_path / "missing")


def test_it_imports_neither_torch_nor_scikit_learn(model):
    code = (
        "import sys; from sklearn_docids._stored.summary import summary_of; summary_of(sys.argv[1]); "
        "import sklearn_docids.cli._info; print([name for name in ('torch', 'sklearn') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize(
    ("hours", "text"),
    [(0.001, "4 s"), (0.5, "30 min"), (1.9, "114 min"), (4, "4 h"), (47, "47 h"), (72, "3 days"), (400, "2 weeks")],
)
def test_durations_are_in_the_largest_unit_that_fits(hours, text):
    assert _info.duration(hours) == text


def test_any_settings_can_be_stored(tmp_path, fitted):
    settings = {"path": tmp_path, "views": ("a", "b"), "long": "x" * 1000, "many": list(range(500)), "none": None}
    stored = storable_settings(settings)
    assert stored["path"] == str(tmp_path)
    assert (stored["views"], len(stored["long"]), len(stored["many"])) == (["a", "b"], 256, 100)
    save_detector(fitted[0], tmp_path / "m", provenance={"traffic": None, "settings": stored})
    assert load_detector(tmp_path / "m").provenance_["settings"] == stored


# --------------------------------------------------------------------------------------------------------------------
# docids calibrate


def test_a_model_is_calibrated_in_place_and_back(capsys, model, captures):
    before = load_detector(model)
    run(_calibrate, model, captures[1], "--false-alarm-rate", "0.1")
    output = capsys.readouterr()
    flows = SAMPLER.flows(captures[1])
    expected = load_detector(model).restore_calibration(0).calibrate(flows, false_alarm_rate=0.1)
    after = load_detector(model)
    np.testing.assert_array_equal(after.score_samples(flows), expected.score_samples(flows))
    assert (after.offset_, after.false_alarm_rate_, after.active_calibration_) == (expected.offset_, 0.1, 1)
    assert after.provenance_ == before.provenance_
    assert output.out.splitlines()[0] == f"threshold before: {before.offset_:.6g}"
    assert output.out.splitlines()[2] == (f"threshold: {after.offset_:.6g}: 10 % false alarms, from 200 normal flows")
    assert output.err == f"docids: calibration 1 is in use; written to {model}\n"
    run(_calibrate, model, "--restore", "0")
    restored = load_detector(model)
    assert (restored.offset_, restored.active_calibration_, len(restored.calibrations_)) == (before.offset_, 0, 2)


def test_calibrations_are_listed(capsys, model, captures):
    run(_calibrate, model, captures[1], "--quiet")
    capsys.readouterr()
    run(_calibrate, model, "--list")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(" 0  ")
    assert second.startswith("*1  ")
    assert f"5 % false alarms, 200 flows, {captures[1]}, 1970-" in second
    run(_calibrate, model, "--list", "--json")
    assert [one["n_flows"] for one in json.loads(capsys.readouterr().out)] == [300, 200]


def test_another_file_is_written_where_one_is_named(model, captures, tmp_path):
    before = Path(model).read_bytes()
    run(_calibrate, model, captures[1], "--output", tmp_path / "new", "--quiet")
    assert Path(model).read_bytes() == before
    assert load_detector(tmp_path / "new").active_calibration_ == 1
    with pytest.raises(FileExistsError, match="is a model, and would be lost: --force"):
        run(_calibrate, model, captures[1], "--output", tmp_path / "new")
    run(_calibrate, model, "--restore", "0", "--output", tmp_path / "new", "--force", "--quiet")
    assert len(load_detector(tmp_path / "new").calibrations_) == 1


def test_a_pipeline_of_rows_stays_one(tmp_path, captures):
    pipeline = Pipeline([("rows", FlowSampler(2, 40)), ("net", AutoencoderDetector(max_epochs=1, random_state=0))])
    save_detector(pipeline.fit([captures[0]]), tmp_path / "m")
    run(_calibrate, tmp_path / "m", captures[1], "--false-alarm-rate", "0.05", "--quiet")
    loaded = load_detector(tmp_path / "m")
    assert list(loaded.named_steps) == ["rows", "net"]
    scores = loaded.score_samples([captures[1]])
    assert loaded[-1].offset_ == np.sort(scores)[9]
    assert len(loaded[-1].thinned_scores_) > 0


def test_captures_of_another_site_are_called_so(capsys, model, tmp_path):
    strange = [udp(9000 + n, 7000, bytes([n]) * (n + 1), src=f"172.16.0.{n}", dst="172.16.9.9") for n in range(40)]
    (tmp_path / "site.pcap").write_bytes(pcap(strange, times=[5000.0 + n for n in range(40)]))
    run(_calibrate, model, tmp_path / "site.pcap")
    output = capsys.readouterr()
    assert "it flags 100 % of these 40 flows" in output.out
    assert "of another site" in output.err
    assert "docids fit" in output.err


REFUSED = {
    "nothing to do": ([], ValueError, "give captures, --list, --restore or --merge, one of the four; given: none"),
    "two things to do": (["{tuesday}", "--list"], ValueError, "given: captures, --list"),
    "a rate for a list": (["--list", "--false-alarm-rate", "0.1"], ValueError, "--false-alarm-rate is of no use"),
    "an output for a list": (["--list", "--output", "x"], ValueError, "--output is of no use with --list"),
    "no such calibration": (["--restore", "3"], ValueError, "--restore 3: there is no such calibration; --list"),
    "no such capture": (["{folder}/missing.pcap"], FileNotFoundError, "missing.pcap"),
    "output in no folder": (["{tuesday}", "--output", "{folder}/no/m"], FileNotFoundError, "folder of --output"),
    "output is an input": (["{tuesday}", "--output", "{tuesday}"], FileExistsError, "an input of this command"),
    "too few flows": (["{tuesday}", "--false-alarm-rate", "0.001"], ValueError, "needs at least 999 normal flows"),
    "a model as capture": (["{model}"], ValueError, "office.model"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_is_refused_and_the_model_stays(model, captures, tmp_path, arguments, error, message):
    before = Path(model).read_bytes()
    places = {"tuesday": captures[1], "folder": tmp_path, "model": model}
    with pytest.raises(error, match=message):
        run(_calibrate, model, *(argument.format(**places) for argument in arguments))
    assert Path(model).read_bytes() == before


@pytest.mark.parametrize("arguments", [["x", "--false-alarm-rate", "0.7"], ["--restore", "-1"], ["--restore", "one"]])
def test_numbers_out_of_range_are_usage_errors(model, arguments, capsys):
    with pytest.raises(SystemExit):
        run(_calibrate, model, *arguments)
    assert "usage" in capsys.readouterr().err


def test_a_model_without_a_sampler_cannot_read_captures(fitted, captures, tmp_path):
    save_detector(fitted[0], tmp_path / "m")
    with pytest.raises(ValueError, match="holds no sampler"):
        run(_calibrate, tmp_path / "m", captures[1])
