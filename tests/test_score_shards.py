# SPDX-License-Identifier: BSD-3-Clause
"""Scores of shards: those that each shard has by itself, whoever computes them."""

import joblib
import numpy as np
import pytest
from office import capture_of, office

from sklearn_docids import AutoencoderDetector, FlowSampler, MultiViewDetector, load_detector, save_detector
from sklearn_docids.capture import FlowTable
from sklearn_docids.evaluation import score_shards
from sklearn_docids.exceptions import ModelFileError

SAMPLER = FlowSampler(layout="payload", output="flows")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with captures, one of which has no flow, their shards and models."""
    folder = tmp_path_factory.mktemp("score")
    captures = [folder / f"{day}.pcap" for day in ("mon", "tue", "wed")]
    for seed, capture in enumerate(captures):
        capture.write_bytes(capture_of(office(300 if seed != 1 else 0, seed)))
    for kind in ("npy", "parquet"):
        SAMPLER.write(captures, folder / kind, shards=kind)
    flows = SAMPLER.flows(captures[0])
    views = MultiViewDetector(
        views=("statistics", "requests", "novelty", "content"), false_alarm_rate=0.05, random_state=0
    )
    save_detector(views.fit(flows), folder / "views", SAMPLER)
    save_detector(AutoencoderDetector(max_epochs=1, random_state=0).fit(flows.X), folder / "network", SAMPLER)
    return folder


@pytest.mark.parametrize("kind", ["npy", "parquet"])
@pytest.mark.parametrize("model", ["views", "network"])
def test_each_shard_is_scored_by_itself(folder, kind, model):
    detector, flows = load_detector(folder / model), FlowTable.load(folder / kind)
    expected = [
        detector.score_samples(some if model == "views" else some.X)
        for some in (flows[flows.capture == number] for number in (0, 2))
    ]
    found = score_shards(folder / model, folder / kind, n_jobs=2)
    np.testing.assert_array_equal(found, np.concatenate(expected))
    assert found.dtype == np.float64


def test_other_processes_give_the_same(folder):
    expected = score_shards(folder / "views", folder / "npy")
    with joblib.parallel_config("loky", n_jobs=2):
        np.testing.assert_array_equal(score_shards(folder / "views", folder / "npy"), expected)


def test_what_cannot_be_scored_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"holds no shards: FlowSampler\.write makes them"):
        score_shards(folder / "views", tmp_path)
    with pytest.raises(ModelFileError, match=r"mon\.pcap"):
        score_shards(folder / "mon.pcap", folder / "npy")
    SAMPLER.write([folder / "mon.pcap"], tmp_path / "s", shards="parquet")
    (shard,) = (tmp_path / "s").glob("*.parquet")
    shard.unlink()
    with pytest.raises(ValueError, match="1 of 1 shards are missing, the first is mon-"):
        score_shards(folder / "views", tmp_path / "s")
