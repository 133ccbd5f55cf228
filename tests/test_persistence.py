"""Model files: bit-equal round trips, and nothing executed or believed from a hostile file."""

import hashlib
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.pipeline import Pipeline

from sklearn_docids import (
    AutoencoderDetector,
    ConvAutoencoderDetector,
    DOCIDSDetector,
    FlowSampler,
    load_detector,
    save_detector,
)
from sklearn_docids.exceptions import ModelFileError

rng = np.random.default_rng(0)
X = rng.integers(0, 256, (30, 12), dtype=np.uint8)
REFERENCE = rng.integers(0, 256, (20, 12), dtype=np.uint8), np.arange(20) % 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model"
    detector = DOCIDSDetector(max_epochs=1, random_state=0).fit(X, reference=REFERENCE)
    save_detector(detector, path, sampler=FlowSampler(2, 6, fields={"ttl": "zero"}))
    return path


@pytest.mark.parametrize(
    "parameters", [{}, {"score_method": "reconstruction"}, {"dense_activation": "relu", "batch_norm": "target"}]
)
@pytest.mark.parametrize("labels", [np.arange(20) % 2, np.array(["dns", "tls"] * 10), np.array([True, False] * 10)])
def test_a_loaded_detector_scores_bit_for_bit_alike(tmp_path, parameters, labels):
    detector = DOCIDSDetector(max_epochs=1, random_state=0, **parameters).fit(X, reference=(REFERENCE[0], labels))
    save_detector(detector, tmp_path / "model")
    loaded = load_detector(tmp_path / "model")
    assert (loaded.score_samples(X) == detector.score_samples(X)).all()
    assert (loaded.predict(X) == detector.predict(X)).all()
    assert loaded.get_params() == detector.get_params()
    assert loaded.history_ == detector.history_
    assert (loaded.offset_, loaded.n_iter_, loaded.n_features_in_) == (detector.offset_, 1, 12)
    assert (loaded.reference_classes_ == detector.reference_classes_).all()
    assert loaded.sampler_ is None


def test_a_detector_without_reference_is_saved_too(tmp_path):
    detector = DOCIDSDetector(max_epochs=1, lambda_descriptiveness=0).fit(X)
    save_detector(detector, tmp_path / "model")
    assert load_detector(tmp_path / "model").reference_classes_ is None


def test_the_sampler_travels_with_the_model(model):
    assert load_detector(model).sampler_.get_params() == FlowSampler(2, 6, fields={"ttl": "zero"}).get_params()


def test_feature_names_travel_with_the_model(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=[f"b{i}" for i in range(12)])
    save_detector(DOCIDSDetector(max_epochs=1).fit(frame, reference=REFERENCE), tmp_path / "model")
    assert load_detector(tmp_path / "model").feature_names_in_.tolist() == list(frame.columns)


def test_a_generator_as_random_state_is_not_stored(tmp_path):
    detector = DOCIDSDetector(max_epochs=1, random_state=np.random.RandomState(0)).fit(X, reference=REFERENCE)
    save_detector(detector, tmp_path / "model")
    assert load_detector(tmp_path / "model").random_state is None


def test_whole_floats_as_labels_are_integers(tmp_path):
    detector = DOCIDSDetector(max_epochs=1).fit(X, reference=(REFERENCE[0], np.arange(20) % 2 / 1))
    save_detector(detector, tmp_path / "model")
    assert load_detector(tmp_path / "model").reference_classes_.tolist() == [0, 1]


