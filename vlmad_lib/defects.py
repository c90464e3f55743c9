"""Breakdowns by what a defect looks like: contrast levels and defect classes, each against its own category's normals.

The AUROC of some anomalous images is the mean share of their category's normal images that they outscore, so images of
several categories can be pooled although scores of different categories cannot be compared.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from IPython.display import Markdown
from pandas.io.formats.style import Styler

from vlmad_lib import breakdown, contrast, data, statistics, sweeps, within
from vlmad_lib.breakdown import SMALL
from vlmad_lib.profile import Profile
from vlmad_lib.statistics import percent

CLASSES = (
    *("Missing Component", "Logical Error", "Geometric Deformation", "Surface Pattern", "Multiple"),
    *("Surface Damage", "Foreign Material", "Appearance Change", "Structural Break", "Missing Material"),
)
"""The study's ten defect classes, in the order of its Table 6."""
UNKNOWN = "unknown"
_LABEL = {"visa": "label_token_in_image_anno_csv"}  # the column that holds the data set's own defect names


# ---------------------------------------------------------------- what a defect is


def taxonomy(profile: Profile) -> dict[tuple[str, str], str]:
    """The defect class of each (category, defect) by a profile's ``taxonomy`` file, or by that of its data set.

    The file is a CSV with the columns category, defect_type and proposed_class. InputError where it cannot be read.
    """
    path = profile.path(profile.taxonomy) if profile.taxonomy else data.REFERENCE / f"{profile.dataset}_defects.csv"
    if not path.is_file() and not profile.taxonomy:
        return {}
    usual = "defect_type"
    named = _LABEL.get(profile.dataset, usual)
    table = data.texts(path, ("category", "proposed_class"), "correct it or leave 'taxonomy' out", (usual, named))
    named = named if named in table else usual
    return dict(zip(zip(table.category, table[named], strict=True), table.proposed_class, strict=True))


def classes(rows: pd.DataFrame, profile: Profile) -> pd.Series:
    """The defect class of each row of an index or scores table; ``unknown`` where the taxonomy has none.

    Without any taxonomy, as for own pictures, a defect's own name is its class. An image with several labels of
    different classes is ``Multiple``; normal images have the empty class.
    """
    known = taxonomy(profile)
    keys = rows[["category", "labels", "defect", "label"]]
    distinct, found = keys.drop_duplicates(), []  # a large table has few
    for row in distinct.itertuples():
        labels = row.labels.split(";") if row.labels else [row.defect]
        named = {known.get((row.category, label), UNKNOWN) if known else label for label in labels}
        if len(named) > 1:
            named = {"Multiple"}
        one = next(iter(named))
        found.append("" if row.label == 0 else one if one in CLASSES or not known else UNKNOWN)
    one_each = distinct.assign(found=pd.Series(found, distinct.index, dtype=str))
    return keys.merge(one_each, how="left").found.set_axis(rows.index).rename(None)


def unknown(rows: pd.DataFrame) -> str:
    """A sentence on the defects without a class in a table with ``defect_class``; empty where all have one."""
    without = rows[(rows.defect_class == UNKNOWN) & (rows.label == 1)].drop_duplicates("image")
    if without.empty:
        return ""
    names = sorted({f"{row.category}/{row.defect}" for row in without.itertuples()})
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    told = sweeps.count(len(without), "image has", "images have")
    return (
        f"{told} a defect without a class ({shown}), shown as unknown. "
        "Give them one in a file named by 'taxonomy' in the profile."
    )


# ---------------------------------------------------------------- tables


def _parts(scores: pd.DataFrame, chosen: pd.Series) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores of the normal and of the chosen anomalous images of every category of one variant."""
    found = []
    for category, bad in scores[chosen & (scores.label == 1)].groupby("category"):
        normal = scores[(scores.category == category) & (scores.label == 0)]
        found.append((normal.score.to_numpy(), bad.score.to_numpy()))
    return [part for part in found if len(part[0])]


def _variants(scores: pd.DataFrame, shots: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each method at a number of shots, with the scores of its first reference draw."""
    yield from breakdown.first_draws(scores, shots).groupby("method", sort=False)


def _won(part: pd.DataFrame) -> pd.DataFrame:
    """The anomalous images of one variant with ``win``: the share of their category's normal images they outscore."""
    found = [
        one[one.label == 1].assign(win=statistics.wins(one.label.to_numpy(), one.score.to_numpy()))
        for _, one in part.groupby("category")
    ]
    return pd.concat(found) if found else part.assign(win=0.0)


