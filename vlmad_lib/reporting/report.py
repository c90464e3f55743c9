"""Reports: a profile's notebooks run into a folder of pages that need no network.

``python -m vlmad_lib report demo -p shots=[0,1]`` checks everything, computes the scores once, runs as many
notebooks at once as the profile has workers and keeps an index up to date, so that an interrupted report can be read.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import json
import logging
import operator
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbconvert.filters import strip_ansi
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from vlmad_lib import ROOT, InputError, commands, config, files
from vlmad_lib.config import Profile
from vlmad_lib.pipeline.progress import Bar
from vlmad_lib.reporting import notebook_runner, pages

PACKAGES = ["torch", "open_clip_torch", "numpy", "pandas", "scikit-learn", "papermill"]
_BOUNDS = {
    "minimum": (operator.ge, "at least"),
    "exclusiveMinimum": (operator.gt, "more than"),
    "maximum": (operator.le, "at most"),
    "exclusiveMaximum": (operator.lt, "less than"),
}
INDEX_SECONDS = 5  # from one writing of the index to the next: each takes a third of one
KEYS = "known keys: Profile in vlmad_lib/config.py, and the notebooks' cells tagged 'parameters'"


@dataclass
class Notebook:
    """One notebook of a report; ``parameters`` are its defaults overlaid by what the user gave."""

    path: Path
    parameters: dict[str, Any]
    limits: dict[str, dict[str, Any]]  # of numbers, by parameter, from the metadata of the parameters cell
    title: str
    question: str
    about: float = 0.0  # seconds on the demo data, roughly, from its metadata (vlmad, seconds): the longest begin first
    status: str = "not run"
    seconds: float = 0.0
    error: str = ""
    traceback: str = ""
    categories: list[str] = field(default_factory=list)  # of the run, those its page names
    answer: list[str] = field(default_factory=list)  # the sentences of its cell tagged 'answer', as HTML
    picture: dict[str, str] = field(default_factory=dict)  # a small version of that cell's figure: src and alt
    figures: list[dict[str, str]] = field(
        default_factory=list
    )  # files of its figures as SVG or PDF, with what they show

    @property
    def page(self) -> str:
        """Name of its HTML file in the run folder."""
        return f"{self.path.stem}.html"


@dataclass
class Report:
    """The state of one report: what it was asked, and what is done so far."""

    name: str
    profile: Profile
    overrides: dict[str, Any]
    notebooks: list[Notebook]
    out: Path
    command: str
    commit: str
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    status: str = "in progress"
    facts: dict[str, Any] = field(default_factory=dict)
    headline: list[dict[str, Any]] = field(default_factory=list)
    macro: list[dict[str, Any]] = field(default_factory=list)
    categories: list[dict[str, Any]] = field(default_factory=list)
    folder: Path = Path()

    def record(self) -> dict[str, Any]:
        """Everything the index shows, JSON-ready: the pages are drawn from this and nothing else."""
        now = datetime.now(UTC)
        profile = {key: getattr(self.profile, key) for key in ("title", "notice", "digest")}
        kept = ("overrides", "command", "commit", "status", "headline", "macro", "categories", "facts")
        return {key: getattr(self, key) for key in kept} | {
            "schema": 1,
            "profile": {"name": self.name, **profile, "values": self.profile.model_dump()},
            "dirty": self.commit.endswith("-dirty"),
            "started": self.started.isoformat(timespec="seconds"),
            "finished": now.isoformat(timespec="seconds") if self.status != "in progress" else None,
            "seconds": round((now - self.started).total_seconds(), 1),
            "versions": _versions(),
            "notebooks": [asdict(book) | {"path": str(book.path), "page": book.page} for book in self.notebooks],
        }


def resolve(name: str, pairs: list[str], out: Path, command: str) -> Report:
    """The checked report of a profile and ``key=value`` overrides; runs and writes nothing."""
    given = dict(config.parse_override(pair) for pair in pairs)
    profile = config.load_profile(name, {key: given[key] for key in given if key in Profile.model_fields})
    notebooks = [_read(_find(notebook, profile)) for notebook in profile.notebooks]
    names = ["index.html", *(notebook.page for notebook in notebooks)]
    if twice := next((page for page in names if names.count(page) > 1), None):
        raise InputError(f"{name}: two pages would be named {twice}; rename one notebook or list it once.")
    keys = set(Profile.model_fields).union(*(notebook.parameters for notebook in notebooks)) - {"profile"}
    for key in given.keys() - keys:
        near = difflib.get_close_matches(key, sorted(keys), 1, 0.0)[0]
        raise InputError(f"-p {key}: there is no such key; the nearest is {near!r}; {KEYS}.")
    for notebook in notebooks:
        _overlay(notebook, given)
    name = Path(name).name.removesuffix(".yml").removesuffix(".yaml")
    return Report(name, profile, given, notebooks, out.resolve(), command, _commit())


def _find(name: str, profile: Profile) -> Path:
    """The file of a notebook named in the profile, with or without its suffix."""
    file = name.removesuffix(".ipynb") + ".ipynb"
    for path in (ROOT / "notebooks" / file, profile.path(file)):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))) or "none"
    raise InputError(f"There is no notebook {name!r}; give a path or one of those in notebooks/: {names}.")


def _read(path: Path) -> Notebook:
    """A notebook's defaults, title (first heading) and question (a bold sentence, or the first paragraph)."""
    try:
        book = nbformat.read(path, as_version=4)
        cells = book.cells
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError):
        raise InputError(f"{path} is not a notebook; open it in Jupyter and save it again.") from None
    parameters = next((cell for cell in cells if "parameters" in cell.metadata.get("tags", [])), new_code_cell())
    limits = parameters.metadata.get("vlmad", {}).get("limits", {})
    soup = pages.body([cell for cell in cells if cell.cell_type == "markdown"][:2], path)  # all would take long
    paragraph = soup.h1.find_next("p") or soup.new_tag("p")
    bold = (node for node in paragraph(["strong", "em"]) if len(node.get_text().split()) > 3)
    question = " ".join(next(bold, paragraph).get_text().split())
    about = book.metadata.get("vlmad", {}).get("seconds", 0)
    return Notebook(path, _defaults(path, parameters.source), limits, soup.h1.get_text(), question, about)


