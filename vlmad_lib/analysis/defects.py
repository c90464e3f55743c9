"""Breakdowns by what a defect looks like: contrast levels and defect classes, each against its own category's normals.

The AUROC of some anomalous images is the mean share of their category's normal images that they outscore. Scores of
different categories are never compared, and images of one category are not independent: figures are means over
categories, and intervals are over categories where there are ``statistics.ENOUGH`` of them. With fewer they are over
images, and speak of these categories only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from IPython.display import Markdown
from pandas.io.formats.style import Styler

from vlmad_lib import tables, within
from vlmad_lib.analysis import comparison
from vlmad_lib.config import Profile
from vlmad_lib.data import csv_files, datasets
from vlmad_lib.evaluation import statistics
from vlmad_lib.evaluation.statistics import percent

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
    path = profile.path(profile.taxonomy) if profile.taxonomy else datasets.REFERENCE / f"{profile.dataset}_defects.csv"
    if not path.is_file() and not profile.taxonomy:
        return {}
    usual = "defect_type"
    named = _LABEL.get(profile.dataset, usual)
    table = csv_files.read_text_table(
        path, ("category", "proposed_class"), "correct it or leave 'taxonomy' out", (usual, named)
    )
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
    told = tables.format_count(len(without), "image has", "images have")
    return (
        f"{told} a defect without a class ({shown}), shown as unknown. "
        "Give them one in a file named by 'taxonomy' in the profile."
    )


# ---------------------------------------------------------------- tables


def _variants(scores: pd.DataFrame, shots: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each method at a number of shots, with the scores of its first reference draw."""
    yield from tables.select_first_draw(scores, shots).groupby("method", sort=False)


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


def few_categories(scores: pd.DataFrame) -> bool:
    """Whether the categories with normal and defective images are too few to be the unit of an interval."""
    return (scores.groupby("category").label.nunique() == 2).sum() < statistics.ENOUGH


def by(scores: pd.DataFrame, column: str, order: tuple[str, ...] = (), shots: int = 0) -> pd.DataFrame:
    """AUROC of the anomalous images of each value of a column, by method: the mean over categories, 95 % interval.

    ``images``, ``types`` and ``categories`` say what it rests on. Images whose category has no normal test image are
    left out; so are missing values.
    """
    rows = []
    for name, variant in _variants(scores, shots):
        defective, over_images = _won(variant), few_categories(variant)
        judged = defective.dropna(subset="win")
        for value in _values(defective[column], order):
            chosen, estimates = judged[judged[column] == value], []
            for category, auroc in chosen.groupby("category").win.mean().items():
                normal = variant.score[(variant.category == category) & (variant.label == 0)]
                own = chosen.score[chosen.category == category]
                labels = np.repeat([0, 1], [len(normal), len(own)])
                ends = statistics.auroc_interval(labels, np.r_[normal, own]) if over_images else (np.nan, np.nan)
                estimates.append((auroc, *ends))
            auroc, low, high = statistics.category_mean(estimates, over_images)
            counts = {"images": len(chosen), "types": chosen.groupby(["category", "defect"]).ngroups}
            row = {"method": name, column: value, "auroc": auroc, "low": low, "high": high}
            rows.append(row | counts | {"categories": len(estimates)})
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


def judged(scores: pd.DataFrame, rate: float = 0.05, shots: int = 0) -> pd.DataFrame:
    """The anomalous images of every method with ``hit``: whether they exceed their category's threshold.

    That is the lowest score that at most the share ``rate`` of its normal images exceed. Categories without normal
    images are left out.
    """
    frames = [scores.iloc[:0].assign(hit=False)]
    for _, variant in _variants(scores, shots):
        normal = variant[variant.label == 0].groupby("category").score
        limits = normal.agg(lambda values: _limit(values.to_numpy(), rate))
        defective = variant[(variant.label == 1) & variant.category.isin(limits.index)]
        frames.append(defective.assign(hit=defective.score > defective.category.map(limits).astype(float)))
    return pd.concat(frames[1:] or frames)


