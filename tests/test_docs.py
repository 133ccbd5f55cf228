"""The site builds without a warning, its code runs as it stands, and every public name has a page."""

import contextlib
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from sklearn_docids import DOCIDSDetector, FlowSampler, MultiViewDetector
from sklearn_docids._bases import SITE
from sklearn_docids._training import pairs
from sklearn_docids._training import run as training
from sklearn_docids.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# The modules whose ``__all__`` is what a user may rely on.
PUBLIC = (
    "", "aggregation", "capture", "cli", "datasets", "detectors", "evaluation", "exceptions", "inspection", "metrics",
    "model_selection", "monitoring", "paper", "persistence", "plotting",
)  # fmt: skip
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why_not>.+?) -->\n+)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
FIRST_PAGE = "tutorials/first-alarms.md"


def blocks_of(page):
    """Return language and code of what a page lets a reader run."""
    found = BLOCK.finditer((DOCS / page).read_text(encoding="utf-8"))
    return [(each["language"], each["code"]) for each in found if not each["why_not"]]


def pages_with_code():
    pages = (path.relative_to(DOCS).as_posix() for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts)
    return [page for page in pages if any(language in ("python", "sh") for language, _ in blocks_of(page))]


def run_shell(code):
    """Run commands: ``docids`` in this process, which has imported what it needs, others in a shell."""
    for command in re.sub(r"\\\n\s*", "", code).splitlines():
        command, _, target = command.partition(" > ")
        words = shlex.split(command, comments=True)
        if not words:
            continue
        if words[0] != "docids":
            subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)
            continue
        with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) as printed:
            assert main(words[1:]) == 0, command
        printed.flush()
        if target:
            Path(target.strip()).write_bytes(printed.buffer.getvalue())


def run_page(page):
    """Run the code of a page; return the number of blocks that were run."""
    names = {"__name__": "__main__"}
    run = {"sh": run_shell, "python": lambda code: exec(compile(code, page, "exec"), names)}
    code = [(language, block) for language, block in blocks_of(page) if language in run]
    for language, block in code:
        run[language](block)
    return len(code)


@pytest.fixture(scope="module")
def brief_training():
    """Let networks learn for a few steps: what the pages run is the same, what it finds is not looked at."""
    whole = pairs.batch_bounds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "AUTO_STEPS", 1)
        for module in (training, pairs):
            patch.setattr(module, "batch_bounds", lambda n_rows, batch_size: whole(n_rows, batch_size)[:2])
        yield


@pytest.fixture(scope="module")
def after_first_page(tmp_path_factory, brief_training):
    """Return the folder in which a reader stands after the first tutorial, where the other pages begin."""
    folder = tmp_path_factory.mktemp("reader")
    with contextlib.chdir(folder):
        run_page(FIRST_PAGE)
        shutil.copyfile("docids-demo/train.pcap.xz", "next-week.pcap")  # what a reader has, and the package has not
    return folder


def test_the_first_tutorial_leaves_a_model_alarms_and_a_page(after_first_page):
    assert {"docids-demo", "office.model", "alarms.eve.json", "tuesday.html"} <= set(os.listdir(after_first_page))


@pytest.mark.parametrize("page", [page for page in pages_with_code() if page != FIRST_PAGE])
def test_code_of_a_page_runs_as_it_stands(page, after_first_page, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    reader = shutil.copytree(after_first_page, tmp_path / "reader")
    with contextlib.chdir(reader):
        assert run_page(page) > 0


def test_the_readme_runs_and_prints_what_it_shows(tmp_path, brief_training, capsys):
    """All but its two commands that install: those are what .ci/run and a reader begin with."""
    blocks = blocks_of("../README.md")
    shell = [code for language, code in blocks if language == "sh"]
    assert [code.split()[0] for code in shell] == ["python3", "python3", "docids"]
    (code,) = (code for language, code in blocks if language == "python")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out == dict(blocks)["text"]
    with contextlib.chdir(tmp_path):
        run_shell(shell[-1])
    assert {"office.model", "day.html"} <= set(os.listdir(tmp_path))


def test_what_is_not_run_says_why():
    texts = {path: path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}
    reasons = [each["why_not"] for text in texts.values() for each in BLOCK.finditer(text) if each["why_not"]]
    assert set(reasons) <= {
        "captures from an interface", "downloads", "needs another program", "no end", "no such capture here",
        "a fragment", "takes minutes",
    }  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the site, built with warnings as errors and without running the gallery.

    Built of a copy, as Sphinx writes pages of its own beside the others, and another process may do the same.
    """
    pytest.importorskip("sphinx")
    folder = tmp_path_factory.mktemp("site")
    for part in ("docs", "examples", "testbed"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("_build", "generated", "gallery"))
    shutil.copyfile(ROOT / "CHANGELOG.md", folder / "CHANGELOG.md")
    options = ["-W", "--keep-going", "-q", "-b", "html", "-D", "plot_gallery=0"]
    command = [sys.executable, "-m", "sphinx", *options, str(folder / "docs"), str(folder / "html")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (built.returncode, built.stderr) == (0, "")
    return folder / "html"


def public_objects():
    for module in PUBLIC:
        home = importlib.import_module(f"sklearn_docids.{module}".rstrip("."))
        for name in home.__all__:
            if name != "__version__":
                yield f"{home.__name__}.{name}", getattr(home, name)


def test_every_public_name_has_a_page(site):
    pages = [path.stem for path in (site / "reference" / "generated").glob("*.html")]
    documented = set()
    for page in pages:
        module, _, name = page.rpartition(".")
        documented.add(id(getattr(importlib.import_module(module), name)))
    missing = [name for name, value in public_objects() if id(value) not in documented]
    assert missing == []
    assert len(documented) == len(pages)  # one page for each


def test_every_public_name_leads_to_a_page_that_teaches_it():
    guides = {name: re.findall(r"Guide: :doc:`/(.+)`\.", value.__doc__) for name, value in public_objects()}
    assert [name for name, found in guides.items() if len(found) != 1] == []
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.[mr][ds]*")}
    pages |= {f"gallery/{path.stem}" for path in (ROOT / "examples").glob("plot_*.py")}
    assert {found[0] for found in guides.values()} <= pages


class Links(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.targets, self.anchors = [], set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.anchors |= {named[key] for key in ("id", "name") if named.get(key)}
        self.targets += [named[key] for key in ("href", "src") if named.get(key)]


def test_no_link_inside_the_site_is_broken(site):
    links = {path: Links(path) for path in site.rglob("*.html") if "_static" not in path.parts}
    broken = []
    for path, page in links.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            goal = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not goal.exists() or (parts.fragment and goal in links and parts.fragment not in links[goal].anchors):
                broken.append(f"{path.relative_to(site)}: {target}")
    assert broken == []


def test_the_picture_of_an_estimator_leads_to_its_page(site):
    for estimator in (DOCIDSDetector(), MultiViewDetector(), FlowSampler()):
        link = estimator._get_doc_link()
        assert link in estimator._repr_html_()
        assert (site / link.removeprefix(SITE)).exists()


@pytest.mark.parametrize(
    "path", [*DOCS.rglob("*.md"), ROOT / "CHANGELOG.md", ROOT / "README.md"], ids=lambda path: path.name
)
def test_files_that_a_page_links_to_are_there(path):
    """Also outside the site, where GitHub shows the same files."""
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        found = (path.parent / target).resolve()
        # The build makes the pages of the gallery of the stories.
        assert found.exists() or found == DOCS / "gallery" / "index.rst", f"{path}: {target}"
