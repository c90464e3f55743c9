"""Results of other tools become rows of the scores table like any other."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_mvtec, small_profile

from vlmad_lib import InputError, data, run


def profile(root, tmp_path, path, **changes):
    imports = [{"name": "other tool", "path": str(path)}]
    return small_profile(root, tmp_path / "cache", methods=[], imports=imports, **changes)


@pytest.fixture
def perfect(mvtec, tmp_path):
    """Maps that equal the masks, at another size than the images."""
    table, _ = data.index(small_profile(mvtec, tmp_path / "cache"))
    rows = data.tested(table)
    maps = {
        (row.category, row.defect, row.image[-7:-4]): data.framed_mask(row.mask, 60, 60, "squash", 30).astype(
            np.float32
        )
        for row in rows.itertuples()
    }
    return mvtec, maps


def save_npz(folder, maps):
    folder.mkdir()
    for category in {key[0] for key in maps}:
        named = {f"{defect}-{stem}": values for (name, defect, stem), values in maps.items() if name == category}
        np.savez(folder / f"{category}.npz", **named)
    return folder


def save_npy(folder, maps):
    for (category, defect, stem), values in maps.items():
        place = folder / category / "test" / defect
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{stem}.npy", values)
    return folder


@pytest.mark.parametrize("save", [save_npz, save_npy])
def test_maps_from_both_layouts(perfect, tmp_path, save):
    root, maps = perfect
    found = run.run(profile(root, tmp_path, save(tmp_path / "maps", maps)))
    assert len(found.scores) == 16 and set(found.scores.method) == {"other tool"}
    assert (found.metrics.image_auroc == 1).all() and (found.metrics.pixel_auroc > 0.99).all()
    assert found.maps(found.scores)[0].shape == (1, 30, 30)
    assert found.facts["warnings"] == [] and found.facts["backbones"] == []


def test_scores_alone_from_a_csv(mvtec, tmp_path):
    lines = ["category,defect,image,score"]
    lines += [
        f"{c},{d},{i:03}.png,{i + 10 * (d == 'spot')}"
        for c in ("plate", "cloth")
        for d in ("good", "spot")
        for i in range(4)
    ]
    (tmp_path / "scores.csv").write_text("\n".join(lines))
    found = run.run(profile(mvtec, tmp_path, tmp_path / "scores.csv"))
    assert (found.metrics.image_auroc == 1).all() and found.metrics.pixel_auroc.isna().all()
    with pytest.raises(InputError, match="scores but no maps"):
        found.maps(found.scores)


def test_scores_beside_maps_win_over_the_maximum(perfect, tmp_path):
    root, maps = perfect
    folder = save_npz(tmp_path / "maps", maps)
    lines = [f"{c},{d},{s},{0.25}" for c, d, s in maps]
    (folder / "scores.csv").write_text("\n".join(["category,defect,image,score", *lines]))
    assert set(run.run(profile(root, tmp_path, folder)).scores.score) == {0.25}


def test_what_is_not_covered_is_said(perfect, tmp_path):
    root, maps = perfect
    partial = {key: values for key, values in maps.items() if key[0] == "plate" and key != ("plate", "spot", "003")}
    partial["plate", "spot", "999"] = next(iter(maps.values()))
    found = run.run(profile(root, tmp_path, save_npz(tmp_path / "maps", partial)))
    notes = " ".join(found.facts["notes"])
    assert "1 results of plate have no test image" in notes
    assert "plate lacks results for 1 test images" in notes and "no results for cloth" in notes
    assert len(found.scores) == 7


def test_imports_and_methods_share_one_table(perfect, tmp_path):
    root, maps = perfect
    both = small_profile(
        root, tmp_path / "cache", shots=[0], imports=[{"name": "other", "path": str(save_npz(tmp_path / "m", maps))}]
    )
    found = run.run(both)
    assert found.scores.groupby("method").size().to_dict() == {"WinCLIP": 16, "other": 16}
    assert list(found.headline().method) == ["WinCLIP, zero-shot", "other, zero-shot"]


def test_changed_maps_are_read_again(perfect, tmp_path):
    root, maps = perfect
    folder = save_npy(tmp_path / "maps", maps)
    before = run.run(profile(root, tmp_path, folder)).metrics.pixel_auroc.mean()
    save_npy(folder, {key: 1 - values for key, values in maps.items()})
    assert run.run(profile(root, tmp_path, folder)).metrics.pixel_auroc.mean() < 0.1 < before


def test_results_of_fixed_size_root(tmp_path):
    """A file name with dashes in its defect keeps its stem."""
    root = make_mvtec(tmp_path / "data", ("plate",))
    (root / "plate/test/spot").rename(root / "plate/test/spot-on")
    (root / "plate/ground_truth/spot").rename(root / "plate/ground_truth/spot-on")
    keys = [("good", i) for i in range(4)] + [("spot-on", i) for i in range(4)]
    (tmp_path / "maps").mkdir()
    np.savez(tmp_path / "maps/plate.npz", **{f"{d}-{i:03}": np.full((4, 4), float(d != "good")) for d, i in keys})
    assert run.run(profile(root, tmp_path, tmp_path / "maps")).metrics.image_auroc.tolist() == [1.0]


def test_names_with_hyphens_dots_and_na(tmp_path):
    """Ordinary file names, in both forms that results come in."""
    from conftest import paint

    root = tmp_path / "data"
    for number in range(3):
        paint(root / "plate/test/good" / f"img-{number}.v1.png", number)
        paint(root / "plate/test/NA" / f"part.{number}-x.png", 10 + number, spot=True)
    named = {f"good-img-{number}.v1": np.zeros((9, 9)) for number in range(3)}
    named |= {f"NA-part.{number}-x": np.ones((9, 9)) for number in range(3)}
    (tmp_path / "maps").mkdir()
    np.savez(tmp_path / "maps/plate.npz", **named)
    lines = [f"plate,good,img-{number}.v1,{number}" for number in range(3)]
    lines += [f"plate,NA,part.{number}-x.png,{9 + number}" for number in range(3)]
    (tmp_path / "s.csv").write_text("\n".join(["category,defect,image,score", *lines]))
    for place in ("maps", "s.csv"):
        found = run.run(profile(root, tmp_path, tmp_path / place, shots=[0]))
        assert len(found.scores) == 6 and (found.metrics.image_auroc == 1).all()