@pytest.mark.parametrize(("labels", "message"), [(["a" * 1025, "b"] * 10, "classes"), (None, "NaN or infinity")])
def test_what_could_not_be_loaded_is_not_saved(tmp_path, labels, message):
    reference = REFERENCE if labels is None else (REFERENCE[0], labels)
    detector = DOCIDSDetector(max_epochs=1).fit(X, reference=reference)
    if labels is None:
        detector.network_.g[2].running_var[0] = np.inf
    with pytest.raises(ValueError, match=f"this detector cannot be saved: .*{message}"):
        save_detector(detector, tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_a_long_history_is_cut_to_its_end(tmp_path):
    detector = DOCIDSDetector(max_epochs=1, random_state=0).fit(X, reference=REFERENCE)
    detector.history_ = [{**detector.history_[0], "epoch": n} for n in range(1, 20_001)]
    detector.n_iter_ = 20_000
    save_detector(detector, tmp_path / "model")
    loaded = load_detector(tmp_path / "model")
    assert (loaded.n_iter_, len(loaded.history_), loaded.history_[-1]["epoch"]) == (20_000, 5000, 20_000)
    loaded.partial_fit(X, reference=REFERENCE)
    assert (loaded.n_iter_, len(loaded.history_), loaded.history_[-1]["epoch"]) == (20_001, 5001, 20_001)


def test_links_modes_and_names_of_bytes_are_kept(model, tmp_path):
    detector = load_detector(model)
    save_detector(detector, os.fsencode(tmp_path / "model"))
    os.chmod(tmp_path / "model", 0o600)
    os.symlink(tmp_path / "model", tmp_path / "link")
    save_detector(detector, tmp_path / "link")
    assert os.path.islink(tmp_path / "link")
    assert os.stat(tmp_path / "model").st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError, match="exists and is not a file"):
        save_detector(detector, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["link", "model"]


def test_saving_replaces_a_model_as_a_whole(model, tmp_path):
    shutil.copy(model, tmp_path / "model")
    save_detector(DOCIDSDetector(max_epochs=2, random_state=0).fit(X, reference=REFERENCE), tmp_path / "model")
    assert load_detector(tmp_path / "model").n_iter_ == 2
    assert os.listdir(tmp_path) == ["model"]


def rewritten(model, path, change_config=lambda config: None, change_tensors=lambda tensors: None):
    """Write the model again with changes, and a checksum that fits them."""
    with safetensors.safe_open(model, "pt") as file:
        config = json.loads(file.metadata()["docids"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    text = change_config(config)
    change_tensors(tensors)
    if not isinstance(text, str):
        text = json.dumps(config)
    data = safetensors.torch.save(tensors, {"docids": text, "sha256": "0" * 64})
    path.write_bytes(data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1))
    return path


def test_another_version_warns(model, tmp_path):
    path = rewritten(model, tmp_path / "m", lambda c: c["versions"].update(sklearn_docids="0.0.1"))
    with pytest.warns(UserWarning, match=r"saved with sklearn_docids 0.0.1.*scores may differ"):
        load_detector(path)


def arrays(kind, n):
    """Return how a config describes templates and their flows."""
    return {"templates": ["F64", n, 2], "template_flows": [kind, n, 12]}


HOSTILE_CONFIGS = {
    "newer format": ({"format": 2}, "reads format 1"),
    "unknown key": ({"code": "import os"}, "other keys"),
    "other estimator": ({"estimator": "os.system"}, "estimator"),
    "unknown parameter": ({"parameters": {"command": "x"}}, "refuses its parameters"),
    "parameters no object": ({"parameters": 5}, "parameters"),
    "huge width": ({"n_features_in": 10**9}, "n_features_in"),
    "wide beyond counting": ({"n_features_in": 10**30}, "n_features_in"),
    "negative width": ({"n_features_in": -1}, "n_features_in"),
    "width a string": ({"n_features_in": "12"}, "n_features_in"),
    "offset beyond counting": ({"offset": 10**400}, ".*"),
    "device of another machine": ({"parameters": {"device": "cuda"}}, "belong to one machine"),
    "offset a string": ({"offset": "0"}, "offset"),
    "one class": ({"classes": [1]}, "classes"),
    "more classes": ({"classes": [1, 2, 3]}, "tensor"),
    "mixed classes": ({"classes": [1, "a"]}, "classes"),
    "nested classes": ({"classes": [[1], [2]]}, "classes"),
    "templates of another number": (
        {"arrays": {"templates": ["F64", 50, 2], "template_flows": ["U8", 50, 12]}},
        "tensor",
    ),
    "template flows of another type": (
        {"arrays": {"templates": ["F64", 14, 2], "template_flows": ["F64", 14, 12]}},
        "tensor",
    ),
    "arrays of an unknown type": ({"arrays": {"templates": ["F16", 14, 2]}}, "arrays"),
    "arrays beyond counting": ({"arrays": {"templates": ["F64", 2**40, 2]}}, "arrays"),
    "arrays without a network for them": ({"parameters": {"score_method": "reconstruction"}}, "arrays"),
    "no arrays": ({"arrays": {}}, "tensors|arrays"),
    "steps of one name": ({"steps": ["a", "a"]}, "steps"),
    "step with a parameter": ({"steps": ["a", "b__c"]}, "steps"),
    "pipeline without a sampler": ({"steps": ["a", "b"], "sampler": None}, "without a sampler"),
    "rows seen negative": ({"n_rows_seen": -1}, "n_rows_seen"),
    "history nested": ({"history": [{"epoch": [[]]}]}, "history"),
    "history of other keys": ({"history": [{"zz": 1.0}]}, "history"),
    "classes not sorted": ({"classes": [1, 0]}, "classes"),
    "classes twice": ({"classes": [1, 1]}, "classes"),
    "classes too large": ({"classes": [0, 2**64]}, "classes"),
    "scale too large": ({"parameters": {"scale": 10**29}}, "too large"),
    "split seed negative": ({"split_seed": -1}, "split_seed"),
    "history no list": ({"history": {}}, "history"),
    "interrupted no boolean": ({"interrupted": 1}, "interrupted"),
    "folder to write to": ({"parameters": {"checkpoint_folder": "/tmp"}}, "belong to one machine"),
    "names of other width": ({"feature_names_in": ["a"]}, "feature_names_in"),
    "sampler of other parameters": ({"sampler": {"path": "x"}}, "FlowSampler"),
    "sampler of wrong values": ({"sampler": {"n_packets": 0, "protocols": ["tcp"]}}, "FlowSampler"),
    "sampler of wrong fields": ({"sampler": {"fields": {"mac": "erase"}}}, "FlowSampler"),
    "rows no profile": ({"rows": None}, "rows"),
    "rows of an unknown frame": (
        {"rows": {"n_rows": 1, "values": "bytes", "frames": {"x": 1}, "fields": {}}},
        "rows",
    ),
    "sampler no object": ({"sampler": [1]}, "FlowSampler"),
    "negative epochs": ({"n_iter": -1}, "n_iter"),
    "versions no object": ({"versions": None}, "versions"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE_CONFIGS.values(), ids=HOSTILE_CONFIGS)
def test_a_config_that_does_not_fit_is_refused(model, tmp_path, change, message):
    path = rewritten(model, tmp_path / "m", lambda config: config.update(change))
    with pytest.raises(ValueError, match=f"m: not a usable DOC-IDS model: .*({message})"):
        load_detector(path)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "5", '{"format": 1, "format": 1}', '{"format": NaN}', "[" * 100_000, '{"format": ' + "9" * 5000 + "}"],
)
def test_a_config_that_is_not_a_plain_json_object_is_refused(model, tmp_path, text):
    with pytest.raises(ValueError, match="not a usable DOC-IDS model"):
        load_detector(rewritten(model, tmp_path / "m", lambda config: text))


def missing(tensors):
    del tensors["network.h_c.bias"]


def transposed(tensors):
    tensors["network.h_c.weight"] = tensors["network.h_c.weight"].T.contiguous()


def double(tensors):
    tensors["network.h_c.weight"] = tensors["network.h_c.weight"].double()


def nan(tensors):
    tensors["network.h_c.weight"][0, 0] = float("nan")


def extra(tensors):
    tensors["network.more"] = torch.zeros(1)


def negative_variance(tensors):
    tensors["network.g.2.running_var"][0] = -1


@pytest.mark.parametrize("change", [missing, transposed, double, nan, extra, negative_variance])
def test_tensors_that_do_not_fit_are_refused(model, tmp_path, change):
    with pytest.raises(ValueError, match=r"not a usable DOC-IDS model: .*(tensor|variance)"):
        load_detector(rewritten(model, tmp_path / "m", change_tensors=change))


def test_a_pickle_by_another_name_is_not_executed(tmp_path):
    class Canary:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    for name, data in {"pickle": pickle.dumps(Canary()), "short": b"", "text": b"hello world, no model"}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match="not a usable DOC-IDS model"):
            load_detector(tmp_path / name)
    torch.save({"a": Canary()}, tmp_path / "torch")
    with pytest.raises(ValueError, match="not a usable DOC-IDS model"):
        load_detector(tmp_path / "torch")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("length", [0, 2**63, 2**64 - 1, 10**9])