def recall(
    scores: pd.DataFrame, column: str, order: tuple[str, ...] = (), rate: float = 0.05, shots: int = 0
) -> pd.DataFrame:
    """Recall of each value of a column at a false-positive rate of at most ``rate`` in every category, by method.

    Thresholds are those of ``judged``. ``recall`` is the mean over categories, ``low`` and ``high`` its 95 % interval,
    which takes the thresholds as given.
    """
    rows = []
    for name, variant in judged(scores, rate, shots).groupby("method", sort=False):
        over_images = variant.category.nunique() < statistics.ENOUGH
        for value in _values(variant[column], order):
            hits = variant[variant[column] == value].groupby("category").hit.agg(["sum", "size"])
            estimates = [(hit / size, *statistics.wilson(hit, size)) for hit, size in hits.to_numpy()]
            share, low, high = statistics.category_mean(estimates, over_images)
            row = {"method": name, column: value, "recall": share, "low": low, "high": high}
            rows.append(row | {"images": hits["size"].sum(), "categories": len(hits)})
    return pd.DataFrame(rows, columns=["method", column, "recall", "low", "high", "images", "categories"])


def recall_curve(hits: pd.DataFrame, measure: str, at: Sequence[float] | None = None) -> pd.DataFrame:
    """Recall near each value of a measure, by method, with its 95 % band (``statistics.local_share``).

    ``hits``: rows of ``judged`` with the measure. ``at``: the values, or 40 between the 2nd and the 98th percentile of
    a method's images. Categories weigh alike; the band leaves out a category at a time, or an image where they are few.
    A method whose images do not differ in the measure has no rows.
    """
    frames, judged_in = [], hits.groupby("method").category.nunique()
    for name, rows in hits[hits[measure] > 0].groupby("method", sort=False):
        size, logs = rows.groupby("category").hit.transform("size"), np.log(rows[measure])
        points = np.geomspace(*rows[measure].quantile([0.02, 0.98]), 40) if at is None else np.asarray(at, float)
        clusters = rows.image if judged_in[name] < statistics.ENOUGH else rows.category
        share, low, high = statistics.local_share(logs, rows.hit, clusters, 1 / size, np.log(points))
        counts = {"images": len(rows), "categories": rows.category.nunique()}
        table = {"method": name, "measure": measure, "value": points, "recall": share, "low": low, "high": high}
        frames.append(pd.DataFrame(table | counts).dropna(subset="recall"))
    columns = ["method", "measure", "value", "recall", "low", "high", "images", "categories"]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)


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
    normal = tables.select_first_draw(scores[scores.label == 0], shots).groupby("category").image.nunique()
    few = normal[np.floor(rate * normal + 1e-9) == 0]
    if few.empty or rate == 0:
        return ""
    return f"no image of {tables.format_range(few)} in {len(few)} of {tables.format_categories(len(normal))}"


REST = "the other defects"


def compare(scores: pd.DataFrame, column: str, pairs: Sequence[tuple[str, str]], shots: int = 0) -> pd.DataFrame:
    """AUROC of the second less that of the first of two values of a column, within each category that has both.

    One row a method and pair, whose first may be ``REST``. ``first_auroc``, ``second_auroc`` and ``difference`` are
    means over those ``categories``, which have ``images`` of the two values. The intervals hold at 95 % for all
    ``family`` rows together that have an interval (Bonferroni): those with two categories or more, or, where the data
    have few categories (``few_categories``) and the interval is over images (``over_images``), with any. The others
    have (-1, 1).
    """
    rows = []
    for name, variant in _variants(scores, shots):
        defective = _won(variant).dropna(subset="win")
        for first, second in pairs:
            is_second = defective[column] == second
            is_first = defective[column].notna() & ~is_second if first == REST else defective[column] == first
            sides = pd.concat([defective[is_first].assign(side=0), defective[is_second].assign(side=1)])
            sides = sides[sides.groupby("category").side.transform("nunique") == 2]
            normal = variant[(variant.label == 0) & variant.category.isin(sides.category)]
            rows.append((name, first, second, sides, normal, few_categories(variant)))
    counts = [sides.category.nunique() for *_, sides, _, _ in rows]
    family = sum(count >= 2 - few for count, (*_, few) in zip(counts, rows, strict=True))
    level, table = statistics.together(max(family, 1)), []
    for (name, first, second, sides, normal, over_images), count in zip(rows, counts, strict=True):
        estimates, means = [], sides.groupby(["category", "side"]).win.mean().unstack().reindex(columns=[0, 1])
        for category, (before, after) in means.iterrows():
            own = sides[sides.category == category].groupby("side").score.apply(np.array)
            judges = normal.score[normal.category == category].to_numpy()
            ends = statistics.subset_difference(judges, own[1], own[0], level)[1:] if over_images else (np.nan, np.nan)
            estimates.append((after - before, *ends))
        estimate = statistics.category_mean(estimates, over_images, level, -1.0)
        interval = dict(zip(("difference", "low", "high"), estimate, strict=True)) | {"over_images": over_images}
        before, after = means.to_numpy().mean(0) if count else (np.nan, np.nan)
        aurocs = {"first_auroc": before, "second_auroc": after}
        counted = {"categories": count, "images": len(sides), "family": family}
        table.append({"method": name, "first": first, "second": second} | aurocs | interval | counted)
    columns = ["method", "first", "second", "first_auroc", "second_auroc", "difference", "low", "high"]
    return pd.DataFrame(table, columns=[*columns, "categories", "images", "family", "over_images"])


