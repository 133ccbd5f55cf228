"""The package as a whole: light imports, one direction of imports, documented parameters, checked style."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
import venv
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import sklearn_docids
from sklearn_docids import (
    aggregation,
    detectors,
    evaluation,
    inspection,
    metrics,
    model_selection,
    monitoring,
    paper,
    persistence,
    plotting,
)
from sklearn_docids.capture.table import FlowTable
from sklearn_docids.datasets import (
    load_bos_2018,
    load_cic_ids_2017,
    load_class_folder,
    load_testbed,
    load_ustc_tfc2016,
    load_ustc_tk2016,
    make_traffic,
)

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sklearn_docids"


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import sklearn_docids", ["torch", "scapy", "matplotlib", "sklearn", "skorch", "numba", "numpy"]),
        ("import sklearn_docids.capture.flows", ["torch", "scapy", "sklearn", "skorch", "matplotlib"]),
        ("import sklearn_docids; sklearn_docids.FlowSampler", ["torch", "scapy", "skorch", "matplotlib"]),
        ("import sklearn_docids.cli", ["torch", "sklearn", "numba", "scapy"]),
        ("import sklearn_docids.aggregation, sklearn_docids.evaluation, sklearn_docids.metrics", ["torch", "skorch"]),
        ("import sklearn_docids.model_selection, sklearn_docids.inspection, sklearn_docids._thresholds", ["torch"]),
        ("from sklearn_docids.detectors import NearestNeighborDetector, SeedEnsemble, StatisticDetector", ["torch"]),
    ],
)
def test_an_import_loads_no_more_than_it_needs(statement, absent):
    loaded = run(f"import sys; {statement}; print([name for name in {absent} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_reading_captures_loads_no_scapy(write):
    from captures import pcap, udp

    path = write(pcap([udp()]))
    sampling = f"import sys; from sklearn_docids import FlowSampler; FlowSampler().transform({str(path)!r})"
    assert run(f"{sampling}; print('scapy' in sys.modules)").strip() == "False"


# Module -> modules of the package it may import. Whoever adds a name here widens the architecture.
LAYERS = {
    "": "_sampler _version detectors exceptions persistence",
    "__main__": "cli",
    "_alarms": "",
    "_alarms.alarm": "_text capture.table detectors",
    "_alarms.allow": "_alarms.names _warn capture.table",
    "_alarms.collect": (
        "_alarms.alarm _alarms.allow _alarms.findings _alarms.incidents _meta capture.table detectors monitoring"
    ),
    "_alarms.eve": "_alarms.alarm _alarms.zeek _text _views.payload capture.kernels capture.layouts capture.table",
    "_alarms.findings": "_alarms.alarm",
    "_alarms.incidents": "_alarms.alarm _incidents capture.kernels",
    "_alarms.names": "capture.layouts capture.table",
    "_alarms.packets": (
        "_alarms.pcapng _alarms.selection _sampler _scratch _warn capture.containers capture.flows "
        "capture.records capture.table exceptions"
    ),
    "_alarms.pcapng": "capture._native capture.records",
    "_alarms.selection": "capture._native capture.flows capture.hashing capture.headers capture.kernels",
    "_alarms.stored": "_alarms.allow _alarms.names",
    "_alarms.zeek": "capture.table",
    "_bases": "",
    "_incidents": "_thresholds _warn capture.table",
    "_measures": "_thresholds",
    "_meta": "",
    "_network": "",
    "_network.autoencoders": "_network.table1 _network.tensors",
    "_network.folding": "_network.table1",
    "_network.losses": "",
    "_network.onnx": "_network.scoring _warn",
    "_network.scoring": "_network.autoencoders _network.folding _network.table1 _network.tensors capture.lazy",
    "_network.table1": "_network.losses _network.tensors",
    "_network.tensors": "",
    "_provenance": "_sealed _views.payload capture.lazy capture.table",
    "_report": "",
    "_report.bytemap": "_meta _views.payload capture.layouts capture.table inspection",
    "_report.charts": "",
    "_report.evaluation": (
        "_alarms.alarm _report.page _report.render _text capture.counting capture.table evaluation plotting"
    ),
    "_report.page": (
        "_alarms.alarm _alarms.findings _report.bytemap _report.charts _report.render _text capture.counting "
        "capture.table"
    ),
    "_report.render": "_text _version",
    "_running": "_warn",
    "_sampler": (
        "_bases _running _text capture.containers capture.counting capture.fields capture.flows capture.layouts "
        "capture.shard_folders capture.sharding capture.table capture.writing exceptions"
    ),
    "_score_sketch": "_scratch _thresholds _warn",
    "_scratch": "",
    "_sealed": "",
    "_shard_scores": "_meta _running _scratch capture.shard_folders capture.table capture.writing persistence",
    "_stored": "",
    "_stored.calibrations": "_provenance _sealed _stored.parameters _views.arrays _views.tails detectors._calibration",
    "_stored.multiview": (
        "_sealed _stored.calibrations _stored.parameters _stored.trained _views.arrays _views.base _views.network "
        "capture.layouts detectors._docids detectors._multiview"
    ),
    "_stored.parameters": "_sealed",
    "_stored.summary": "_provenance _sealed _stored.calibrations _thresholds exceptions",
    "_stored.trained": "_sealed _stored.calibrations _stored.parameters detectors._profile detectors._trained",
    "_text": "",
    "_thinning": "_views.payload capture.table",
    "_thresholds": "",
    "_training": "",
    "_training.callbacks": "_training.net _training.pairs",
    "_training.checkpoint": "_sealed _training.callbacks _training.moments _training.net _warn capture.lazy",
    "_training.moments": "",
    "_training.net": "_network.losses _network.table1 _training.pairs",
    "_training.pairs": "_network.tensors",
    "_training.run": (
        "_network.tensors _sealed _training.callbacks _training.checkpoint _training.moments _training.net "
        "_training.pairs"
    ),
    "_version": "",
    "_views": "",
    "_views.arrays": "",
    "_views.base": "_views.arrays capture.lazy capture.table",
    "_views.columns": "_meta _views.base capture.context capture.table",
    "_views.content": (
        "_views.arrays _views.base _views.payload _warn capture.context capture.layouts capture.lazy capture.table"
    ),
    "_views.network": "_meta _views.arrays _views.base _views.payload capture.layouts capture.table",
    "_views.novelty": "_views.arrays _views.base _views.payload capture.lazy capture.table",
    "_views.payload": "_text capture.layouts capture.table",
    "_views.requests": "_views.arrays _views.base _views.payload capture.layouts capture.lazy capture.table",
    "_views.statistics": "_views.arrays _views.base capture.kernels capture.lazy capture.table",
    "_views.tails": "_views.arrays _views.payload",
    "_warn": "",
    "_watch": "",
    "_watch.alarms": "_alarms.alarm _alarms.collect _alarms.incidents _alarms.pcapng _scratch capture.table monitoring",
    "_watch.counting": "",
    "_watch.flows": "capture.flows capture.hashing capture.headers capture.kernels capture.table",
    "_watch.folders": "_text _watch.signals _watch.streams capture.flows exceptions",
    "_watch.interfaces": "_text _watch.signals _watch.streams exceptions",
    "_watch.resuming": "_watch.flows _watch.folders _watch.states _watch.verdicts capture.flows",
    "_watch.signals": "",
    "_watch.states": "",
    "_watch.streams": "_warn _watch.signals capture.containers capture.reordering exceptions",
    "_watch.verdicts": "_alarms.allow _alarms.collect capture.flows capture.table",
    "_watch.watcher": (
        "_warn _watch.alarms _watch.counting _watch.flows _watch.folders _watch.resuming _watch.signals "
        "_watch.streams _watch.verdicts capture.flows capture.table exceptions"
    ),
    "aggregation": "_bases _incidents _meta _thresholds _warn capture.table exceptions",
    "capture": "capture.table exceptions",
    "capture._native": "_warn",
    "capture.community_id": "",
    "capture.compression": "_warn",
    "capture.containers": "_warn capture.compression capture.headers capture.kinds capture.records exceptions",
    "capture.context": "capture._native capture.hashing capture.kernels",
    "capture.counting": "",
    "capture.fields": "capture._native capture.flows capture.headers capture.layouts capture.rewriting",
    "capture.flows": (
        "_warn capture.containers capture.counting capture.hashing capture.headers capture.kernels capture.kinds "
        "capture.layouts capture.reordering capture.rewriting exceptions"
    ),
    "capture.folders": "_scratch",
    "capture.hashing": "capture._native capture.layouts",
    "capture.headers": "capture._native capture.layouts",
    "capture.kernels": (
        "capture._native capture.hashing capture.headers capture.layouts capture.rewriting capture.tunnels"
    ),
    "capture.kinds": "capture.headers",
    "capture.layouts": "",
    "capture.lazy": "capture.shards capture.table",
    "capture.parquet": "_warn capture.flows capture.kernels capture.stored",
    "capture.records": "capture._native",
    "capture.reordering": "_warn capture.records exceptions",
    "capture.rewriting": "capture._native capture.headers capture.layouts",
    "capture.shard_folders": (
        "_scratch capture.containers capture.flows capture.folders capture.kernels capture.parquet capture.shards "
        "capture.stored"
    ),
    "capture.sharding": (
        "_scratch _warn capture.containers capture.flows capture.folders capture.parquet capture.shard_folders "
        "capture.shards capture.stored capture.table capture.writing exceptions"
    ),
    "capture.shards": "",
    "capture.stored": "capture.flows capture.folders capture.headers capture.kernels capture.shards",
    "capture.table": (
        "_scratch _warn capture.community_id capture.context capture.flows capture.headers capture.kernels "
        "capture.parquet capture.shard_folders capture.stored"
    ),
    "capture.tunnels": "capture._native capture.hashing capture.headers capture.layouts",
    "capture.writing": (
        "_scratch capture.containers capture.flows capture.folders capture.kernels capture.shard_folders capture.table"
    ),
    "cli": "cli._main",
    "cli._alarm_options": "_alarms.allow _alarms.zeek cli._text cli._values monitoring",
    "cli._allow": "_alarms.allow _alarms.names _alarms.stored _text cli._outputs",
    "cli._calibrate": (
        "_scratch _stored.summary cli._info cli._inputs cli._outputs cli._text cli._values evaluation monitoring "
        "persistence"
    ),
    "cli._config": "",
    "cli._demo": "cli._testbed cli._values datasets._testbed",
    "cli._evaluate": (
        "_meta _report.evaluation _text aggregation cli._explaining cli._inputs cli._outputs cli._text "
        "cli._values datasets._folder detectors evaluation"
    ),
    "cli._explain": "cli._explaining cli._inputs cli._text cli._values",
    "cli._explaining": "_alarms.alarm _meta capture.table cli._text detectors inspection",
    "cli._fit": (
        "_provenance _sampler _scratch _thresholds capture.table cli._inputs cli._options cli._outputs cli._text "
        "cli._training_bar cli._values datasets datasets._testbed detectors persistence"
    ),
    "cli._info": "_stored.summary cli._text",
    "cli._inputs": "_warn capture.counting capture.flows cli._outputs cli._text persistence",
    "cli._main": "_text _version _warn cli._config cli._options",
    "cli._options": "",
    "cli._outputs": "_scratch capture.containers exceptions",
    "cli._report": "cli._alarm_options cli._inputs cli._outputs cli._score cli._text",
    "cli._sample": "_sampler _scratch cli._inputs cli._options cli._outputs cli._text",
    "cli._score": (
        "_alarms.alarm _alarms.collect _alarms.eve _alarms.findings _alarms.packets _meta _report.page "
        "capture.table cli._alarm_options cli._inputs cli._outputs cli._summary cli._tables cli._text cli._values"
    ),
    "cli._summary": "_alarms.alarm _alarms.allow _alarms.findings _text cli._inputs cli._text",
    "cli._tables": "_alarms.collect _text cli._text",
    "cli._testbed": (
        "_sampler _text aggregation capture.table cli._outputs cli._text datasets detectors metrics plotting"
    ),
    "cli._text": "_text capture.table detectors inspection",
    "cli._training_bar": "_training.pairs cli._inputs",
    "cli._values": "",
    "cli._watch": (
        "_alarms.eve _alarms.incidents _alarms.packets _scratch _watch.alarms _watch.folders _watch.interfaces "
        "_watch.signals _watch.states _watch.streams _watch.verdicts _watch.watcher cli._alarm_options "
        "cli._inputs cli._outputs cli._text cli._values"
    ),
    "datasets": "datasets._bos datasets._cic datasets._folder datasets._synthetic datasets._testbed datasets._ustc",
    "datasets._bos": "_sampler datasets._cache datasets._files paper",
    "datasets._cache": "_sampler _scratch _version _warn capture capture.fields capture.folders capture.table",
    "datasets._cic": "_sampler capture.table datasets._cache datasets._files datasets._labels paper",
    "datasets._files": "_warn",
    "datasets._folder": "_sampler _warn datasets._files",
    "datasets._labels": "capture.table",
    "datasets._sevenzip": "",
    "datasets._synthetic": "capture.table",
    "datasets._testbed": "_sampler capture.layouts capture.table datasets._folder",
    "datasets._ustc": "_sampler _warn datasets._cache datasets._files datasets._folder datasets._sevenzip paper",
    "detectors": (
        "detectors._autoencoders detectors._calibration detectors._doc_features detectors._docids "
        "detectors._ensemble detectors._multiview detectors._reference detectors._simple"
    ),
    "detectors._autoencoders": (
        "_network.autoencoders _network.scoring _network.tensors _training.net detectors._trained"
    ),
    "detectors._base": "_bases capture.lazy detectors._profile",
    "detectors._calibration": (
        "_provenance _score_sketch _thinning _thresholds _views.base _views.tails _warn capture.lazy capture.table"
    ),
    "detectors._callbacks": "_training.run",
    "detectors._doc_features": (
        "_bases _meta _network.scoring _network.table1 _network.tensors _training.net _training.pairs "
        "_training.run _warn detectors._base detectors._docids detectors._profile detectors._reference "
        "detectors._rows"
    ),
    "detectors._docids": (
        "_network.onnx _network.scoring _network.table1 _network.tensors _training.net detectors._reference "
        "detectors._rows detectors._templates detectors._trained"
    ),
    "detectors._ensemble": "_bases _meta _thresholds _warn detectors._base",
    "detectors._frames": "capture.layouts",
    "detectors._multiview": (
        "_bases _meta _provenance _sampler _score_sketch _thresholds _views.base _views.columns _views.content "
        "_views.network _views.novelty _views.payload _views.requests _views.statistics _views.tails _warn "
        "capture.lazy capture.table detectors._calibration detectors._docids detectors._reference"
    ),
    "detectors._profile": "_warn capture.layouts detectors._frames",
    "detectors._reference": "_warn detectors._base",
    "detectors._rows": "_thresholds _training.net capture.lazy detectors._profile",
    "detectors._simple": "_meta _thresholds _warn detectors._base detectors._reference",
    "detectors._templates": "capture.lazy",
    "detectors._trained": (
        "_meta _network.tensors _provenance _sampler _score_sketch _thresholds _training.net _training.pairs "
        "_training.run _warn capture.table detectors._base detectors._calibration detectors._callbacks "
        "detectors._profile detectors._reference detectors._rows detectors._templates"
    ),
    "evaluation": "_incidents _measures _meta _shard_scores _text _warn aggregation capture.table metrics",
    "exceptions": "",
    "inspection": "capture.headers capture.layouts",
    "metrics": "_measures _warn",
    "model_selection": "_bases _meta",
    "monitoring": "_score_sketch _thinning capture.table",
    "paper": "_sampler detectors",
    "persistence": (
        "_provenance _sampler _sealed _stored.multiview _stored.parameters _stored.trained _version _warn "
        "detectors detectors._multiview detectors._trained exceptions"
    ),
    "plotting": "_measures _warn",
}
LAYERS = {module: set(imported.split()) for module, imported in LAYERS.items()}


def modules():
    """Return the modules of the package, by name without ``sklearn_docids.``."""
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports_of(path):
    """Return the modules of the package that a module imports, those for type checkers alone included."""
    known = dict(modules())
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("sklearn_docids") for alias in node.names), "import names from modules"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sklearn_docids"):
            parent = node.module.removeprefix("sklearn_docids").lstrip(".")
            for alias in node.names:
                child = f"{parent}.{alias.name}".lstrip(".")
                yield child if child in known else parent


def test_imports_are_those_of_the_list_and_no_module_is_missing_in_it():
    found = {name: set(imports_of(path)) for name, path in modules()}
    assert set(found) == set(LAYERS)
    assert {name: sorted(imports - LAYERS[name]) for name, imports in found.items() if imports - LAYERS[name]} == {}
    assert {name: sorted(LAYERS[name] - found[name]) for name in found if LAYERS[name] - found[name]} == {}


def test_imports_have_no_circle():
    order = list(TopologicalSorter(LAYERS).static_order())  # raises CycleError
    assert order.index("_network.table1") < order.index("_training.run") < order.index("detectors._docids")


def test_exported_names_are_those_of_the_contract():
    expected = {"AutoencoderDetector", "CaptureError", "CaptureWarning", "ConvAutoencoderDetector", "DOCIDSDetector"}
    expected |= {"DOCFeatures", "FlowSampler", "MultiViewDetector", "ReferenceData", "load_detector", "save_detector"}
    assert set(sklearn_docids.__all__) == expected | {"__version__"}
    assert all(getattr(sklearn_docids, name) is not None for name in expected)
    assert expected <= set(dir(sklearn_docids))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sklearn_docids.nothing


PUBLIC = [
    sklearn_docids.FlowSampler,
    sklearn_docids.DOCIDSDetector,
    sklearn_docids.AutoencoderDetector,
    sklearn_docids.ConvAutoencoderDetector,
    sklearn_docids.DOCFeatures,
    aggregation.FlowAggregator,
    aggregation.FlowGroup,
    aggregation.GroupStream,
    aggregation.Incident,
    aggregation.find_incidents,
    aggregation.incident_budget_threshold,
    detectors.NearestNeighborDetector,
    detectors.StatisticDetector,
    detectors.SeedEnsemble,
    evaluation.evaluate,
    evaluation.Evaluation,
    evaluation.Scored,
    evaluation.fit_clone,
    evaluation.score_flows,
    evaluation.score_groups,
    metrics.alarm_counts,
    monitoring.DriftMonitor,
    persistence.described_traffic,
    model_selection.NormalTrainSplit,
    sklearn_docids.ReferenceData,
    sklearn_docids.load_detector,
    sklearn_docids.save_detector,
    sklearn_docids.CaptureError,
    model_selection.NormalOnly,
    model_selection.make_flow_scorer,
    inspection.byte_reasons,
    inspection.field_names,
    plotting.EmbeddingDisplay,
    plotting.ExplanationDisplay,
    plotting.PrecisionRecallDisplay,
    plotting.RocDisplay,
    plotting.ScoreByClassDisplay,
    plotting.ScoreHistogramDisplay,
    metrics.attack_roc_auc_score,
    metrics.attack_average_precision_score,
    metrics.recall_at_fpr_score,
    paper.sampler,
    paper.detector,
    load_class_folder,
    load_bos_2018,
    load_cic_ids_2017,
    load_testbed,
    load_ustc_tfc2016,
    load_ustc_tk2016,
    make_traffic,
    FlowTable,
]


def public_functions():
    for thing in PUBLIC:
        yield thing.__name__, thing
        if inspect.isclass(thing):
            for name, method in vars(thing).items():
                function = method.__func__ if isinstance(method, classmethod) else method
                if inspect.isfunction(function) and not name.startswith("_"):
                    yield f"{thing.__name__}.{name}", function


@pytest.mark.parametrize(("name", "thing"), list(public_functions()), ids=[name for name, _ in public_functions()])
def test_docstrings_describe_the_parameters_of_the_signature(name, thing):
    parameters = [p.name for p in inspect.signature(thing).parameters.values() if p.name not in ("self", "cls")]
    sections = re.split(r"^\s*(\w[\w ]+)\n\s*-{3,}\s*$", inspect.cleandoc(thing.__doc__), flags=re.MULTILINE)
    described = dict(zip(sections[1::2], sections[2::2], strict=True))
    names = [
        entry.strip().lstrip("*")
        for line in described.get("Parameters", "").splitlines()
        if line and not line.startswith(" ")
        for entry in line.split(" : ")[0].split(",")
    ]
    assert names == parameters
    if inspect.isfunction(thing) and inspect.signature(thing).return_annotation not in ("None", None):
        assert described.keys() & {"Returns", "Yields"}


def test_public_things_have_an_example():
    assert [thing.__name__ for thing in PUBLIC if ">>>" not in thing.__doc__] == []


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
def test_style_and_types(command):
    result = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_wheel_is_typed(tmp_path):
    """Installed from its wheel, the package is known to a type checker: without ``py.typed`` all of it were Any."""
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT]
    subprocess.run(wheel, check=True, capture_output=True)
    venv.create(tmp_path / "venv")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(site)
    (tmp_path / "user.py").write_text(
        "from sklearn_docids import DOCIDSDetector, FlowSampler, load_detector\n"
        "from sklearn_docids.datasets import load_testbed\n"
        "reveal_type(FlowSampler().flows([]))\n"
        "reveal_type(DOCIDSDetector().fit([[0]]))\n"
        "DOCIDSDetector(n_neighbours=3)\n"
    )
    python = tmp_path / "venv" / "bin" / "python"
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--python-executable",
        python,
        "--cache-dir",
        tmp_path / "cache",
        "user.py",
    ]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True).stdout
    assert 'Revealed type is "sklearn_docids.capture.table.FlowTable"' in output
    assert 'Revealed type is "sklearn_docids.detectors._docids.DOCIDSDetector"' in output
    assert 'Unexpected keyword argument "n_neighbours"' in output
    assert "import-untyped" not in output


FACES = {
    "aggregation": [
        "FlowAggregator",
        "FlowGroup",
        "GroupStream",
        "Incident",
        "TooFewGroupsError",
        "find_incidents",
        "incident_budget_threshold",
    ],
    "capture": ["CaptureError", "CaptureWarning", "FlowTable"],
    "datasets": [
        "load_bos_2018",
        "load_cic_ids_2017",
        "load_class_folder",
        "load_testbed",
        "load_ustc_tfc2016",
        "load_ustc_tk2016",
        "make_traffic",
    ],
    "detectors": [
        "AutoencoderDetector",
        "Calibration",
        "ConvAutoencoderDetector",
        "DOCFeatures",
        "DOCIDSDetector",
        "Judgement",
        "MultiViewDetector",
        "NearestNeighborDetector",
        "ReferenceData",
        "ScoreStream",
        "SeedEnsemble",
        "StatisticDetector",
        "ViewReason",
    ],
    "evaluation": ["Evaluation", "Scored", "evaluate", "fit_clone", "score_flows", "score_groups", "score_shards"],
    "exceptions": ["CaptureError", "CaptureWarning", "DOCIDSError", "ModelFileError", "TooFewGroupsError"],
    "inspection": ["ByteReason", "byte_reasons", "field_names"],
    "metrics": [
        "AlarmCounts",
        "alarm_counts",
        "attack_average_precision_score",
        "attack_roc_auc_score",
        "recall_at_fpr_score",
    ],
    "monitoring": ["DriftMonitor", "ScoreSketch"],
    "model_selection": ["NormalOnly", "NormalTrainSplit", "make_flow_scorer"],
    "paper": ["detector", "sampler"],
    "persistence": ["described_traffic", "load_detector", "save_detector"],
    "plotting": [
        "EmbeddingDisplay",
        "ExplanationDisplay",
        "PrecisionRecallDisplay",
        "RocDisplay",
        "ScoreByClassDisplay",
        "ScoreHistogramDisplay",
        "ViewsDisplay",
    ],
}


@pytest.mark.parametrize("module", FACES)
def test_the_public_face_is_this(module):
    """A name that is added or taken away is a change of the interface: it is made here, too."""
    assert sorted(importlib.import_module(f"sklearn_docids.{module}").__all__) == FACES[module]


def test_every_public_module_has_a_face():
    public = {name for name, _ in modules() if name and "_" not in name[0] and "._" not in name}
    inside = {name for name in public if "." in name}
    assert {name for name in inside if not name.startswith("capture.")} == set()
    assert public - inside - {"cli"} == set(FACES)


def test_ci_runs_the_test_command_of_the_readme():
    commands = re.findall(r"```sh\n(.*?)\n```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    ci = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "pytest" in line]
    assert ci == [command for command in commands if "pytest" in command]
    assert len(ci) == 1


def test_every_dependency_is_pinned():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["project"]["dependencies"] + project["build-system"]["requires"]
    for extra in project["project"]["optional-dependencies"].values():
        listed += extra
    names = {re.match(r"[\w.-]+", requirement)[0] for requirement in listed} - {"sklearn-docids"}  # its own extras
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert names == set(pins)
    assert pins["torch"] == "2.13.0"