def _values(column: pd.Series, order: tuple[str, ...]) -> list[str]:
    """The values of a column, those of ``order`` first."""
    present = set(column.dropna())
    return [*(one for one in order if one in present), *sorted(present - set(order))]


def by(scores: pd.DataFrame, column: str, order: tuple[str, ...] = (), shots: int = 0) -> pd.DataFrame:
    """AUROC with its 95 % interval of the anomalous images of each value of a column, by method.

    ``images``, ``types`` and ``categories`` say what it rests on. Images whose category has no normal test image are
    left out; so are missing values.
    """
    rows = []
    for name, part in _variants(scores, shots):
        won = _won(part)
        for value in _values(won[column], order):
            bad, pairs = won[(won[column] == value) & won.win.notna()], _parts(part, part[column] == value)
            low, high = statistics.subset_interval(pairs)
            auroc = float(bad.win.mean())
            counts = {"images": sum(len(b) for _, b in pairs), "types": bad.groupby(["category", "defect"]).ngroups}
            rows.append(
                {"method": name, column: value, "auroc": auroc, "low": low, "high": high}
                | counts
                | {"categories": bad.category.nunique()}
            )
    columns = ["method", column, "auroc", "low", "high", "images", "types", "categories"]
    return pd.DataFrame(rows, columns=columns)


def types(scores: pd.DataFrame, shots: int = 0) -> pd.DataFrame:
    """AUROC of each defect type of each category by method, with its 95 % interval and number of images."""
    rows = []
    for name, part in _variants(scores, shots):
        for (category, group, defect), bad in part[part.label == 1].groupby(["category", "group", "defect"]):
            normal = part[(part.category == category) & (part.label == 0)].score
            labels = np.repeat([0, 1], [len(normal), len(bad)])
            values = np.r_[normal, bad.score]
            low, high = statistics.auroc_interval(labels, values)
            auroc = statistics.wins(labels, values).mean()
            found = {"auroc": auroc, "low": low, "high": high, "images": len(bad)}
            rows.append({"method": name, "category": category, "group": group, "defect": defect} | found)
    columns = ["method", "category", "group", "defect", "auroc", "low", "high", "images"]
    return pd.DataFrame(rows, columns=columns)


def recall(scores: pd.DataFrame, column: str, order: tuple[str, ...] = (), rate: float = 0.05, shots: int = 0):
    """Recall of each value of a column at a false-positive rate of at most ``rate`` in every category, by method.

    A category's threshold is the lowest score that at most this share of its normal images exceed. ``low`` and
    ``high`` are Wilson's 95 % interval of the recall; it takes the thresholds as given.
    """
    rows = []
    for name, part in _variants(scores, shots):
        normal = part[part.label == 0].groupby("category").score
        limits = normal.agg(lambda values: _limit(values.to_numpy(), rate))
        hit = part.score > part.category.map(limits)  # without normal images there is no limit and no hit
        bad = part[(part.label == 1) & part.category.isin(limits.index)].assign(hit=hit)
        for value in _values(bad[column], order):
            chosen = bad[bad[column] == value].hit
            low, high = statistics.wilson(chosen.sum(), len(chosen))
            found = {"recall": chosen.mean(), "low": low, "high": high, "images": len(chosen)}
            rows.append({"method": name, column: value} | found)
    return pd.DataFrame(rows, columns=["method", column, "recall", "low", "high", "images"])


def _limit(normal: np.ndarray, rate: float) -> float:
    allowed = int(np.floor(within("rate", rate, 0, 1) * len(normal) + 1e-9))
    return float(np.sort(normal)[::-1][allowed]) if allowed < len(normal) else float("-inf")


def false_positives(scores: pd.DataFrame, rate: float = 0.05, shots: int = 0) -> pd.DataFrame:
    """What ``recall`` allows itself: normal images above their category's threshold, of how many, by method."""
    rows = []
    for name, part in _variants(scores, shots):
        normal = part[part.label == 0]
        above = sum(int((one > _limit(one.to_numpy(), rate)).sum()) for _, one in normal.groupby("category").score)
        low, high = statistics.wilson(above, len(normal))
        rows.append({"method": name, "false positives": above, "normal images": len(normal), "low": low, "high": high})
    return pd.DataFrame(rows)


