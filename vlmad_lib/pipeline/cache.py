"""What the cache of a profile keeps, which runs need it, and the removal of what no run needs.

``python -m vlmad_lib cache PROFILE`` lists it; ``--prune`` removes features and units that no kept run names, runs that
an earlier version of the code wrote and no later one reads, and what interrupted processes left.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import pandas as pd

from vlmad_lib import InputError, commands, files
from vlmad_lib.config import load_profile

# The file in a run's folder that names its title, its units and the folders of its features.
NEEDS = "needs.json"
PATTERNS = {"features": "features/*/*", "units": "units/*", "runs": "runs/*"}
LOCKS = {"features": "features/*/*/.*.lock", "units": "units/.*.lock", "runs": "runs/.*.lock"}
COLUMNS = ["kind", "name", "path", "bytes", "used", "needed by"]


def list_entries(cache: Path) -> pd.DataFrame:
    """A row for each thing that a cache keeps: kind, name, path, size in bytes, last use and the runs that need it.

    ``needed by``: titles and dates of the runs that name it; "" for what no kept run needs, and "all" for what is small
    and shared, such as text features and digests. Symbolic links are left out.
    """
    users = _read_needs(cache)
    rows = []
    for kind, pattern in PATTERNS.items():
        for path in sorted(cache.glob(pattern)):
            unfinished = path.name.startswith(".")
            if path.is_dir() and not path.is_symlink():
                name = "/".join(path.relative_to(cache).parts[1:])
                rows.append(("unfinished" if unfinished else kind, name, path, "; ".join(sorted(users.get(path, ())))))
    others = [path for path in cache.iterdir() if path.is_dir() and path.name not in PATTERNS] if cache.is_dir() else []
    rows += [(path.name, "", path, "all") for path in sorted(others) if not path.is_symlink()]
    table = [(*row[:3], *_measure_folder(row[2]), row[3]) for row in rows]
    return pd.DataFrame(table, columns=COLUMNS)


def _read_needs(cache: Path) -> dict[Path, set[str]]:
    """By path in the cache, the titles and dates of the runs that need it."""
    users: dict[Path, set[str]] = {}
    for file in cache.glob(f"runs/[!.]*/{NEEDS}"):
        try:
            needs = files.read_json(file)
        except files.Damaged:  # its run is damaged, and is computed again when it is asked for
            continue
        label = f"{needs['title']}, {_format_date(file.stat().st_mtime)}"
        for path in (file.parent, *(cache / name for name in [*needs["units"], *needs["features"]])):
            users.setdefault(path, set()).add(label)
    return users


def _measure_folder(folder: Path) -> tuple[int, float]:
    """The size of a folder's files in bytes, and the seconds at which one was last read or written."""
    states = [path.stat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    times = [max(state.st_atime, state.st_mtime) for state in states]
    return sum(state.st_size for state in states), max(times, default=folder.stat().st_mtime)


def prune(cache: Path, dry_run: bool = False) -> pd.DataFrame:
    """Remove what no kept run needs, unless ``dry_run``; the rows of ``list_entries`` that were removed.

    Only folders that lie in the cache are removed. InputError while a run is at work there, whose features and units no
    kept run names yet.
    """
    if not remove_locks(cache, ["runs"]):
        raise InputError(f"A run is at work in {cache}; wait until it has ended, then start again.")
    entries = list_entries(cache)
    inside = entries.path.map(lambda path: path.resolve().is_relative_to(cache.resolve())).astype(bool)
    removed = entries[(entries["needed by"] == "") & inside]
    if not dry_run:
        remove_locks(cache)
        for file in _list_inside(cache, "features/*/*/*/.*.npy.*"):  # of processes that were killed while they wrote
            file.unlink(missing_ok=True)
    for path in [] if dry_run else removed.path:
        hidden = path.with_name(f".pruned-{path.name}")  # in one step: what is interrupted leaves no half of a result
        path.rename(hidden)
        shutil.rmtree(hidden)
    return removed


def remove_locks(cache: Path, kinds: Iterable[str] = tuple(LOCKS)) -> bool:
    """Remove the locks of these kinds that killed processes left; whether no process holds any."""
    free = True
    for lock in [lock for kind in kinds for lock in _list_inside(cache, LOCKS[kind])]:
        claim = files.Claim(lock.with_name(lock.name[1 : -len(".lock")]))
        if claim.take():
            claim.give_back()
        else:
            free = False
    return free


def _list_inside(cache: Path, pattern: str) -> list[Path]:
    """The paths of a pattern that lie in the cache, and not behind a link out of it."""
    return [path for path in cache.glob(pattern) if path.parent.resolve().is_relative_to(cache.resolve())]


def _format_date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d")


def format_entries(entries: pd.DataFrame) -> pd.DataFrame:
    """The table for people: units and runs together by what needs them, features each by itself."""
    shown = entries.assign(name=entries.name.where(entries.kind == "features", ""))
    groups = shown.groupby(["kind", "name", "needed by"], sort=False)
    table = groups.agg(count=("path", "size"), bytes=("bytes", "sum"), used=("used", "max")).reset_index()
    table["MB"], table["last used"] = table.bytes / 1e6, table.used.map(_format_date)
    return table[["kind", "name", "count", "MB", "last used", "needed by"]].replace({"needed by": {"": "no run"}})


def main(arguments: list[str] | None = None) -> int:
    """The command line: what the cache of a profile keeps, or with ``--prune`` what was removed from it."""
    parser = argparse.ArgumentParser(prog="python -m vlmad_lib cache", description=main.__doc__.replace("``", ""))
    parser.add_argument("profile", help="a profile in reports/, or the path of a YAML file")
    parser.add_argument("--prune", action="store_true", help="remove what no kept run needs; it can be computed again")
    parser.add_argument("--dry-run", action="store_true", help="with --prune: only say what would be removed")
    options = parser.parse_args(arguments)

    def work() -> int:
        if options.dry_run and not options.prune:
            raise InputError("--dry-run belongs to --prune; give both, or neither.")
        profile = load_profile(options.profile)
        cache = profile.path(profile.cache)
        entries = prune(cache, options.dry_run) if options.prune else list_entries(cache)
        if len(entries):
            print(format_entries(entries).to_string(index=False, float_format="{:,.1f}".format))
        total = f"{entries.bytes.sum() / 1e6:,.1f} MB in {len(entries)} folders of {cache}"
        verb = "would be freed" if options.dry_run else "were freed" if options.prune else "are kept"
        print(f"{total} {verb}.")
        return 0

    return commands.run_command(work)