def test_a_header_length_that_lies_is_refused(model, tmp_path, length):
    (tmp_path / "m").write_bytes(length.to_bytes(8, "little") + model.read_bytes()[8:])
    with pytest.raises(ValueError, match="not a usable DOC-IDS model"):
        load_detector(tmp_path / "m")


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 500, -1])
def test_a_cut_file_is_refused(model, tmp_path, cut):
    (tmp_path / "m").write_bytes(model.read_bytes()[:cut])
    with pytest.raises(ValueError, match="not a usable DOC-IDS model"):
        load_detector(tmp_path / "m")


def test_a_thousand_flipped_bits_are_refused(tmp_path):
    save_detector(DOCIDSDetector(max_epochs=1, lambda_descriptiveness=0, random_state=0).fit(X[:, :1]), tmp_path / "m")
    data = bytearray((tmp_path / "m").read_bytes())
    n_header = 8 + int.from_bytes(data[:8], "little")
    places = np.random.default_rng(1).integers([0] * 500 + [n_header] * 500, [n_header] * 500 + [len(data)] * 500)
    for place in places:
        data[place] ^= 1 << (int(place) % 8)
        (tmp_path / "m").write_bytes(data)
        with pytest.raises(ValueError, match="not a usable DOC-IDS model"):
            load_detector(tmp_path / "m")
        data[place] ^= 1 << (int(place) % 8)