def blind(scores: pd.DataFrame, rate: float, shots: int = 0) -> str:
    """What ``recall`` says where a category's normal images are too few for ``rate``: it allows none; empty if none is.

    For brackets: ``no image of 16 in 12 of 12 categories``.
    """
    normal = breakdown.first_draws(scores[scores.label == 0], shots).groupby("category").image.nunique()
    few = normal[np.floor(rate * normal + 1e-9) == 0]
    if few.empty or rate == 0:
        return ""
    return f"no image of {sweeps.spanned(few)} in {len(few)} of {breakdown.categories(len(normal))}"


def apart(
    scores: pd.DataFrame, found: pd.DataFrame, ends: tuple[str, str] | None = None, shots: int = 0
) -> pd.DataFrame:
    """AUROC of the value *second* of a column less that of *first*, by method, with the interval of the difference.

    ``found``: a table of ``by``; ``ends``: the two values. Without them they are the hardest and the easiest of a
    method's values with at least ``SMALL`` images, and the interval holds for all *pairs* of those together
    (Bonferroni), since they were picked by the same images.
    """
    rows, column = [], found.columns[1]
    for name, part in _variants(scores, shots):
        own = found[found.method == name].dropna(subset="auroc")
        firm = own[own[column].isin(ends) if ends else own.images >= SMALL].sort_values("auroc")
        if len(firm) < 2:
            continue
        first, second = ends or firm[column].iloc[[0, -1]]
        pairs = len(firm) * (len(firm) - 1) // 2
        sides = [
            tuple(
                one.score[chosen].to_numpy() for chosen in (one.label == 0, one[column] == second, one[column] == first)
            )
            for _, one in part.groupby("category")
        ]
        rows.append(
            (name, first, second, *statistics.subset_difference(sides, statistics.together(pairs)), len(firm), pairs)
        )
    return pd.DataFrame(rows, columns=["method", "first", "second", "difference", "low", "high", "values", "pairs"])


def correlations(scores: pd.DataFrame, found: pd.DataFrame, shots: int = 0) -> pd.DataFrame:
    """Spearman's rank correlation of detection with each measure, by method, with 95 % intervals; *n* pairs.

    Twice: over defect types (``found``: their AUROC and median measures), where categories differ in much besides; and
    over images within their category (``scores`` with the measures: the share of normal images an image outscores), of
    categories with two or more.
    """
    rows = []
    for name, part in _variants(scores, shots):
        kinds, inside = found[found.method == name], _within(part)
        for scope, table, value in (("types", kinds, "auroc"), ("images within a category", inside, "win")):
            for measure in contrast.MEASURES:
                pairs, groups = table[["category", measure, value]].dropna(), 1
                if value == "win":
                    pairs = pairs[pairs.groupby("category").win.transform("size") > 1]
                    groups = pairs.category.nunique()
                ends = statistics.rank_correlation(pairs[measure], pairs[value], groups)
                rows.append((name, measure, scope, *ends, len(pairs)))
    return pd.DataFrame(rows, columns=["method", "measure", "over", "rank correlation", "low", "high", "n"])


def _within(part: pd.DataFrame) -> pd.DataFrame:
    """Wins and measures of the anomalous images as ranks within their category, between -0.5 and 0.5."""
    found = []
    columns = ["win", *contrast.MEASURES]
    for category, bad in _won(part).groupby("category"):
        ranks = bad[columns].rank()
        found.append(((ranks - 0.5) / ranks.count() - 0.5).assign(category=category))
    return pd.concat(found) if found else pd.DataFrame(columns=[*columns, "category"])


def missed(scores: pd.DataFrame, found: pd.DataFrame, shots: int = 0) -> pd.DataFrame:
    """Rows of the first method: of its three classes of least AUROC (``found``), the two images ranked lowest each."""
    rows = []
    for name, part in _variants(scores, shots):
        hardest = found[found.method == name].dropna(subset="auroc").sort_values("auroc").defect_class[:3]
        won = _won(part)
        rows += [won[won.defect_class == one].sort_values("win")[:2] for one in hardest]
        break
    return pd.concat(rows) if rows else scores.iloc[:0].assign(win=0.0)


