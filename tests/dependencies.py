"""What the environment is made of: ``python tests/dependencies.py audit``, or ``lock`` to write requirements.lock.

The audit prints every package that the workbook needs, also at one remove, with version, licence and who needs it.
Exit code 1 on a fault: one is missing or outside its range, has a licence that would bind the workbook's users or none
that is stated, is imported but not declared, or declared but not imported. It asks no server; known weaknesses of these
versions are what ``pip-audit -r requirements.lock`` tells where there is a network.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
EXTRAS = ("test", "browser", "cluster")
BINDING = re.compile(r"\b(A?GPL|GNU (AFFERO )?GENERAL PUBLIC|SSPL|BUSL|CC-BY-NC)\b", re.IGNORECASE)
COMMANDS = {"dask", "jupyterlab", "pytest-xdist", "mypy", "ruff", "nbstripout", "pyarrow", "torchvision"}
"""Declared for what they do, not imported: programs, and what joblib, pandas and open_clip import."""
STATED = {"cuda-toolkit": "NVIDIA's own licence, with CUDA builds of PyTorch only"}
"""Licences that a package does not state itself."""


def declared() -> list[Requirement]:
    """What pyproject.toml asks for, extras too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] + [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in dict.fromkeys(lines)]


def closure() -> tuple[dict[str, metadata.Distribution], dict[str, set[str]], list[str]]:
    """The installed packages by name, who needs each, and what is missing or outside a range."""
    found, needed, faults = {}, {}, []
    todo = [("vlmad", requirement) for requirement in declared()]
    seen = set()
    while todo:
        who, wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        needed.setdefault(name, set()).add(who)
        try:
            one = found.setdefault(name, metadata.distribution(wanted.name))
        except metadata.PackageNotFoundError:
            faults.append(f"{name} is not installed; {who} needs it")
            continue
        if not wanted.specifier.contains(one.version, prereleases=True):
            faults.append(f"{name} {one.version} is outside {wanted.specifier}, which {who} needs")
        for extra in {"", *wanted.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            inner = [Requirement(line) for line in one.requires or []]
            todo += [(name, more) for more in inner if not more.marker or more.marker.evaluate({"extra": extra})]
    return found, needed, faults


def licence(one: metadata.Distribution) -> str:
    """The licence that a package states, in one line; empty where it states none."""
    classes = [line.rpartition(" :: ")[2] for line in one.metadata.get_all("Classifier") or [] if "License ::" in line]
    stated = one.metadata.get("License-Expression") or ", ".join(classes) or one.metadata.get("License") or ""
    stated = stated or STATED.get(canonicalize_name(one.name), "")
    return stated.strip().partition("\n")[0][:60]


def imported() -> Iterator[tuple[str, str]]:
    """The outside modules that code and notebooks import, and the file that does."""
    own = {"vlmad_lib", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    for path in [*ROOT.glob("vlmad_lib/**/*.py"), *ROOT.glob("tests/**/*.py"), *ROOT.glob("notebooks/*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
            text = "\n".join(re.sub(r"^(\s*)[%!].*", r"\1pass", "".join(cell["source"]), flags=re.M) for cell in cells)
        for node in ast.walk(ast.parse(text)):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in {name.partition(".")[0] for name in names} - own - sys.stdlib_module_names:
                yield name, str(path.relative_to(ROOT))


def undeclared() -> list[str]:
    """Sentences on packages that are imported and not declared, or declared and not imported."""
    wanted, providers = {canonicalize_name(one.name) for one in declared()}, metadata.packages_distributions()
    faults, used = [], set()
    for module, file in imported():
        names = {canonicalize_name(name) for name in providers.get(module, [module])}
        used |= names
        if not names & wanted:
            faults.append(f"{file} imports {module}, of {', '.join(sorted(names))}, which pyproject.toml does not name")
    return faults + [f"{name} is declared and nothing imports it" for name in sorted(wanted - used - COMMANDS)]


def locked() -> str:
    """The lines of requirements.lock: exact versions for ``pip install -c``."""
    found, needed, _ = closure()
    lines = [f"{name}=={found[name].version}  # {', '.join(sorted(needed[name])[:3])}" for name in sorted(found)]
    head = [
        "# Written by make lock: the versions that the tests passed with, and what needs each.",
        "# pip install -c requirements.lock -e .   (or: make report LOCKED=1)",
    ]
    return "\n".join([*head, *lines]) + "\n"


def main() -> int:
    """The command line; 1 where the audit finds a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["audit", "lock"])
    if parser.parse_args().command == "lock":
        LOCK.write_text(locked(), encoding="utf-8")
        print(LOCK)
        return 0
    found, needed, faults = closure()
    for name in sorted(found):
        stated = licence(found[name])
        print(f"{name} {found[name].version}: {stated or 'no licence stated'}; for {', '.join(sorted(needed[name]))}")
        if not stated or BINDING.search(stated):
            faults.append(f"{name}: look at its licence ({stated or 'none stated'})")
    faults += undeclared()
    print("\n".join([f"{len(found)} packages, {len(faults)} faults", *faults]))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