def _defaults(path: Path, source: str) -> dict[str, Any]:
    """Names and values of the parameters cell (papermill's reader loses a value that holds '=' or '#')."""
    defaults = {}
    try:
        for node in ast.parse(source).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                defaults[ast.unparse(target)] = ast.literal_eval(node.value)
    except (ValueError, SyntaxError):
        fault = "the cell tagged 'parameters' must hold plain values only; move the rest to another cell"
        raise InputError(f"{path.name}: {fault}.") from None
    return defaults


def _overlay(notebook: Notebook, given: dict[str, Any]) -> None:
    """Put the given values that belong to a notebook over its defaults, each of its default's type.

    A key of the profile, such as ``shots``, may be one number in a notebook: a list is then the profile's alone.
    """
    for key in notebook.parameters.keys() & given.keys():
        value, default = given[key], notebook.parameters[key]
        if not _fits(value, default):
            if key in Profile.model_fields:
                continue
            kinds = f"{type(value).__name__}, but {notebook.path.stem} needs {type(default).__name__}"
            raise InputError(f"-p {key}: {value!r} is of type {kinds}, such as {default!r}.")
        notebook.parameters[key] = value
    for key in notebook.limits:  # all: one given may move the bound of another
        _check_limits(notebook, key)


def _check_limits(notebook: Notebook, key: str) -> None:
    """InputError where a parameter, or an item of one that is a list, lies outside the limits of its notebook.

    ``minimum``, ``maximum``, ``exclusiveMinimum`` and ``exclusiveMaximum`` are those of JSON schemas; a bound may be
    the name of another parameter. ``or`` is a value that is allowed besides.
    """
    limits, value = notebook.limits[key], notebook.parameters[key]
    bounds = {name: limits[name] for name in _BOUNDS if name in limits}
    bounds = {name: notebook.parameters.get(bound, bound) for name, bound in bounds.items()}
    for number in value if isinstance(value, list) else [value]:
        if number != limits.get("or") and not all(_BOUNDS[name][0](number, bounds[name]) for name in bounds):
            words = " and ".join(f"{_BOUNDS[name][1]} {bounds[name]}" for name in bounds)
            besides = f", or {limits['or']}" if "or" in limits else ""
            raise InputError(f"-p {key}: {number} is out of range; {notebook.path.stem} needs {words}{besides}.")


