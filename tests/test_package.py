"""The package as a whole: light imports, one direction of imports, documented parameters, checked style."""

import ast
import inspect
import re
import subprocess
import sys
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
    paper,
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


# Module -> modules of the package it may import. Whoever adds a line here widens the architecture.
LAYERS = {
    "capture._errors": set(),
    "capture._native": set(),
    "capture.records": {"capture._native"},
    "capture.layouts": set(),
    "capture.headers": {"capture._native", "capture.layouts"},
    "capture.rewriting": {"capture._native", "capture.layouts", "capture.headers"},
    "capture.kernels": {"capture._native", "capture.layouts", "capture.headers", "capture.rewriting"},
    "capture.community_id": set(),
    "capture.compression": set(),
    "capture.containers": {"capture._errors", "capture.compression", "capture.records", "capture.headers"},
    "capture.flows": {
        "capture._errors",
        "capture.kernels",
        "capture.layouts",
        "capture.headers",
        "capture.rewriting",
        "capture.containers",
        "capture.reordering",
    },
    "capture.reordering": {"capture._errors", "capture.records"},
    "capture.table": {"capture._errors", "capture.kernels", "capture.community_id", "capture.flows"},
    "capture.fields": {
        "capture._native",
        "capture.layouts",
        "capture.headers",
        "capture.rewriting",
        "capture.flows",
    },
    "capture.writing": {"capture._errors", "capture.kernels", "capture.containers", "capture.flows"},
    "_sampler": {
        "capture._errors",
        "capture.fields",
        "capture.containers",
        "capture.flows",
        "capture.table",
        "capture.writing",
    },
    "datasets._labels": {"capture.table"},
    "datasets._folder": {"_sampler"},
    "datasets._cache": {"", "_sampler", "capture", "capture.fields", "capture.table"},
    "datasets._cic": {"", "_sampler", "capture.table", "datasets._cache", "datasets._labels", "paper"},
    "datasets._bos": {"", "_sampler", "datasets._cache", "paper"},
    "datasets._testbed": {"_sampler", "datasets._folder", "capture.table"},
    "datasets._ustc": {"", "_sampler", "datasets._cache", "datasets._folder", "paper"},
    "_losses": set(),
    "_network": set(),
    "_callbacks": set(),
    "_reference": set(),
    "_sealed": set(),
    "_training": {"_losses", "_network"},
    "_base": {"_sampler", "persistence"},
    "_autoencoders": {"_base", "_network", "_training"},
    "_checkpoint": {"_sealed", "_training"},
    "_folding": {"_network"},
    "_scoring": {"_folding", "_network", "_training"},
    "_export": {"_folding", "_network", "_scoring"},
    "_detector": {
        "_base",
        "_callbacks",
        "_checkpoint",
        "_export",
        "_folding",
        "_reference",
        "_scoring",
        "_training",
        "_network",
    },
    "_doc_features": {"_base", "_detector", "_network", "_reference"},
    "baselines": {"_base"},
    "_routing": set(),
    "model_selection": {"_routing"},
    "ensemble": {"_base", "_routing"},
    "aggregation": {"_base", "capture.table"},
    "inspection": {"capture.layouts", "capture.headers"},
    "evaluation": {"_base", "aggregation", "capture.table", "metrics"},
    "persistence": {"", "_base", "_autoencoders", "_detector", "_sealed", "_sampler", "_training"},
}


@pytest.mark.parametrize("module", LAYERS)
def test_imports_go_one_way(module):
    tree = ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sklearn_docids"):
            parent = node.module.removeprefix("sklearn_docids").lstrip(".")
            for alias in node.names:
                child = f"{parent}.{alias.name}".lstrip(".")
                imported.add(child if (PACKAGE / f"{child.replace('.', '/')}.py").exists() else parent)
    assert imported <= LAYERS[module]


def test_exported_names_are_those_of_the_contract():
    expected = {"AutoencoderDetector", "CaptureError", "CaptureWarning", "ConvAutoencoderDetector", "DOCIDSDetector"}
    expected |= {"DOCFeatures", "FlowSampler", "ReferenceData", "load_detector"}
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
    detectors.NearestNeighborDetector,
    detectors.StatisticDetector,
    detectors.SeedEnsemble,
    evaluation.evaluate,
    evaluation.Evaluation,
    metrics.alarm_counts,
    model_selection.NormalTrainSplit,
    sklearn_docids.ReferenceData,
    sklearn_docids.load_detector,
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
    metrics.is_attack,
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
