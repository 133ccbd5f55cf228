# SPDX-License-Identifier: BSD-3-Clause
"""What is published holds what it should, works away from the checkout, and says of itself what is true."""

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from pathlib import Path

import pytest
import yaml
from readme_renderer import markdown

from sklearn_docids import __version__
from sklearn_docids._bases import SITE

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sklearn_docids"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
IMPORT_ALL = """
import importlib, pkgutil, sklearn_docids
for module in pkgutil.walk_packages(sklearn_docids.__path__, "sklearn_docids."):
    print(importlib.import_module(module.name).__file__)
"""


def run(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def files_of(folder):
    """Return what git would keep of a folder, named from its parent."""
    paths = (path.relative_to(folder.parent) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Return the unpacked source distribution."""
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as unpacked:
        unpacked.extractall(folder, filter="data")
    return folder / f"sklearn_docids-{__version__}"


@pytest.fixture(scope="module")
def installed(sdist, tmp_path_factory):
    """Return a fresh environment with the wheel that was built of the source distribution.

    The dependencies are those of this environment: Python does not follow the links to a checkout that lie among them.
    """
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=sdist)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def metadata(installed):
    (site,) = installed.glob("lib/python*/site-packages")
    (found,) = importlib.metadata.distributions(name="sklearn-docids", path=[str(site)])
    return found.metadata


def test_the_source_distribution_holds_what_builds_tests_and_explains_the_package(sdist):
    held = {path.name for path in sdist.iterdir()}
    texts = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md"}
    assert texts | {".ci", "benchmarks", "constraints.txt", "docs", "examples", "testbed", "tests"} <= held
    for folder in ("sklearn_docids", "tests"):
        assert files_of(sdist / folder) == files_of(ROOT / folder)
    assert list(sdist.glob("docs/_build/*")) == []


def test_the_wheel_holds_the_package_with_its_captures_and_nothing_else(installed):
    (site,) = installed.glob("lib/python*/site-packages")
    assert files_of(site / "sklearn_docids") == files_of(PACKAGE)
    assert len(list(site.glob("sklearn_docids/datasets/testbed/**/*.pcap.xz"))) == 25
    beside = {path.name for path in site.iterdir()} - {"dependencies.pth", "__pycache__"}
    assert beside == {"sklearn_docids", f"sklearn_docids-{__version__}.dist-info"}


def test_every_module_is_imported_from_the_wheel(installed):
    files = run(installed / "bin" / "python", "-c", IMPORT_ALL, cwd=installed).split()
    assert len(files) > 100
    assert [path for path in files if not path.startswith(str(installed))] == []


def test_the_command_of_the_wheel_has_the_bundled_captures(installed, tmp_path):
    docids = installed / "bin" / "docids"
    assert run(docids, "--version", cwd=tmp_path) == f"docids {__version__}\n"
    run(docids, "demo", "--captures", "--output", "office", cwd=tmp_path)
    bundled = PACKAGE / "datasets" / "testbed"
    assert (tmp_path / "office" / "train.pcap.xz").read_bytes() == (bundled / "train.pcap.xz").read_bytes()


def test_the_long_description_renders_and_its_links_lead_away(metadata):
    page = markdown.render(metadata.get_payload())
    targets = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert len(targets) > 5
    # Those within the page keep their "#".
    assert [target for target in targets if not re.match(r"https?://|#", target)] == []


def test_the_metadata_names_licence_and_addresses(metadata):
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata.get_all("License-File") == ["LICENSE"]
    addresses = dict(entry.split(", ") for entry in metadata.get_all("Project-URL"))
    assert set(addresses) == {"Changelog", "Documentation", "Issues", "Source"}
    assert addresses["Documentation"] == SITE
    assert addresses["Changelog"] == f"{SITE}reference/changelog.html"


def test_the_interpreters_of_the_metadata_are_those_of_the_install_page():
    """A version is claimed where the page says how the suite went on it."""
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (3\.\d+)\.\d+ \|", page, re.MULTILINE) == claimed
    assert PROJECT["requires-python"] == f">={claimed[0]}"


def test_the_citation_is_of_this_version_and_of_the_paper():
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["version"] == __version__
    assert CITATION["license"] == PROJECT["license"]
    assert CITATION["keywords"] == PROJECT["keywords"]
    assert CITATION["authors"] == PROJECT["authors"]
    assert CITATION["url"] == SITE
    (paper,) = CITATION["references"]
    page = (ROOT / "docs" / "reference" / "cite.md").read_text(encoding="utf-8")
    fields = dict(re.findall(r"^  (\w+) += \{(.*)\},?$", page.split("@software")[0], re.MULTILINE))
    assert paper["title"] == re.sub("[{}]", "", fields["title"])
    assert (paper["doi"], paper["year"], paper["start"]) == (fields["doi"], int(fields["year"]), int(fields["pages"]))
    authors = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert " and ".join(authors) == fields["author"]
    assert f"version = {{{__version__}}}" in page
