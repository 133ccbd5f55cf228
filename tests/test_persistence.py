"""Model files: bit-equal round trips, and nothing executed or believed from a hostile file."""

import copy
import hashlib
import json
import os
import pickle
import shutil
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from office import burst, capture_of, office
from sklearn.ensemble import IsolationForest
from sklearn.pipeline import Pipeline

from sklearn_docids import (
    AutoencoderDetector,
    ConvAutoencoderDetector,
    DOCIDSDetector,
    FlowSampler,
    MultiViewDetector,
    load_detector,
    save_detector,
)
from sklearn_docids.exceptions import ModelFileError

rng = np.random.default_rng(0)
X = rng.integers(0, 256, (30, 12), dtype=np.uint8)
REFERENCE = rng.integers(0, 256, (20, 12), dtype=np.uint8), np.arange(20) % 2


VIEWS = ("bytes", "statistics", "requests", "novelty", "content")
VIEW_SAMPLER = FlowSampler(2, 24, layout="payload", output="flows")


@pytest.fixture(scope="module")
def captures(tmp_path_factory):
    """Return a capture to train on, and one of other flows, with guesses among them."""
    folder = tmp_path_factory.mktemp("office")
    (folder / "train").write_bytes(capture_of(office(120, 0)))
    (folder / "test").write_bytes(capture_of([*office(20, 1, 400), *burst(20, 1200.0)]))
    return folder / "train", folder / "test"


@pytest.fixture(scope="module")
def tables(captures):
    return tuple(map(VIEW_SAMPLER.transform, captures))


def fitted_views(train, views=VIEWS[1:], **parameters):
    detector = MultiViewDetector(
        views=views, detector=DOCIDSDetector(max_epochs=1), false_alarm_rate=0.05, random_state=0, **parameters
    )
    reference = (train, np.where(train.dst_port == 80, "web", "dns")) if "bytes" in views else None
    return detector.fit(train, reference=reference)


@pytest.fixture(scope="module")
def views_detector(tables):
    """Return a detector of the four views without a network."""
    return fitted_views(tables[0])


@pytest.fixture(scope="module")
def views_model(tmp_path_factory, views_detector):
    """Return its file, with the sampler."""
    path = tmp_path_factory.mktemp("views") / "model"
    save_detector(views_detector, path, sampler=VIEW_SAMPLER)
    return path


@pytest.fixture(scope="module")
def bytes_detector(tables):
    return fitted_views(tables[0], VIEWS)


@pytest.fixture(scope="module")
def bytes_model(tmp_path_factory, bytes_detector):
    path = tmp_path_factory.mktemp("views") / "model"
    save_detector(bytes_detector, path)
    return path


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
    seal = b'"sha256":"%s"'
    path.write_bytes(data.replace(seal % (b"0" * 64), seal % hashlib.sha256(data).hexdigest().encode(), 1))
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
    "offset beyond counting": ({"offset": 10**400}, "offset"),
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
def test_a_cut_file_is_refused(model, views_model, tmp_path, cut):
    for path in (model, views_model):
        (tmp_path / "m").write_bytes(path.read_bytes()[:cut])
        with pytest.raises(ValueError, match="not a usable DOC-IDS model"):
            load_detector(tmp_path / "m")


@pytest.mark.parametrize("kind", ["network", "views"])
def test_a_thousand_flipped_bits_are_refused(tmp_path, kind, views_model):
    if kind == "views":
        shutil.copy(views_model, tmp_path / "m")
    else:
        detector = DOCIDSDetector(max_epochs=1, lambda_descriptiveness=0, random_state=0).fit(X[:, :1])
        save_detector(detector, tmp_path / "m")
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
    MultiViewDetector: {
        "views", "detector", "false_alarm_rate", "calibration", "calibration_share", "power", "random_state", "verbose",
    },
    FlowSampler: {
        "n_packets", "n_bytes", "layout", "bidirectional", "idle_timeout", "active_timeout", "tcp_restart", "protocols",
        "midstream", "rotated", "tunnels", "tunnel_endpoints", "vxlan_ports", "duplicate_window", "duplicate_seconds",
        "duplicate_ignore_ttl", "reorder_window", "fields", "on_error", "max_live_flows", "random_state", "output",
        "verbose",
    },
}  # fmt: skip
OF_THE_MACHINE = {"callbacks", "checkpoint_folder", "device", "n_jobs"}


