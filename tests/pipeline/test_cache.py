"""The command ``cache``: what is kept, which runs need it, and the removal of what none needs."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from conftest import make_mvtec, small_profile
from test_wrong_input import refused

from vlmad_lib import files
from vlmad_lib.pipeline import cache, run


@pytest.fixture
def kept(tmp_path):
    """A cache with two runs, of which the second has a backbone of its own."""
    root = make_mvtec(tmp_path / "data", ("plate",))
    first = small_profile(root, tmp_path / "cache", shots=[0], title="First")
    second = first.model_copy(
        update={"title": "Second", "methods": [first.methods[0].model_copy(update={"weights": "random:7"})]}
    )
    results = [run.run(profile) for profile in (first, second)]
    return tmp_path / "cache", [first, second], results


def test_each_entry_names_the_runs_that_need_it(kept):
    place, _, _ = kept
    table = cache.list_entries(place)
    for kind in ("features", "units", "runs"):
        rows = table[table.kind == kind]
        assert sorted(name.partition(",")[0] for name in rows["needed by"]) == ["First", "Second"]
    on_disk = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    assert table.bytes.sum() == on_disk and (table.used > 1e9).all()
    assert set(table[table.kind.isin(["text", "contents", "backbones"])]["needed by"]) == {"all"}


def test_what_no_run_needs_is_removed_and_nothing_else(kept, tmp_path):
    place, profiles, results = kept
    assert cache.prune(place).empty
    [of_second] = [
        path for path in place.glob("runs/*") if json.loads((path / cache.NEEDS).read_text())["title"] == "Second"
    ]
    shutil.rmtree(of_second)
    (place / "units/.unit.0123").mkdir()
    (place / "units/.unit.0123/scores.npy").touch()
    outside = tmp_path / "outside"
    shutil.copytree(next(place.glob("features/*")), outside)
    (place / "features/linked").symlink_to(outside)
    before = sorted(place.rglob("*"))
    foreseen = cache.prune(place, dry_run=True)
    assert sorted(foreseen.kind) == ["features", "unfinished", "units"] and sorted(place.rglob("*")) == before
    assert list(cache.prune(place).path) == list(foreseen.path) and cache.prune(place).empty
    assert not any(path.exists() for path in foreseen.path) and list(outside.rglob("*.npy"))
    assert run.run(profiles[0]).scores.equals(results[0].scores)
    assert run.run(profiles[1]).scores.equals(results[1].scores)


def test_nothing_is_removed_while_a_run_is_at_work(kept):
    place, _, _ = kept
    shutil.rmtree(place / "runs")
    with files.hold_lock(place / "runs" / "some-run"):
        refused(lambda: cache.prune(place), "A run is at work")
    assert len(cache.prune(place)) == 4


def test_what_killed_processes_left_is_removed(kept):
    """Locks by the next run that ends, half-written arrays by ``prune``; locks that are held stay."""
    place, profiles, _ = kept
    image = next(place.glob("features/*/*/*/class.npy")).parent
    left = [place / "runs/.old-0123.lock", place / "units/.unit.lock", image.with_name(f".{image.name}.lock")]
    half = image / ".class.npy.0123456789ab"
    for file in (*left, half):
        file.touch()
    other = files.Claim(image.with_name("other"))
    assert other.take()
    shutil.rmtree(place / "runs")
    run.run(profiles[0])
    assert not any(file.exists() for file in left[1:]) and half.exists()
    assert image.with_name(".other.lock").exists()
    other.give_back()
    cache.prune(place, dry_run=True)
    assert half.exists()
    cache.prune(place)
    assert image.is_dir() and not list(place.rglob(".*"))


def test_the_command_says_what_it_frees(kept, tmp_path, capsys):
    place, profiles, _ = kept
    file = tmp_path / "p.yml"
    file.write_text(yaml.safe_dump(profiles[0].model_dump(mode="json", exclude_defaults=True)))
    assert cache.main([str(file)]) == 0
    listed = capsys.readouterr().out
    assert "First, " in listed and "features" in listed and "are kept" in listed
    shutil.rmtree(place / "runs")
    assert cache.main([str(file), "--prune", "--dry-run"]) == 0
    assert "would be freed" in capsys.readouterr().out and list(place.glob("units/*"))
    assert cache.main([str(file), "--prune"]) == 0
    assert "no run" in capsys.readouterr().out and not list(place.glob("units/*"))
    assert cache.main([str(file), "--dry-run"]) == 2