def correlations(scores: pd.DataFrame, measures: Sequence[str], shots: int = 0) -> pd.DataFrame:
    """Spearman's rank correlation of detection with each measure within a category, by method, with intervals.

    Detection is the share of normal images that an image outscores. A category counts that has four images or more
    which differ in both; the correlation is the mean over those ``categories``, with ``images``. The intervals hold at
    95 % for all rows together (Bonferroni), over categories, or over images where they are few.
    """
    tables = [(name, _won(variant), few_categories(variant)) for name, variant in _variants(scores, shots)]
    level, rows = statistics.together(max(1, len(tables) * len(measures))), []
    for name, won, over_images in tables:
        for measure in measures:
            estimates, images = [], 0
            for _, own in won.dropna(subset=[measure, "win"]).groupby("category"):
                estimate = statistics.rank_correlation(own[measure], own.win, level)
                if not np.isnan(estimate[0]):
                    estimates.append(estimate)
                    images += len(own)
            row = (name, measure, *statistics.category_mean(estimates, over_images, level, -1.0))
            rows.append((*row, len(estimates), images, over_images))
    columns = ["method", "measure", "rank correlation", "low", "high", "categories", "images", "over_images"]
    return pd.DataFrame(rows, columns=columns)


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


def tidy(table: pd.DataFrame, without: str = tables.NO_ROWS, interval: str = "95 % interval") -> Styler | Markdown:
    """A frame for display: AUROC spelt out, interval ends in one column of this name, shares with three decimals.

    Without rows it is the sentence ``without``.
    """
    shown = table.copy()
    if {"low", "high"} <= set(shown):
        pairs = list(zip(shown.low, shown.high, strict=True))
        ends = [f"{low:.3f} to {high:.3f}" if low == low and high == high else None for low, high in pairs]
        shown = shown.assign(low=ends).drop(columns="high").rename(columns={"low": interval})
    return tables.show_table(shown.rename(columns={"auroc": "AUROC", "defect_class": "defect class"}), without=without)


# ---------------------------------------------------------------- sentences


def basis(rows: pd.DataFrame) -> str:
    """How many categories and images some rows rest on: ``n = 12 categories, 192 images``."""
    return ", ".join(
        f"{'n = ' * (noun == 'categories')}{tables.format_counts(rows[noun], noun)}"
        for noun in ("categories", "images")
    )


def _scope(compared: Sequence[pd.DataFrame]) -> list[str]:
    """A line that says of what the intervals speak where the data have too few categories to be their unit."""
    count = max((int(rows.categories.max()) for rows in compared if len(rows)), default=0)
    if not 0 < count < statistics.ENOUGH or not any(
        rows.over_images.any() for rows in compared if "over_images" in rows
    ):
        return []
    these = "this category" if count == 1 else "these categories"
    return [
        f"- The data have fewer than {statistics.ENOUGH} categories, so the intervals are over images (n = "
        f"{tables.format_categories(count)}): they speak of other images of {these}, not of other products."
    ]


def _together(counts: dict[str, int]) -> list[str]:
    """A line that says which families (noun: count) of intervals hold at 95 % all together."""
    families = [f"all {count} {noun} together" for noun, count in counts.items() if count > 1]
    return [f"- The intervals hold at 95 % for {', and for '.join(families)}."] if families else []