def config_of(path):
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["docids"])


def test_every_parameter_belongs_to_the_model_or_to_the_machine(tmp_path, views_model):
    """Whoever adds a parameter says which: what belongs to the machine is not stored, and refused in a file."""
    stored = {MultiViewDetector: set(config_of(views_model)["parameters"])}
    for made_by in set(OF_THE_MODEL) - {FlowSampler, MultiViewDetector}:
        save_detector(
            made_by(max_epochs=1, random_state=0).fit(X, reference=REFERENCE), tmp_path / "m", FlowSampler(2, 6)
        )
        config = config_of(tmp_path / "m")
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
    with pytest.raises(ImportError, match="to_onnx needs the package onnx: pip install onnx"):
        detector.to_onnx(tmp_path / "m.onnx")


# --------------------------------------------------------------------------------------------------------------------
# Several views


@pytest.mark.parametrize("which", ["bytes", "views"])
def test_loaded_views_score_bit_for_bit_alike(which, tables, request):
    detector = request.getfixturevalue(f"{which}_detector")
    loaded = load_detector(request.getfixturevalue(f"{which}_model"))
    _, test = tables
    np.testing.assert_array_equal(loaded.score_samples(test), detector.score_samples(test))
    np.testing.assert_array_equal(loaded.p_values(test), detector.p_values(test))
    np.testing.assert_array_equal(loaded.calibration_scores_, detector.calibration_scores_)
    assert loaded.explain(test) == detector.explain(test)
    assert (loaded.view_names_, loaded.offset_) == (detector.view_names_, detector.offset_)
    assert repr(loaded) == repr(detector)
    assert any(tails.of_group for tails in loaded._tails)
    streams = loaded.stream(), detector.stream()
    for part in (test[:25], test[25:]):
        np.testing.assert_array_equal(*(stream.score_samples(part) for stream in streams))


def test_the_network_of_a_view_is_stored_as_any_other(bytes_detector, bytes_model, tables):
    loaded, (_, test) = load_detector(bytes_model), tables
    assert loaded.detector_.sampler_ is None
    assert loaded.detector_.get_params() == bytes_detector.detector_.get_params()
    np.testing.assert_array_equal(
        loaded.detector_.score_samples(test.X), bytes_detector.detector_.score_samples(test.X)
    )
    assert loaded.detector.get_params() == bytes_detector.detector.get_params()


def test_saving_loaded_views_writes_the_same(bytes_model, views_model, tmp_path):
    for path in (bytes_model, views_model):
        save_detector(load_detector(path), tmp_path / "again")
        assert config_of(tmp_path / "again") == config_of(path)
        tensors, again = (safetensors.torch.load_file(name) for name in (path, tmp_path / "again"))
        assert tensors.keys() == again.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())


def test_views_of_rows_of_packets_are_saved(tmp_path, captures):
    sampler = FlowSampler(2, 40)
    train, test = map(sampler.flows, captures)
    detector = fitted_views(train, ("bytes", "novelty"), power=2.0, calibration="later", calibration_share=0.5)
    save_detector(detector, tmp_path / "m", sampler)
    loaded = load_detector(tmp_path / "m")
    np.testing.assert_array_equal(loaded.score_samples(test), detector.score_samples(test))
    assert loaded.explain(test) == detector.explain(test)


def test_views_left_out_for_want_of_a_reference_stay_out(tmp_path, tables):
    train, test = tables
    with pytest.warns(UserWarning, match="left out"):
        detector = MultiViewDetector(views=["bytes", "statistics"], false_alarm_rate=0.05, random_state=0).fit(train)
    save_detector(detector, tmp_path / "m")
    loaded = load_detector(tmp_path / "m")
    assert (loaded.views, loaded.view_names_, loaded.detector) == (("bytes", "statistics"), ["statistics"], None)
    np.testing.assert_array_equal(loaded.score_samples(test), detector.score_samples(test))


def test_a_fit_forgets_the_sampler_that_views_came_with(views_model, tables):
    loaded = load_detector(views_model)
    assert loaded.sampler_.get_params() == VIEW_SAMPLER.get_params()
    assert loaded.fit(tables[0]).sampler_ is None