@pytest.mark.parametrize(
    "changed",
    [
        {"scale": 1.0},
        {"dense_activation": "relu"},
        {"score_method": "reconstruction"},
        {"batch_norm": "target"},
        {"n_neighbors": 9},
    ],
)
def test_parameters_changed_after_fit_are_not_saved(tmp_path, changed):
    detector = DOCIDSDetector(max_epochs=1).fit(X, reference=REFERENCE).set_params(**changed)
    with pytest.raises(ValueError, match=f"{next(iter(changed))}.*changed after fit"):
        save_detector(detector, tmp_path / "m")


def test_a_sampler_of_another_width_is_refused(model, tmp_path):
    detector = load_detector(model)
    with pytest.raises(ValueError, match="rows of 320 columns, the detector takes 12"):
        save_detector(detector, tmp_path / "m", sampler=FlowSampler())
    path = rewritten(model, tmp_path / "m", lambda c: c["sampler"].update(n_packets=1024))
    with pytest.raises(ValueError, match="rows of 6144 columns"):
        load_detector(path)


def test_a_subclass_is_not_saved_as_what_it_is_not(tmp_path):
    class Other(DOCIDSDetector):
        pass

    with pytest.raises(TypeError, match="not a subclass of them, Other"):
        save_detector(Other(max_epochs=1).fit(X, reference=REFERENCE), tmp_path / "m")


def test_settings_of_a_machine_do_not_travel(tmp_path):
    detector = AutoencoderDetector(max_epochs=1, device="cpu").fit(X)
    save_detector(detector, tmp_path / "m", FlowSampler(2, 6, n_jobs=2))
    loaded = load_detector(tmp_path / "m")
    assert (loaded.device, loaded.sampler_.n_jobs) == ("auto", None)