def beside_study(found: pd.DataFrame, column: str, study: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``by`` beside the study's of the same name, its AUROC and defect types on MVTec AD.

    They stand on the rows of the method that the study tells them of (AnomalyCLIP), by its name, and nowhere else.
    """
    study = study.assign(value=pd.to_numeric(study.value))
    printed = study.pivot_table(index="item", columns="metric", values="value")
    names = found[column].str.lower().str.replace(" ", "_")
    printed = printed.set_axis(printed.index.str.lower().str.replace(" ", "_")).reindex(names)
    printed[~found.method.str.contains(study.method.iloc[0]).to_numpy()] = np.nan
    counts = pd.array(printed.n_defect_types, dtype="Int64")
    return found.assign(**{"study": printed.auroc.to_numpy(), "study's types": counts})


def tidy(table: pd.DataFrame, without: str = breakdown.NO_ROWS) -> Styler | Markdown:
    """A frame for display: AUROC spelt out, interval ends in one column, shares with three decimals.

    Without rows it is the sentence ``without``.
    """
    shown = table.copy()
    if {"low", "high"} <= set(shown):
        pairs = list(zip(shown.low, shown.high, strict=True))
        ends = [f"{low:.3f} to {high:.3f}" if low == low and high == high else None for low, high in pairs]
        shown = shown.assign(low=ends).drop(columns="high").rename(columns={"low": "95 % interval"})
    return breakdown.table(shown.rename(columns={"auroc": "AUROC", "defect_class": "defect class"}), without=without)


# ---------------------------------------------------------------- sentences


def level_findings(found: pd.DataFrame, between: pd.DataFrame, related: pd.DataFrame) -> str:
    """What contrast does to each method, as a Markdown list: the ends of ``by`` levels (``apart``), correlations."""
    lines = []
    for row in between.itertuples():
        at = found[found.method == row.method].set_index(found.columns[1])
        low, high = at.loc[row.first], at.loc[row.second]
        counted = [sweeps.count(int(one.images), "image", "images") for one in (low, high)]
        lines.append(
            f"- **{row.method}**: AUROC {low.auroc:.3f} ({low.low:.3f} to {low.high:.3f}, n = {counted[0]}) on the "
            f"least visible, {high.auroc:.3f} ({high.low:.3f} to {high.high:.3f}, n = {counted[1]}) on the most "
            f"visible: {sweeps.signed(row.difference, row.low, row.high)}, {_told(row)}."
        )
    for name, part in related.dropna(subset="rank correlation").groupby("method", sort=False):
        for over, rows in part.groupby("over", sort=False):
            told = [
                f"{_relation(row)} {row.measure} ({row[4]:+.2f}, {row.low:+.2f} to {row.high:+.2f}, n = {row.n})"
                for row in rows.itertuples()
            ]
            lines.append(f"- **{name}**, over {over}: detection {'; '.join(told)}.")
    return "\n".join(lines) or "- No defect has a mask, a normal image beside it and a score, so n = 0: nothing to say."


def _relation(row) -> str:
    return "rises with" if row.low > 0 else "falls with" if row.high < 0 else "shows no sure relation to"


def _told(row) -> str:
    return "not told apart" if sweeps.verdict(row.low, row.high) == "not decided" else "told apart"


def class_findings(
    found: pd.DataFrame, between: pd.DataFrame, recalled: pd.DataFrame, rate: float, without: str = ""
) -> str:
    """Which defect classes a method finds hardest and easiest (``apart``), and which figures rest on few images.

    ``without``: what ``blind`` says of the rate.
    """
    lines = []
    for name, part in found.dropna(subset="auroc").groupby("method", sort=False):
        part = part.sort_values("auroc")
        at = part.set_index(part.columns[1])
        for row in between[between.method == name].itertuples():
            worst, best = at.loc[row.first], at.loc[row.second]
            together = f", for all {row.pairs} pairs of classes together" if row.pairs > 1 else ""
            lines.append(
                f"- **{name}**: of the {row.values} classes with at least {SMALL} images, {row.first} is hardest "
                f"(AUROC {worst.auroc:.3f}, n = {int(worst.images)}), {row.second} easiest ({best.auroc:.3f}, "
                f"n = {int(best.images)}): {sweeps.signed(row.difference, row.low, row.high)}{together}, {_told(row)}."
            )
        few = part[part.images < SMALL]
        if len(few):
            named = ", ".join(f"{row.iloc[1]} (n = {int(row.images)})" for _, row in few.iterrows())
            lines.append(f"- **{name}**: too few images for a verdict of their own: {named}.")
    for name, part in recalled.groupby("method", sort=False):
        hits, n = float((part.recall * part.images).sum()), int(part.images.sum())
        if n:
            low, high = statistics.wilson(hits, n)
            few = f" ({without})" if without else ""
            lines.append(
                f"- **{name}**: with at most {percent(rate)} false positives in each category{few} it finds "
                f"{hits / n:.0%} of all defective images ({low:.0%} to {high:.0%}, n = {n})."
            )
    return "\n".join(lines) or f"- {breakdown.NO_AUROC} (n = 0)"