def level_findings(compared: pd.DataFrame, related: pd.DataFrame) -> str:
    """What contrast does to each method, as a Markdown list: ``compare`` of two levels, and ``correlations``."""
    lines = []
    for row in compared.itertuples():
        if row.categories < 2 - row.over_images:
            has = {0: "no category has", 1: "only one category has"}[row.categories]
            lines.append(
                f"- **{row.method}**: {has} defects of both {row.first} and {row.second} contrast (n = "
                f"{tables.format_count(row.images, 'image', 'images')}), too few to say whether they differ."
            )
            continue
        same = "category" if row.categories == 1 else "categories"
        verdict = comparison.verdict(row.low, row.high)
        verdict += "" if verdict == "not decided" else f" at {row.second} contrast"
        lines.append(
            f"- **{row.method}**: AUROC {row.first_auroc:.3f} on defects of {row.first} contrast and "
            f"{row.second_auroc:.3f} on those of {row.second} contrast in the same {same}: "
            f"{comparison.format_difference(row.difference, row.low, row.high)}, {verdict} "
            f"({basis(compared.loc[[row.Index]])})."
        )
    measured = related.dropna(subset="rank correlation")
    for name, rows in measured.groupby("method", sort=False):
        phrases = []
        for relation, some in rows.groupby(rows.apply(_relation, axis=1), sort=False):
            each = [
                f"{row.measure.replace('_', '-')} ({row[3]:+.2f}, {row.low:+.2f} to {row.high:+.2f})"
                for row in some.itertuples()
            ]
            phrases.append(f"{relation} {', '.join(each)}")
        lines.append(f"- **{name}**, within a category: detection {'; '.join(phrases)}; {basis(rows)}.")
    if lines:
        families = {"differences": int(compared.family.max() if len(compared) else 0)}
        lines += _together(families | {"rank correlations": len(related) * bool(len(measured))}) + _scope(
            [compared, measured]
        )
    return "\n".join(lines) or "- No defect has a mask, a normal image beside it and a score, so n = 0: nothing to say."


def _relation(row: pd.Series) -> str:
    return "rises with" if row.low > 0 else "falls with" if row.high < 0 else "has no decided relation to"


def class_findings(
    found: pd.DataFrame, compared: pd.DataFrame, overall: pd.DataFrame, rate: float, without: str = ""
) -> str:
    """Which defect classes are harder than other defects of the same category, and how many defects are found.

    ``found``: of ``by``; ``compared``: of ``compare``, each class with ``REST``; ``overall``: of ``recall``, one row a
    method; ``without``: what ``blind`` says of the rate.
    """
    lines = []
    for name, rows in found.dropna(subset="auroc").groupby("method", sort=False):
        ranked = rows.sort_values("auroc")
        if len(ranked) > 1:
            low, high = (
                f"{row.iloc[1]} ({row.auroc:.3f}, {basis(row.to_frame().T)})"
                for _, row in ranked.iloc[[0, -1]].iterrows()
            )
            several = " Classes occur in different categories, so this alone does not say that the class is the reason."
            reason = several if rows.categories.max() > 1 else ""
            lines.append(f"- **{name}**: AUROC is lowest for {low} and highest for {high}.{reason}")
        own = compared[compared.method == name].sort_values("difference")
        own = own.assign(verdict=[comparison.verdict(row.low, row.high) for row in own.itertuples()])
        enough = own.categories >= 2 - own.over_images
        tested, undecided = own[enough], own[enough & (own.verdict == "not decided")]
        phrases = [
            f"{row.verdict} for {row.second} ({comparison.format_difference(row.difference, row.low, row.high)}; "
            f"{basis(own.loc[[row.Index]])})"
            for row in tested.drop(undecided.index).itertuples()
        ]
        if len(undecided):
            names = ", ".join(undecided.second)
            phrases.append(f"not decided for {len(undecided)} of {len(tested)} classes ({names})")
        if phrases:
            lines.append(
                f"- **{name}**, AUROC of a class against the other defects of the same category: {'; '.join(phrases)}."
            )
        if not enough.all():
            few = ", ".join(
                f"{row.second} (n = {tables.format_categories(row.categories)})" for row in own[~enough].itertuples()
            )
            lines.append(
                f"- **{name}**: too few categories have both a class and other defects to compare them: {few}."
            )
    for row in overall.itertuples():
        few, mean = f" ({without})" if without else "", ", the mean over categories" if row.categories > 1 else ""
        lines.append(
            f"- **{row.method}**: with at most {percent(rate)} false positives in each category{few} it finds "
            f"{row.recall:.0%} of the defective images{mean} ({row.low:.0%} to {row.high:.0%}, "
            f"{basis(overall.loc[[row.Index]])})."
        )
    lines += _together({"comparisons of classes": int(compared.family.max())} if len(compared) else {})
    lines += _scope([compared, overall])
    return "\n".join(lines) or f"- {tables.NO_AUROC} (n = 0)"
