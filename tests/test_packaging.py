"""The two ways to make the environment agree, and what is committed is clean."""

from __future__ import annotations

import ast
import inspect
import json
import re
import tomllib
from importlib import import_module
from pathlib import Path

import dependencies
import pytest
import yaml
from conftest import make_mvtec, write_profile
from packaging.utils import canonicalize_name

import vlmad_lib
from vlmad_lib import PACKAGE, ROOT, config
from vlmad_lib.__main__ import COMMANDS

CONDA_NAMES = {"pytorch": "torch", "open-clip-torch": "open_clip_torch"}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_environment_and_pyproject_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["test"],
        f"python{project['requires-python']}",
    ]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert conda[-1] == {"pip": ["-e ."]}
    found = [line for line in conda[:-1] if line != "pip"]
    split = lambda line: re.match(r"([\w-]+)(.*)", line).groups()  # noqa: E731
    assert {CONDA_NAMES.get(name, name): pin for name, pin in map(split, found)} == dict(map(split, wanted))


def test_the_lock_file_pins_all_that_is_declared_and_names_no_host():
    lines = dependencies.LOCK.read_text().splitlines()
    pins = dict(re.fullmatch(r"([\w.-]+)==([\w.]+)  # .+", line).groups() for line in lines if not line.startswith("#"))
    assert len(pins) > 100
    for wanted in dependencies.declared():
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), wanted


def test_what_is_imported_is_declared_and_the_other_way_round():
    assert dependencies.undeclared() == []


def test_every_line_of_the_environment_says_what_needs_it():
    lines = (ROOT / "environment.yml").read_text().splitlines()
    packages = [line for line in lines if re.match(r"  - \w.*[<>=]", line) and not line.startswith("  - python>")]
    assert len(packages) > 20 and all("  # " in line for line in packages)


@pytest.mark.parametrize("path", sorted(config.FOLDER.glob("*.yml")), ids=lambda path: path.stem)
def test_every_profile_is_valid_and_names_its_notebooks(path):
    loaded = config.load_profile(path)
    assert all((ROOT / "notebooks" / f"{name}.ipynb").is_file() for name in loaded.notebooks)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stripped_thin_and_in_shape(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    text = "".join("".join(cell["source"]) for cell in notebook["cells"])
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert path.stat().st_size < 50_000
    assert [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert "".join(notebook["cells"][0]["source"]).startswith(f"# {path.name[:2]} ")
    exercise = {"skip-execution", "solution"}
    for cell in code:
        if not exercise & set(cell["metadata"].get("tags", [])):
            assert not re.search(r"^\s*(def|class) ", "".join(cell["source"]), re.M), cell["source"]
    cells = notebook["cells"]
    answers = [place for place, cell in enumerate(cells) if "answer" in cell["metadata"].get("tags", [])]
    for heading in ("## Exercises", "## Next"):
        assert heading in text, heading
    assert len(answers) == 1 and "show_answer(" in "".join(cells[answers[0]]["source"])
    assert not any(
        cell["cell_type"] == "markdown" and "## " in "".join(cell["source"]) for cell in cells[1 : answers[0]]
    )
    headings = re.findall(r"^##+ (.*)", text, re.M)
    assert not {"Load", "Compute", "Table", "Figure", "What we see"} & set(headings)
    prose = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    assert len(re.findall(r"^# ", prose, re.M)) == 1


def test_nothing_names_this_machine():
    suffixes = {".py", ".md", ".yml", ".toml", ".ipynb", ".json", ".j2"}
    files = [
        path
        for folder in ("vlmad_lib", "notebooks", "tests", "reports/template")
        for path in (ROOT / folder).rglob("*")
    ]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    pattern = re.compile("/(" + "|".join(["work", "farm", "root"]) + ")/")
    for path in files:
        if path.suffix in suffixes:
            assert not pattern.search(path.read_text(encoding="utf-8")), path


PACKAGES = ("", "data", "encoders", "evaluation", "methods", "pipeline", "analysis", "reporting")


def imported(file: Path) -> set[str]:
    """The packages of the library that a file imports from, "" for its top."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vlmad_lib":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
    return {name if (PACKAGE / name).is_dir() else "" for name in found}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_from_those_before_it(package):
    """But for the demo, whose drawn data three modules write where they are wanted, and the command line."""
    files = (PACKAGE / package).glob("*.py")
    above = set(PACKAGES[PACKAGES.index(package) + 1 :])
    for file in files:
        assert not imported(file) & above, file


def test_nothing_of_the_workbook_imports_what_trains_the_demo():
    training = PACKAGE / "demo" / "training"
    for file in [*PACKAGE.rglob("*.py"), *NOTEBOOKS]:
        if training not in file.parents:
            assert "demo.training" not in file.read_text(encoding="utf-8"), file


def test_the_readmes_script_runs(tmp_path, monkeypatch):
    """The public names, on a profile of this test in the place of the demo's."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## How it works")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    file = write_profile(tmp_path, dataset="folder", root=str(make_mvtec(tmp_path / "data", ("plate",))), shots=[0])
    assert 'load_profile("demo")' in code
    exec(code.replace('"demo"', repr(str(file))), names := {})
    assert isinstance(names["results"], vlmad_lib.Results) and len(names["results"].scores) == 8


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_what_is_typed_behind_its_name(command):
    signature = inspect.signature(import_module(COMMANDS[command][0]).main)
    signature.bind(["--help"])