def _fits(value: Any, default: Any) -> bool:
    """Whether a value has its default's type; items of a list that of the default's first item."""
    if isinstance(default, list):
        return isinstance(value, list) and (not default or all(_fits(item, default[0]) for item in value))
    return default is None or type(value) is type(default) or (type(default) is float and type(value) is int)


def _commit() -> str:
    """Eight digits of the workbook's git commit, then "-dirty" if files differ; "nogit" without one."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=8", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "nogit"


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    """Versions of Python and of the packages the numbers depend on."""
    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def build(report: Report, progress: bool = False) -> None:
    """Compute the scores, run every notebook, write the pages; Ctrl-C ends it with status "interrupted"."""
    try:
        from vlmad_lib.analysis import by_defect  # late: a wrong parameter is refused before PyTorch is loaded
        from vlmad_lib.pipeline.run import run
        from vlmad_lib.reporting import image_browser

        by_defect.read_taxonomy(report.profile)  # else notebook 06 would say what is wrong, after hours of work
        report.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=report.out):  # that it cannot be written is said before hours of work
            pass
        notebook_runner.start_server(min(report.profile.workers, len(report.notebooks)))
        results = run(report.profile, progress=progress, announce=True)
        report.facts = results.facts
        macro = results.macro()
        tables = {"macro": macro, "headline": results.headline(macro), "categories": results.by_category()}
        for name, table in tables.items():
            setattr(report, name, json.loads(table.to_json(orient="records", double_precision=6)))
        _open(report)
        for name, table in {"scores": results.scores, "metrics": results.metrics}.items():
            table.to_parquet(report.folder / f"{name}.parquet")
            table.to_csv(report.folder / f"{name}.csv", index=False)
        try:
            image_browser.write_page(report, results)
        except InputError as error:  # a picture that is gone since it was scored must not stop the notebooks
            report.facts = report.facts | {"notes": [*report.facts.get("notes", []), f"No page of pictures: {error}"]}
        _run(report, progress)
        report.status = "failed" if "failed" in [book.status for book in report.notebooks] else "ok"
    except KeyboardInterrupt:
        report.status = "interrupted"
        if report.folder == Path():
            _open(report)
    pages.write_index(report)


def _open(report: Report) -> None:
    """Make the run folder with its profile, a page "not run" for each notebook, and the link ``latest``."""
    commit = report.commit.removesuffix("-dirty")
    folder = report.out / f"{report.name}-{report.started:%Y%m%d-%H%M%S}-{commit}"
    while True:
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:  # a report of the same second
            folder = folder.with_name(f"{folder.name}_")
    (folder / "notebooks").mkdir()
    text = yaml.safe_dump(report.profile.model_dump(), sort_keys=False, allow_unicode=True)
    (folder / "profile.yml").write_text(text, encoding="utf-8")
    report.folder = folder
    for notebook in report.notebooks:
        notebook.parameters["profile"] = str(folder / "profile.yml")
        pages.write_page(report, notebook, [])
    pages.write_glossary(report)
    pages.write_index(report)
    latest = report.out / "latest"
    with contextlib.suppress(OSError):  # some file systems have no links
        latest.unlink(missing_ok=True)
        latest.symlink_to(folder.name, target_is_directory=True)


def _run(report: Report, progress: bool = False) -> None:
    """Run the notebooks, several at once, and write the page of each and the index as it ends.

    ``progress``: whether to show a bar on stderr; else a line a minute.
    """
    order = sorted(range(len(report.notebooks)), key=lambda place: -report.notebooks[place].about)
    # on copies: a notebook that is stopped half-way stays as it was
    jobs = [partial(_execute, replace(report.notebooks[place]), report.folder) for place in order]
    shown = time.monotonic()

    def write_pages(number: int, result: tuple[Notebook, list[NotebookNode]]) -> None:
        nonlocal shown
        report.notebooks[order[number]] = result[0]
        pages.write_page(report, *result)
        bar.work_of_one = max(result[0].about, 1)
        bar.update()
        if time.monotonic() - shown > INDEX_SECONDS:
            pages.write_index(report)
            shown = time.monotonic()

    work = sum(max(notebook.about, 1) for notebook in report.notebooks)
    with Bar(len(jobs), work, not progress, desc="notebooks", unit="pages") as bar:
        notebook_runner.run_jobs(jobs, report.profile.workers, write_pages)


def _execute(notebook: Notebook, folder: Path) -> tuple[Notebook, list[NotebookNode]]:
    """Run one notebook, note what came of it, and return it with its cells, down to the failing one."""
    output = folder / "notebooks" / notebook.path.name
    began = time.perf_counter()
    try:
        with files.name_write_errors(output):
            notebook_runner.execute_notebook(notebook.path, output, notebook.parameters, ROOT / "notebooks")
        notebook.status = "ok"
    except Exception as error:  # whatever a kernel dies of must not stop the other notebooks
        notebook.status = "failed"
        kind, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
        notebook.error = " ".join(f"{kind}: {text}".split())[:400]
        notebook.traceback = strip_ansi("\n".join(getattr(error, "traceback", [])))
    notebook.seconds = round(time.perf_counter() - began, 1)
    cells = _cells(output) or _cells(notebook.path)
    notebook.figures = pages.take_figures(cells, folder / "figures", notebook.path.stem)
    if notebook.figures:  # the executed notebook need not hold them too
        book = nbformat.read(output, as_version=4)
        book.cells = cells
        nbformat.write(book, output)
    if notebook.status == "failed":
        states = [cell.metadata.get("papermill", {}).get("status", "pending") for cell in cells]
        begun = [place for place, state in enumerate(states) if state != "pending"]
        cells = cells[: begun[-1] + 1] if begun else []
        if cells:
            cells[-1].metadata["failed"] = True
    return notebook, cells


def _cells(path: Path) -> list[NotebookNode]:
    """The cells of a notebook; none of one that was not written, or not to its end as on a full disk."""
    try:
        return nbformat.read(path, as_version=4).cells
    except (OSError, ValueError):
        return []


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 all green, 1 a notebook failed, 2 wrong input, 3 a fault of vlmad, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m vlmad_lib report", description=__doc__.splitlines()[0])
    parser.add_argument("profile", help="a profile in reports/, or the path of a YAML file")
    override = "override a profile key or notebook parameter with a YAML value; may be repeated"
    parser.add_argument("-p", dest="pairs", action="append", default=[], metavar="KEY=VALUE", help=override)
    parser.add_argument("--out", type=Path, default=ROOT / "reports/out", help="folder of the run folders")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # the index tells what failed
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    command = shlex.join(["python", "-m", "vlmad_lib", "report", *arguments])
    return commands.run_command(lambda: _build_and_show(options, command))


def _build_and_show(options: argparse.Namespace, command: str) -> int:
    """Build the report that a command line asks for and print where it lies; the exit code."""
    report = resolve(options.profile, options.pairs, options.out, command)
    with files.name_write_errors(report.out):
        build(report, progress=sys.stderr.isatty())
    states = [notebook.status for notebook in report.notebooks]
    kinds = ["ok", "failed", *(["not run"] if "not run" in states else [])]
    counts = [f"{states.count(state)} {state}" for state in kinds]
    for notebook in report.notebooks:
        if notebook.status == "failed":
            print(f"{notebook.path.stem}: {notebook.error}", file=sys.stderr)
    for warning in report.facts.get("warnings", []):
        print(f"Warning: {warning}", file=sys.stderr)
    print(report.folder / "index.html")
    print(f"{len(states)} notebooks, {', '.join(counts)}, {report.record()['seconds']:.0f} s")
    return {"ok": 0, "failed": 1}.get(report.status, commands.INTERRUPTED)