def test_a_pipeline_of_views_comes_back_as_one(tmp_path, captures):
    train, test = captures
    detector = MultiViewDetector(views=("novelty", "content"), false_alarm_rate=0.05, random_state=0)
    pipeline = Pipeline([("flows", VIEW_SAMPLER), ("views", detector)]).fit(train)
    save_detector(pipeline, tmp_path / "m")
    loaded = load_detector(tmp_path / "m")
    assert list(loaded.named_steps) == ["flows", "views"]
    assert loaded[-1].sampler_ is loaded[0]
    np.testing.assert_array_equal(loaded.score_samples(test), pipeline.score_samples(test))
    rows = Pipeline([("flows", FlowSampler(2, 24, layout="payload")), ("views", pipeline[-1])])
    with pytest.raises(ValueError, match="needs a sampler with output='flows'"):
        save_detector(rows, tmp_path / "m")
    path = rewritten(tmp_path / "m", tmp_path / "rows", lambda config: config["sampler"].update(output="rows"))
    with pytest.raises(ModelFileError, match="needs a sampler with output='flows'"):
        load_detector(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_packets": 3}, "the sampler makes rows of 72 columns, the detector takes 48"),
        ({"layout": "packets"}, "the sampler makes rows of layout='packets', the detector takes 'payload'"),
    ],
)
def test_a_sampler_of_other_rows_is_refused_beside_views(tmp_path, views_detector, views_model, change, message):
    sampler = FlowSampler(**{**VIEW_SAMPLER.get_params(), **change})
    with pytest.raises(ValueError, match=message):
        save_detector(views_detector, tmp_path / "m", sampler)
    path = rewritten(views_model, tmp_path / "m", lambda config: config["sampler"].update(change))
    with pytest.raises(ModelFileError, match=message):
        load_detector(path)


