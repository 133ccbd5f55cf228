"""The examples run, small, and do what they say."""

import runpy
from pathlib import Path

import numpy as np

EXAMPLES = Path(__file__).parents[1] / "examples"


def main_of(name):
    return runpy.run_path(str(EXAMPLES / name))["main"]


def test_pipeline_example():
    assert 0 <= main_of("pipeline.py")(n_flows=30, max_epochs=2) <= 1


def test_grid_search_example():
    search = main_of("grid_search.py")(n_flows=20, max_epochs=1)
    assert len(search.cv_results_["params"]) == 8
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.n_normal_ == 20
