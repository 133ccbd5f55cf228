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


def test_pipeline_example():
    assert 0 <= main_of("pipeline.py")(n_flows=30, max_epochs=2) <= 1


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


def test_grid_search_example():
    search = main_of("grid_search.py")(n_flows=20, max_epochs=1)
    assert len(search.cv_results_["params"]) == 8
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.n_normal_ == 20


def test_lambda_search_example_sees_no_attack_and_no_stand_in():
    search = main_of("lambda_search.py")(["--n-flows", "80", "--max-epochs", "1"])
    assert len(search.cv_results_["params"]) == 9
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    train, test = next(search.cv.split(np.zeros(680), np.repeat([1, -1], [80, 600])))
    assert (len(train), len(test)) == (40, 640)


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


def test_views_example_explains_and_draws_three_flows(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    options = ["--views", "requests", "novelty", "--output", str(tmp_path / "views.png")]
    reasons = main_of("views_of_a_flow.py")(options)
    assert [reason.view for reason in reasons["dns_tunnel"]] == ["requests"]
    assert "were never in a request to udp/53" in capsys.readouterr().out
    assert (tmp_path / "views.png").stat().st_size > 5000