def test_a_view_of_ones_own_is_not_saved(tmp_path, tables):
    own = ("forest", IsolationForest(n_estimators=5), ["payload_backward"])
    detector = MultiViewDetector(views=("novelty", own), false_alarm_rate=0.05, random_state=0).fit(tables[0])
    with pytest.raises(TypeError, match=r"the views forest are detectors of your own, .* fit with views of bytes"):
        save_detector(detector, tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_a_network_of_ones_own_is_not_saved(tmp_path, views_detector):
    class Other(DOCIDSDetector):
        pass

    detector = copy.copy(views_detector).set_params(detector=Other())
    with pytest.raises(TypeError, match="the network of 'bytes' is a Other, and a model file holds a DOCIDSDetector"):
        save_detector(detector, tmp_path / "m")


@pytest.mark.parametrize("changed", [{"power": 2.0}, {"views": ("novelty",)}])
def test_views_changed_after_fit_are_not_saved(tmp_path, views_detector, changed):
    detector = copy.copy(views_detector).set_params(**changed)
    with pytest.raises(ValueError, match=rf"\['{next(iter(changed))}'\] were changed after fit; fit again"):
        save_detector(detector, tmp_path / "m")


def test_views_that_could_not_be_loaded_are_not_saved(tmp_path, views_detector):
    detector = copy.deepcopy(views_detector)
    detector._views[0].spread[0] = 1e-40
    with pytest.raises(ModelFileError, match=r"this detector cannot be saved: .*statistics\.spread holds numbers"):
        save_detector(detector, tmp_path / "m")
    assert os.listdir(tmp_path) == []


def parameters(**changes):
    return lambda config: config["parameters"].update(changes)


def fields(**changes):
    return lambda config: config.update(changes)


def array(name, *description):
    return lambda config: config["arrays"].update({name: list(description)})


def of_calibration(name, *description):
    return lambda config: config["calibrations"][0]["arrays"].update({name: list(description)})


def tensor_of(name):
    """Return the name of the tensor of an array: of a view, or of the first calibration."""
    is_of_calibration = name.split(".")[-1] in ("scores", "thinned", "tails", "tail_scores")
    return f"calibrations.0.{name}" if is_of_calibration else f"arrays.{name}"


def without(place, name):
    return lambda config: (config[place] if place else config).pop(name)


HOSTILE_VIEWS = {
    "unknown key": (fields(code="import os"), "other keys"),
    "no layout": (without("", "layout"), "other keys"),
    "key of the frame missing": (without("", "steps"), "other keys"),
    "other estimator": (fields(estimator="DOCIDSDetector"), "other keys"),
    "parameters no object": (fields(parameters=[]), "parameters"),
    "views missing": (without("parameters", "views"), "parameters"),
    "views of no name": (parameters(views=[]), "parameters"),
    "views twice": (parameters(views=["novelty", "novelty"]), "parameters"),
    "views nested": (parameters(views=[["forest", "IsolationForest", ["ttl"]]]), "parameters"),
    "views a string": (parameters(views="novelty"), "parameters"),
    "views unknown": (parameters(views=["os.system"]), "parameters"),
    "views of another number": (parameters(views=["novelty"]), "arrays are not those of its views"),
    "only a view without its network": (parameters(views=["bytes"]), "network does not fit"),
    "power below 1": (parameters(power=0.5), "refuses its parameters.*power"),
    "power too large": (parameters(power=10**30), "too large"),
    "power a string": (parameters(power="2"), "refuses its parameters.*power"),
    "detector no object": (parameters(detector="DOCIDSDetector"), "parameters of DOCIDSDetector"),
    "detector of unknown parameters": (parameters(detector={"command": "x"}), "DOCIDSDetector refuses"),
    "detector of a machine": (parameters(detector={"checkpoint_folder": "/tmp"}), "belong to one machine"),
    "jobs": (parameters(n_jobs=99), "belong to one machine"),
    "calibration unknown": (parameters(calibration="none"), "refuses its parameters.*calibration"),
    "width 0": (fields(n_columns=0), "n_columns"),
    "width huge": (fields(n_columns=2**16 + 1), "n_columns"),
    "width no number": (fields(n_columns=None), "n_columns"),
    "width a boolean": (fields(n_columns=True), "n_columns"),
    "width of another sampler": (fields(n_columns=49), "rows of 48 columns"),
    "layout unknown": (fields(layout="bits"), "layout"),
    "layout no string": (fields(layout=["payload"]), "layout"),
    "layout of packets": (fields(layout="packets"), "layout.*needs payload rows"),
    "offset a string": (fields(offset="0"), "offset"),
    "offset none": (fields(offset=None), "offset"),
    "offset beyond counting": (fields(offset=10**400), "offset"),
    "network no object": (fields(network=[]), "network"),
    "network that is none": (fields(network={}), "other keys"),
    "arrays no object": (fields(arrays=[]), "arrays"),
    "array missing": (without("arrays", "novelty.salt"), "arrays are not those of its views"),
    "array more": (array("novelty.more", "F64", 1), "arrays are not those of its views"),
    "array of another type": (array("novelty.salt", "F64", 11, 8), "'arrays.novelty.salt'"),
    "array of an unknown type": (array("novelty.salt", "I64", 11, 8), "'arrays.novelty.salt'"),
    "array of a nested type": (array("novelty.salt", ["U8"], 11, 8), "'arrays.novelty.salt'"),
    "array of no type": (array("novelty.salt"), "'arrays.novelty.salt'"),
    "array of more dimensions": (array("statistics.mean", "F64", 9, 1), "'arrays.statistics.mean'"),
    "array beyond counting": (of_calibration("scores", "F64", 2**40), "'arrays.scores'"),
    "array of negative size": (of_calibration("scores", "F64", -1), "'arrays.scores'"),
    "array of a size that is none": (of_calibration("scores", "F64", "9"), "'arrays.scores'"),
    "empty array": (of_calibration("scores", "F64", 0), "'arrays.scores'"),
    "array larger than the file": (array("statistics.places", "F64", 10_000, 9), "tensor"),
    "salt too short": (array("novelty.salt", "U8", 10, 8), "'arrays.novelty.salt'"),
    "bits of another size": (array("requests.seen", "U8", 2, 8191), "'arrays.requests.seen'"),
    "services beyond counting": (array("requests.seen", "U8", 10**6, 8192), "'arrays.requests.seen'"),
    "more clusters": (array("content.centers", "F64", 4, 41, 1024), "'arrays.content.centers'"),
    "more clusterings": (array("content.centers", "F64", 5, 7, 1024), "'arrays.content.centers'"),
    "more half-lives": (array("content.half_lives", "F64", 10**6), "'arrays.content.half_lives'"),
    "more neighbours": (array("statistics.places", "F64", 20_001, 9), "'arrays.statistics.places'"),
    "tails of other columns": (of_calibration("novelty.tails", "F64", 1, 5), "'arrays.novelty.tails'"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE_VIEWS.values(), ids=HOSTILE_VIEWS)
def test_a_config_of_views_that_does_not_fit_is_refused(views_model, tmp_path, change, message):
    path = rewritten(views_model, tmp_path / "m", lambda config: change(config) and None)
    with pytest.raises(ModelFileError, match=f"m: not a usable DOC-IDS model: .*({message})"):
        load_detector(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fields(network=None), "arrays are not those"),
        (parameters(views=["statistics", "requests", "novelty", "content"]), "network does not fit its views"),
        (lambda config: config["network"].update(n_features_in=47), "rows of another width"),
        (lambda config: config["network"].update(classes=["a", "b", "c"]), "tensor"),
        (lambda config: config["network"].update(estimator="AutoencoderDetector"), "other keys"),
        (lambda config: config["network"].update(offset=None), "offset"),
        (lambda config: config["network"]["parameters"].update(device="cuda"), "belong to one machine"),
        (lambda config: config["network"]["arrays"].clear(), "tensors"),
        (array("bytes.beginnings", "U8", 120, 2**16), "'arrays.bytes.beginnings'"),
    ],
)
def test_a_network_that_does_not_fit_its_view_is_refused(bytes_model, tmp_path, change, message):
    path = rewritten(bytes_model, tmp_path / "m", lambda config: change(config) and None)
    with pytest.raises(ModelFileError, match=message):
        load_detector(path)


