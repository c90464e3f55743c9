"""Two reports compared: what differs, by how much, and which pictures changed sides."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup
from conftest import TINY, make_mvtec, small_profile

from vlmad_lib import InputError
from vlmad_lib.evaluation import statistics
from vlmad_lib.pipeline import run
from vlmad_lib.reporting import compare


def write_report(folder, results):
    """What a report leaves in its folder of a run's results."""
    folder.mkdir()
    profile = results.profile
    (folder / "profile.yml").write_text(yaml.safe_dump(profile.model_dump()))
    record = {
        "profile": {"title": profile.title, "notice": "", "values": profile.model_dump()},
        "facts": results.facts,
        "commit": folder.name,
        "started": "2026-01-02T03:04:05",
    }
    (folder / "run.json").write_text(json.dumps(record, default=str))
    for name in ("scores", "metrics"):
        getattr(results, name).to_parquet(folder / f"{name}.parquet")
    return compare.read_report(folder)


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Two reports on the same pictures, of a method with other windows."""
    folder = tmp_path_factory.mktemp("compare")
    make_mvtec(folder / "data")
    done = []
    for number, windows in enumerate(([1, 2], [2])):
        spec = TINY | {"name": "One", "settings": {"windows": windows}}
        profile = small_profile(folder / "data", folder / "cache", methods=[spec], shots=[0, 1], seeds=[0])
        done.append(write_report(folder / f"report{number}", run.run(profile)))
    return done


def test_only_what_differs_is_listed(reports):
    before, after = reports
    assert compare.list_changes(before.record, before.record).empty
    changes = compare.list_changes(before.record, after.record).set_index("what")
    assert set(changes.index) == {"commit of the workbook", "method One: settings"}
    assert "[1, 2]" in changes.before["method One: settings"] and "[2]" in changes.after["method One: settings"]


def test_differences_are_those_of_the_tables(reports):
    before, after = reports
    compared = compare.compare_metrics(before, after)
    assert set(compared.name) == {"One, zero-shot", "One, 1-shot"}
    for row in compared.itertuples():
        assert row.difference == pytest.approx(row.after - row.before, abs=1e-9)
    row = compared[(compared.name == "One, zero-shot") & (compared.measure == "image_auroc")].iloc[0]
    zero = [side.results.scores[side.results.scores.shots == 0] for side in (after, before)]
    level = statistics.together(len(compared))
    expected = statistics.macro_difference(*zero, statistics.resamples_at(level), level=level)
    assert (row.difference, row.low, row.high) == pytest.approx(expected) and row.n == zero[0].image.nunique()


def test_the_same_report_changes_nothing(reports):
    before, _ = reports
    compared = compare.compare_metrics(before, before)
    assert (compared.difference == 0).all() and compare.find_changed_pictures(before, before, 0.1).empty
    assert all("is the same" in sentence for sentence in compare.describe_changes(compared))


def test_pictures_that_change_sides_are_found_wherever_they_lie(reports):
    """A defect that was missed is found after; the second run's pictures lie in another folder."""
    before, _ = reports
    scores = before.results.scores
    defect = scores[(scores.label == 1) & (scores.shots == 0)].iloc[0]
    shared = (scores.image == defect.image) & (scores.shots == 0)
    low, high = (scores.score.where(~shared, value) for value in (scores.score.min() - 1, scores.score.max() + 1))
    moved = scores.image.str.replace("/data/", "/elsewhere/data/")
    sides = [
        replace(before, results=replace(before.results, scores=scores.assign(score=low))),
        replace(before, results=replace(before.results, scores=scores.assign(score=high, image=moved))),
    ]
    changed = compare.find_changed_pictures(*sides, rate=0.1)
    assert (
        len(changed) == 1 and changed["judged before"][0] == "escape" and changed["judged after"][0] == "defect found"
    )
    assert changed.image[0].endswith(defect.image.rsplit("/")[-1])


def test_the_page_shows_changes_metrics_and_maps(reports, tmp_path, capsys):
    before, after = reports
    out = tmp_path / "page.html"
    assert compare.main([str(before.folder), str(after.folder), "--rate", "0.3", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    page = BeautifulSoup(out.read_text(), "html.parser")
    rows = {row.td.get_text() for row in page.select("tbody tr")}
    assert "method One: settings" in rows and "One, zero-shot" in rows
    changed = compare.find_changed_pictures(before, after, 0.3)
    assert f"{len(changed)} judgements of single pictures changed" in page.select_one(".answer").get_text()
    assert len(page("img")) == 2 * changed.name.nunique()


@pytest.mark.parametrize("name", ["run.json", "profile.yml", "scores.parquet"])
def test_a_folder_that_is_no_report_is_named(reports, tmp_path, name, capsys):
    broken = tmp_path / "broken"
    write = {file.name: file.read_bytes() for file in reports[0].folder.iterdir()}
    broken.mkdir()
    for file, content in write.items():
        if file != name:
            (broken / file).write_bytes(content)
    with pytest.raises(InputError, match=name):
        compare.read_report(broken)
    assert compare.main([str(broken), str(broken)]) == 2 and name in capsys.readouterr().err
    (broken / name).write_bytes(b"\x00{")
    with pytest.raises(InputError, match="broken|profile"):
        compare.read_report(broken)


def test_reports_without_a_method_in_common_say_so(reports):
    before, _ = reports
    other = before.results.scores.assign(method="Two")
    metrics = before.results.metrics.assign(method="Two")
    alone = replace(before, results=replace(before.results, scores=other, metrics=metrics))
    compared = compare.compare_metrics(before, alone)
    assert isinstance(compared, pd.DataFrame) and compared.empty and compare.describe_changes(compared) == []