TRAINING = {
    "contamination", "false_alarm_rate", "validation_fraction", "max_epochs", "batch_size", "optimizer", "lr",
    "momentum", "weight_decay", "schedule", "scale", "early_stopping", "n_iter_no_change", "tol", "warm_start",
    "random_state", "verbose",
}  # fmt: skip
OF_THE_MODEL = {
    AutoencoderDetector: TRAINING,
    ConvAutoencoderDetector: TRAINING,
    DOCIDSDetector: TRAINING
    | {
        "lambda_descriptiveness", "lambda_compactness", "lambda_reconstruction", "score_method", "n_templates",
        "n_neighbors", "batch_norm", "dense_activation",
    },
    FlowSampler: {
        "n_packets", "n_bytes", "layout", "bidirectional", "idle_timeout", "active_timeout", "tcp_restart", "protocols",
        "midstream", "rotated", "tunnels", "tunnel_endpoints", "vxlan_ports", "duplicate_window", "duplicate_seconds",
        "duplicate_ignore_ttl", "reorder_window", "fields", "on_error", "max_live_flows", "random_state", "output",
        "verbose",
    },
}  # fmt: skip
OF_THE_MACHINE = {"callbacks", "checkpoint_folder", "device", "n_jobs"}


def test_every_parameter_belongs_to_the_model_or_to_the_machine(tmp_path):
    """Whoever adds a parameter says which: what belongs to the machine is not stored, and refused in a file."""
    stored = {}
    for made_by in set(OF_THE_MODEL) - {FlowSampler}:
        save_detector(
            made_by(max_epochs=1, random_state=0).fit(X, reference=REFERENCE), tmp_path / "m", FlowSampler(2, 6)
        )
        with safetensors.safe_open(tmp_path / "m", "pt") as file:
            config = json.loads(file.metadata()["docids"])
        stored |= {made_by: set(config["parameters"]), FlowSampler: set(config["sampler"])}
    assert stored == OF_THE_MODEL
    for cls, of_the_model in OF_THE_MODEL.items():
        assert set(cls().get_params()) - of_the_model <= OF_THE_MACHINE


@pytest.mark.parametrize("name", sorted(OF_THE_MACHINE))
@pytest.mark.parametrize("where", ["parameters", "sampler"])
def test_a_file_sets_nothing_of_the_machine(model, tmp_path, name, where):
    path = rewritten(model, tmp_path / "m", lambda config: config[where].update({name: None}))
    with pytest.raises(ModelFileError, match=rf"it sets \['{name}'\], which belong to one machine"):
        load_detector(path)


def test_a_small_file_cannot_ask_for_wide_rows(tmp_path):
    """The weights of the convolutional autoencoder do not depend on the width."""
    detector = ConvAutoencoderDetector(max_epochs=1, random_state=0).fit(X)
    save_detector(detector, tmp_path / "m")
    assert (tmp_path / "m").stat().st_size < 50_000
    for width in (2**16 + 1, 1024 * 65535):
        path = rewritten(tmp_path / "m", tmp_path / "wide", lambda c, width=width: c.update(n_features_in=width))
        with pytest.raises(ModelFileError, match="n_features_in"):
            load_detector(path)
    path = rewritten(tmp_path / "m", tmp_path / "wide", lambda c: c.update(n_features_in=2**16))
    assert load_detector(path).n_features_in_ == 2**16


def test_saving_rows_that_no_file_may_ask_for_is_refused(tmp_path):
    detector = ConvAutoencoderDetector(max_epochs=1, random_state=0).fit(X)
    detector.n_features_in_ = 2**16 + 1
    with pytest.raises(ModelFileError, match=r"this detector cannot be saved: .*'n_features_in'"):
        save_detector(detector, tmp_path / "m")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("offset", "'offset'"), ("n_iter", "'n_iter'"), ("split_seed", "'split_seed'"), ("classes", r"'classes\[1\]'"),
        ("parameters.lr", "'parameters.lr'"), ("parameters.scale", "'parameters.scale'"),
        ("sampler.idle_timeout", "'sampler.idle_timeout'"), ("rows.n_rows", "'rows.n_rows'"),
        ("history", r"'history\[1\]'"), ("versions.torch", "'versions.torch'"),
    ],
)  # fmt: skip
def test_a_number_that_is_none_is_refused_by_the_name_of_its_field(model, tmp_path, name, place, number):
    def change(config):
        *parents, last = name.split(".")
        for parent in parents:
            config = config[parent]
        config[last] = [config[last][0], "@"] if isinstance(config[last], list) else "@"

    def text(config):
        change(config)
        return json.dumps(config).replace('"@"', number)

    path = rewritten(model, tmp_path / "m", text)
    with pytest.raises(ModelFileError, match=f"its JSON holds (nan|-?inf) for {place}"):
        load_detector(path)