UNUSABLE = (None, -1, "x", [], {})


def places_of(value, place=()):
    """Return where the values of a config are, nested ones too."""
    nested = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for name, item in nested for found in places_of(item, (*place, name)))]


def test_whatever_stands_in_a_field_is_refused_or_scores(tmp_path, tables):
    """Of a small file, each field in turn has a strange value: an error says so, or the detector scores."""
    test, n_refused = tables[1][:5], 0
    save_detector(fitted_views(tables[0], ("novelty", "statistics")), tmp_path / "small", VIEW_SAMPLER)
    for place in places_of(config_of(tmp_path / "small"))[1:]:
        for value in UNUSABLE:

            def change(config, place=place, value=value):
                for name in place[:-1]:
                    config = config[name]
                config[place[-1]] = value

            path = rewritten(tmp_path / "small", tmp_path / "m", change)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # other versions
                try:
                    loaded = load_detector(path)
                except ModelFileError:
                    n_refused += 1
                else:
                    assert not np.isnan(loaded.score_samples(test)).any(), (place, value)
    assert n_refused > 200


def put(name, value, *place):
    def change(tensors):
        tensors[tensor_of(name)][place] = value

    return change


def swapped(name):
    def change(tensors):
        tensors[tensor_of(name)] = tensors[tensor_of(name)].flip(0).contiguous()

    return change


