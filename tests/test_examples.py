"""The examples run, small, and do what they say; benchmarks can at least begin."""

import csv
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from sklearn_docids import DOCIDSDetector

EXAMPLES = Path(__file__).parents[1] / "examples"


def main_of(name):
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_paper_experiment_on_the_testbed_prints_its_tables_and_writes_its_figures(tmp_path, capsys):
    options = ["--dataset", "testbed", "--n-flows", "60", "--max-epochs", "1", "--n-embedded", "120"]
    results = main_of("paper_experiment.py")([*options, "--seeds", "2", "--output", str(tmp_path)])
    attacks = {line["attack"] for line in results}
    names = {line["detector"] for line in results}
    assert {"DOC-IDS", "DOC-IDS, paper's settings", "Autoencoder", "1D convolutional autoencoder"} <= names
    assert len(attacks) == 13
    assert len(results) == len(attacks) * len(names) * 2
    by_kind = {(line["detector"], line["seed"], line["attack"]): line for line in results}
    n_attack = {line["attack"]: line["n_attack"] for line in results}
    assert n_attack["all attacks"] == sum(n_attack.values()) / 2 == 12 * 60
    assert all(line["prevalence"] == line["n_attack"] / (line["n_attack"] + 60) for line in results)
    for seed in (0, 1):  # as many flows of each kind: pooled and mean areas are equal
        areas = [by_kind["Autoencoder", seed, kind]["roc_auc"] for kind in attacks - {"all attacks"}]
        assert by_kind["Autoencoder", seed, "all attacks"]["roc_auc"] == pytest.approx(np.mean(areas))
    assert np.isnan(by_kind["Autoencoder", 0, "beacon_tcp"]["roc_auc_by_service"])  # nobody else uses its port
    printed = capsys.readouterr().out
    for expected in (
        "Table 2, reference",
        "Target, target",
        "| mean over attacks |",
        "PR-AUC (average",
        "of the same services",
    ):
        assert expected in printed
    figures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert [name.partition("_")[0] for name in figures] == [f"figure{n}" for n in range(2, 7)]
    assert all(path.stat().st_size > 5000 for path in tmp_path.glob("*.png"))
    with (tmp_path / "results.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(results)


def test_paper_experiment_says_what_published_data_needs():
    with pytest.raises(SystemExit, match="needs --folder and --reference"):
        main_of("paper_experiment.py")(["--dataset", "bos-2018"])


BENCHMARKS = sorted((EXAMPLES.parent / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=[path.stem for path in BENCHMARKS])
def test_a_benchmark_knows_the_interface_that_it_measures(path, monkeypatch):
    """What a script imports and the settings it compares are there; running it takes minutes to hours."""
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    names = runpy.run_path(str(path))
    assert callable(names["main"])
    if path.stem == "quality":
        compared = [fit[2] for fits in names["studies"](None).values() for fit in fits]
    elif path.stem == "estimator_checks":
        compared = [estimator for _, estimator in names["estimators"](0)]
    elif path.stem == "defaults":
        compared = [DOCIDSDetector(**settings) for settings, _ in names["VARIANTS"].values()]
    else:
        return
    assert len({repr(estimator) for estimator in compared}) > 8


# The gallery: every script as a reader runs it. What its text says it found is asserted here, from the names it leaves.


def first_detection(names):
    found = {name: names["flagged"][names["kind"] == name].mean() for name in ["", *names["kinds"]]}
    assert found["port_scan"] > 0.95
    assert found["dns_tunnel"] > 0.95
    assert found["ssh_guessing"] > 0.7
    assert found["beacon_tls"] < 0.15
    assert 0.01 < found[""] < 0.05
    assert len(names["incidents"]) < 20 < names["flagged"].sum()


def pipeline_from_pcap(names):
    assert len(names["scores"]) == len(names["flows"]) > 5000
    np.testing.assert_allclose(names["loaded"].score_samples([names["captures"]["test"]]), names["scores"], rtol=1e-5)
    assert (names["scores"][names["rows"][-1]] < names["network"].offset_).all()


def lambda_grid_search(names):
    search = names["search"]
    assert search.cv_results_["mean_test_score"].shape == (9,)
    assert (search.cv_results_["mean_test_score"] > 300 / 500).all()  # what guessing has
    assert not set(names["stand_ins"]) & set(names["reference"].y.tolist())
    for train, _ in search.cv.split(names["X"], names["y"]):
        assert (names["y"][train] == 1).all()


def other_detectors(names):
    average = {
        name: np.mean([names["lines"][name, kind]["average_precision"] for kind in names["kinds"]])
        for name in names["detectors"]
    }
    assert average["four views"] > average["DOC-IDS, one pass"] + 0.2
    assert average["DOC-IDS, one pass"] > average["OneClassSVM"] + 0.1
    assert average["OneClassSVM"] > average["IsolationForest"]
    hidden = {name: names["lines"][name, "beacon_tls"]["average_precision"] for name in names["detectors"]}
    assert max(hidden, key=hidden.get) == "IsolationForest"


def feature_space(names):
    kind, nearest = names["kind"], names["nearest"]  # of the features, the last of the two
    medians = {name: np.median(nearest[kind == name]) for name in names["kinds"]}
    assert min(medians["beacon_tcp"], medians["port_scan"]) > 2
    assert max(medians["dns_tunnel"], medians["slow_http"]) < 2


def scores_by_kind(names):
    by_reconstruction, by_distance = names["mean"]
    assert by_distance > by_reconstruction + 0.03
    for name in ("ssh_guessing", "ftp_guessing"):
        assert names["areas"][name][0] > names["areas"][name][1]


def explain_an_alarm(names):
    views = {kind: [reason.view for reason in reasons] for kind, (_, _, reasons) in names["found"].items()}
    assert views["dns_tunnel"][0] == views["injection"][0] == "requests"
    assert views["ssh_guessing"] == ["content"]
    assert names["reason"].packet == 0  # the request, where the injection is


def false_alarm_rate(names):
    at = names["rates"].index(0.01)
    assert names["learned"][at] > 0.03
    assert names["blocks"][at] < 0.01
    assert names["low"][at] < names["calibrated"][at] < names["high"][at]


def several_views(names):
    recall = dict(zip(names["names"], names["recall"].mean(axis=0), strict=True))
    together = recall.pop("together")
    assert together > 0.7
    assert max(recall.values()) < 0.5
    assert (names["recall"][names["kinds"].index("beacon_tls")] < 0.1).all()


def drift(names):
    last = {name: path[-1, 1] for name, path in names["evidence"].items()}
    assert last.pop("another network") > np.log(100)
    assert max(last.values()) < 0


CLAIMS = {
    "plot_01_first_detection": first_detection,
    "plot_02_pipeline_from_pcap": pipeline_from_pcap,
    "plot_03_lambda_grid_search": lambda_grid_search,
    "plot_04_other_detectors": other_detectors,
    "plot_05_feature_space": feature_space,
    "plot_06_scores_by_kind": scores_by_kind,
    "plot_07_explain_an_alarm": explain_an_alarm,
    "plot_08_false_alarm_rate": false_alarm_rate,
    "plot_09_several_views": several_views,
    "plot_10_drift": drift,
}


def test_every_script_of_the_gallery_is_short_and_held_to_what_it_claims():
    scripts = {path.stem: path for path in EXAMPLES.glob("plot_*.py")}
    assert set(scripts) == set(CLAIMS)
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 100 for path in scripts.values())


@pytest.mark.parametrize("name", CLAIMS)
def test_a_story_of_the_gallery_ends_in_its_picture(name, tmp_path, monkeypatch):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("Agg")
    pyplot.close("all")  # what doctests have left open
    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.extend(pyplot.get_fignums()))
    try:
        names = runpy.run_path(str(EXAMPLES / f"{name}.py"))
        assert shown
        for number in shown:
            pyplot.figure(number).savefig(tmp_path / "picture.png")
            assert (tmp_path / "picture.png").stat().st_size > 10_000
    finally:
        pyplot.close("all")
    CLAIMS[name](names)