@pytest.mark.parametrize("name", ["network.h_c.weight", "arrays.templates", "network.g.2.running_var"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_tensor_with_a_number_that_is_none_is_refused_by_name(model, tmp_path, name, number):
    def change(tensors):
        tensors[name].view(-1)[-1] = number

    with pytest.raises(ModelFileError, match=f"tensor {name} holds NaN or infinity"):
        load_detector(rewritten(model, tmp_path / "m", change_tensors=change))


def test_a_loaded_model_that_is_saved_again_keeps_its_sampler(model, tmp_path):
    loaded = load_detector(model).partial_fit(X, reference=REFERENCE)
    save_detector(loaded, tmp_path / "again")
    again = load_detector(tmp_path / "again")
    assert again.sampler_.get_params() == FlowSampler(2, 6, fields={"ttl": "zero"}).get_params()
    assert (again.score_samples(X) == loaded.score_samples(X)).all()
    save_detector(again, tmp_path / "other", FlowSampler(1, 12))
    assert load_detector(tmp_path / "other").sampler_.n_packets == 1


def test_a_pipeline_comes_back_as_one(tmp_path, write):
    from captures import pcap, udp

    capture = write(pcap([udp(sport=1000 + i, payload=bytes([i]) * 30) for i in range(20)]))
    settings = {"lambda_descriptiveness": 0.0, "max_epochs": 1, "random_state": 0}
    pipeline = Pipeline([("rows", FlowSampler(2, 40)), ("net", DOCIDSDetector(**settings))]).fit([capture])
    save_detector(pipeline, tmp_path / "m")
    loaded = load_detector(tmp_path / "m")
    assert isinstance(loaded, Pipeline)
    assert list(loaded.named_steps) == ["rows", "net"]
    assert (loaded.score_samples([capture]) == pipeline.score_samples([capture])).all()
    assert loaded[-1].sampler_ is loaded[0]
    with pytest.raises(ValueError, match="sampler of its own"):
        save_detector(pipeline, tmp_path / "m", FlowSampler())
    for steps in ([("net", pipeline[-1])], [("a", "passthrough"), ("net", pipeline[-1])]):
        with pytest.raises(TypeError, match="two steps, a FlowSampler and a detector"):
            save_detector(Pipeline(steps), tmp_path / "m")


def test_labels_cannot_make_the_file_larger_in_memory_than_it_is(model, tmp_path):
    path = rewritten(model, tmp_path / "m", lambda c: c.update(classes=["x" * 30_000] + ["y"] * 20_000))
    with pytest.raises(ValueError, match="classes"):
        load_detector(path)


def test_a_missing_file_and_an_unfitted_detector_raise_the_usual_errors(tmp_path):
    from sklearn.exceptions import NotFittedError

    with pytest.raises(FileNotFoundError, match="nothing"):
        load_detector(tmp_path / "nothing")
    with pytest.raises(NotFittedError):
        save_detector(DOCIDSDetector(), tmp_path / "m")


@pytest.mark.parametrize("score_method", ["reconstruction", "knn"])
def test_an_onnx_graph_gives_the_same_scores(tmp_path, score_method):
    onnxruntime = pytest.importorskip("onnxruntime")
    detector = DOCIDSDetector(max_epochs=3, random_state=0, score_method=score_method).fit(X, reference=REFERENCE)
    detector.to_onnx(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    for n_rows in (1, 2, 30):
        (scores,) = session.run(None, {"flows": X[:n_rows]})
        assert scores.dtype == np.float32
        assert scores == pytest.approx(detector.score_samples(X[:n_rows]), rel=1e-4, abs=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert float(metadata["offset"]) == detector.offset_
    assert os.listdir(tmp_path) == ["m.onnx"]


def test_exporting_needs_the_extra(tmp_path, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    detector = DOCIDSDetector(max_epochs=1).fit(X, reference=REFERENCE)
    with pytest.raises(ImportError, match=r"to_onnx needs onnx: pip install 'sklearn-docids\[onnx\]'"):
        detector.to_onnx(tmp_path / "m.onnx")