HOSTILE_ARRAYS = {
    "calibration scores above 0": (put("scores", 1.0, 0), "scores holds numbers out"),
    "no number": (put("scores", float("nan"), 0), "NaN or infinity"),
    "negative spread": (put("statistics.spread", -1.0, 0), "statistics.spread holds numbers out"),
    "spread 0": (put("statistics.spread", 0.0, 0), "statistics.spread holds numbers out"),
    "mean of no statistic": (put("statistics.mean", 1e9, 0), "statistics.mean holds numbers out"),
    "places too large": (put("statistics.places", 1e200, 0, 0), "statistics.places holds numbers out"),
    "places of no statistic": (put("statistics.places", 1e9, 0, 0), "statistics are not those of flows"),
    "services not sorted": (swapped("requests.services"), "services holds numbers that are not whole, asc"),
    "services with fractions": (put("requests.services", 0.5, 0), "services holds numbers that are not whole"),
    "services of no protocol": (put("requests.services", 2.0**24, -1), "requests.services holds numbers out"),
    "hashes not sorted": (swapped("novelty.channels"), "of 'novelty', channels holds hashes"),
    "hashes twice": (put("novelty.destinations", 7), "of 'novelty', destinations holds hashes"),
    "half-life 0": (put("content.half_lives", 0.0, 0), "content.half_lives holds numbers out"),
    "centers far off": (put("content.centers", 1e9, 0, 0, 0), "content.centers holds numbers out"),
    "negative counts": (put("content.most", -1.0, 0, 0, 0, 0), "content.most holds numbers out"),
    "counts beyond counting": (put("content.most", 1e9, 0, 0, 0, 0), "content.most holds numbers out"),
    "scores of a tail not sorted": (swapped("statistics.tail_scores"), "scores of a tail are not sorted"),
    "tail of all flows missing": (put("novelty.tails", 0.0, 0, 0), "tails are of unknown groups"),
    "group of no protocol": (put("requests.tails", 2.0**25, -1, 0), "tails are of unknown groups"),
    "groups not whole": (put("requests.tails", 0.5, -1, 0), "groups of tails holds numbers that are not whole"),
    "groups not sorted": (put("requests.tails", -1.0, -1, 0), "groups of tails holds numbers that are not whole"),
    "tail of no score": (put("novelty.tails", 0.0, 0, 1), "another number of scores than there are"),
    "tail of more scores": (put("novelty.tails", 1e99, 0, 1), "another number of scores than there are"),
    "tail of a part of a score": (put("requests.tails", 0.5, 0, 1), "another number of scores than there are"),
    "tail of fewer scores": (put("novelty.tails", 1.0, 0, 2), "impossible numbers of scores"),
    "tail of a fraction of scores": (put("novelty.tails", 200.5, 0, 2), "impossible numbers of scores"),
    "tail beyond counting": (put("novelty.tails", 1e99, 0, 2), "impossible numbers of scores"),
    "scale 0": (put("novelty.tails", 0.0, 0, 3), "the scale of a tail is too small"),
    "negative scale": (put("novelty.tails", -1.0, 0, 3), "the scale of a tail is too small"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE_ARRAYS.values(), ids=HOSTILE_ARRAYS)
def test_what_no_view_learns_is_refused(views_model, tmp_path, change, message):
    with pytest.raises(ModelFileError, match=f"m: not a usable DOC-IDS model: .*{message}"):
        load_detector(rewritten(views_model, tmp_path / "m", change_tensors=change))


def resized(name, n_rows, axis=0):
    """Return changes of a config and of tensors: fewer rows of one array."""

    def change_config(config):
        is_of_view = tensor_of(name).startswith("arrays.")
        (config if is_of_view else config["calibrations"][0])["arrays"][name][1 + axis] = n_rows

    def change_tensors(tensors):
        tensors[tensor_of(name)] = tensors[tensor_of(name)].narrow(axis, 0, n_rows).contiguous()

    return change_config, change_tensors


@pytest.mark.parametrize(
    ("which", "name", "axis", "message"),
    [
        ("views", "requests.seen", 0, "services and seen are of different services"),
        ("views", "content.most", 0, "centers, most and half_lives are of different clusterings"),
        ("views", "content.centers", 1, "centers, most and half_lives are of different clusterings"),
        ("views", "content.half_lives", 0, "centers, most and half_lives are of different clusterings"),
        ("views", "content.tail_scores", 0, "another number of scores than there are"),
        ("bytes", "bytes.beginnings", 0, "places and beginnings are not of the same flows"),
        ("bytes", "bytes.places", 1, "or of another network"),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(request, tmp_path, which, name, axis, message):
    path = rewritten(request.getfixturevalue(f"{which}_model"), tmp_path / "m", *resized(name, 1, axis))
    with pytest.raises(ModelFileError, match=message):
        load_detector(path)


def test_the_largest_numbers_that_a_file_may_hold_give_scores(views_model, tmp_path, tables):
    def change(tensors):
        tensors["arrays.statistics.spread"][:] = 1e-30
        tensors["arrays.content.centers"][:] = 2
        for view in VIEWS[1:]:
            tensors[f"calibrations.0.{view}.tails"][:, 3] = 1e-150
            tensors[f"calibrations.0.{view}.tail_scores"][:] = -1e100

    loaded = load_detector(rewritten(views_model, tmp_path / "m", change_tensors=change))
    assert np.isfinite(loaded.score_samples(tables[1])).all()
    assert len(loaded.explain(tables[1])) == len(tables[1])


def test_weights_of_no_use_are_named_where_a_view_scores(bytes_model, tmp_path, tables):
    def change(tensors):
        tensors["bytes.network.h_c.weight"][:] = 3e38

    loaded = load_detector(rewritten(bytes_model, tmp_path / "m", change_tensors=change))
    with pytest.raises(ValueError, match="the view 'bytes': class scores are not finite"):
        loaded.score_samples(tables[1])


def test_a_negative_variance_in_a_view_is_refused(bytes_model, tmp_path):
    def change(tensors):
        tensors["bytes.network.g.2.running_var"][0] = -1

    with pytest.raises(ModelFileError, match="running variance"):
        load_detector(rewritten(bytes_model, tmp_path / "m", change_tensors=change))
