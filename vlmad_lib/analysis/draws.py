"""Reference draws: what a few normal images bring, by their number and by which they are (notebook 08).

Everything is read off the metrics of an ordinary run. A draw is a seed; draws of one seed nest, a smaller one is part
of a larger. Intervals are over draws, for the test images and categories as given.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pandas as pd

from vlmad_lib import tables
from vlmad_lib.analysis import by_category, comparison, published, sweeps
from vlmad_lib.evaluation import statistics


def drawing(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the methods that were run with several numbers of references; all rows where there is none."""
    several = table.groupby("method").shots.nunique() > 1
    rows = table[table.method.map(several).astype(bool)]
    return rows if len(rows) else table


def over_draws(table: pd.DataFrame) -> pd.DataFrame:
    """Macro means by method and shots over reference draws, with standard deviations; *n* draws."""
    columns = tables.MAIN
    draws = table.groupby(["method", "shots", "seed"], sort=False)[columns].mean()
    grouped = draws.groupby(["method", "shots"], sort=False)
    spread = grouped[columns].std(ddof=1).rename(columns=tables.TITLES).rename(columns="{}, deviation".format)
    counts = grouped.size().rename("draws")
    return pd.concat([counts, grouped.mean(), spread], axis=1).reset_index()


def between(after: pd.DataFrame | pd.Series, before: pd.DataFrame | pd.Series) -> pd.DataFrame | pd.Series:
    """Differences by draw (index); a side with one draw only, which draws nothing, is the same for every draw."""
    if len(after) == 1:
        return after.iloc[0] - before
    return after - (before.iloc[0] if len(before) == 1 else before)


def steps(table: pd.DataFrame, keys: Sequence[str] = ("method",)) -> pd.DataFrame:
    """Gain from each number of references to the next, by ``keys``, paired over reference draws (seeds).

    Macro means over categories unless ``category`` is a key. Zero-shot and full-shot draw nothing and are the same for
    every draw. ``low`` and ``high`` are the ends of the 95 % interval over *n* draws, for these test images as given.
    """
    columns = ["image_auroc", "pixel_auroc"]
    cells = table.groupby([*keys, "shots", "seed"], sort=False)[columns].mean()
    rows = []
    for key, part in cells.groupby(list(keys), sort=False):
        part = part.droplevel(list(keys))
        counts = sorted(part.index.unique("shots"))
        for fewer, more in pairwise(counts):
            before, after = part.loc[fewer], part.loc[more]
            apart = between(after, before)
            for column in columns:
                known = apart[column].dropna()
                found = dict(zip(("gain", "low", "high"), statistics.difference(known), strict=True))
                named = dict(zip(keys, key, strict=True)) | {"fewer": fewer, "more": more, "measure": column}
                rows.append(named | found | {"n": len(known)})
    return pd.DataFrame(rows, columns=[*keys, "fewer", "more", "measure", "gain", "low", "high", "n"])


def steps_over_categories(table: pd.DataFrame) -> pd.DataFrame:
    """``steps`` of the macro mean, paired over *n* categories, each the mean of its draws."""
    columns = ["image_auroc", "pixel_auroc"]
    cells = table.groupby(["method", "category", "shots"], sort=False)[columns].mean().reset_index()
    return steps(cells.rename(columns={"category": "seed"}))


def beside_published(table: pd.DataFrame) -> pd.DataFrame:
    """What references bring a WinCLIP here, from none to each number of them, beside its paper's gains on MVTec AD.

    Columns: shots, measure, published (the paper's gain of the macro mean), gain (ours, over draws), low, high, n.
    Only numbers of references that the paper has; empty without a zero-shot result.
    """
    paper = published.read_means(["WinCLIP", "WinCLIP+"]).set_index("shots")
    rows = []
    for shots in sorted(set(table.shots) & set(paper.index) - {0}):
        for row in steps(table[table.shots.isin([0, shots])]).itertuples():
            gain = paper.loc[shots, row.measure] - paper.loc[0, row.measure]
            facts = {"shots": shots, "measure": row.measure, "published": gain}
            rows.append(facts | {name: getattr(row, name) for name in ("gain", "low", "high", "n")})
    return pd.DataFrame(rows, columns=["shots", "measure", "published", "gain", "low", "high", "n"])


def beside_published_findings(found: pd.DataFrame) -> str:
    """Where the gains here differ from the published ones, as a Markdown list, a line a measure; most references."""
    lines = []
    for measure, part in found.dropna().groupby("measure", sort=False):
        row = part[part.shots == part.shots.max()].iloc[0]
        less = "a smaller gain than there" if row.high < row.published else "the interval holds the gain there too"
        than = "a larger gain than there" if row.low > row.published else less
        word = {"higher": "references help", "lower": "references cost"}.get(comparison.verdict(row.low, row.high))
        lines.append(
            f"- **{tables.TITLES[measure]}, {tables.name_shots(row.shots)} less zero-shot**: "
            f"{row.published:+.3f} in WinCLIP's paper on MVTec AD; here "
            f"{comparison.format_difference(row.gain, row.low, row.high)} "
            f"over n = {row.n} draws, for other references of these products: "
            f"{word or 'not decided whether references help'}, {than}."
        )
    return "\n".join(lines)


def step(row) -> str:
    """``0 to 1``, ``4 to all``: the step of a row of ``steps``."""
    return f"{tables.format_shots(row.fewer)} to {tables.format_shots(row.more)}"


def step_table(found: pd.DataFrame) -> pd.DataFrame:
    """``steps`` for people: one row per step, image and pixel gains side by side; *n* of each where they differ."""
    keys = [name for name in ("method", "group", "category") if name in found]
    rows = found.assign(
        step=[step(row) for row in found.itertuples()],
        told=[
            f"{comparison.format_difference(row.gain, row.low, row.high)}, {comparison.verdict(row.low, row.high)}"
            for row in found.itertuples()
        ],
    )
    rows["told"] = rows.told.where(rows.gain.notna(), "none")
    wide = rows.pivot(index=[*keys, "step"], columns="measure", values="told").rename(columns=tables.TITLES)
    wide = wide.reindex(pd.MultiIndex.from_frame(rows[[*keys, "step"]].drop_duplicates()))
    counts = rows.groupby([*keys, "step"]).n.agg(tables.format_each_count)
    return wide.join(counts).reset_index().rename_axis(columns=None)


def extreme_draws(table: pd.DataFrame) -> pd.DataFrame:
    """Best and worst draw of the fewest references, by method and category and image AUROC (pixel AUROC without one).

    The category where the draw matters most comes first. Empty without two draws.
    """
    few = table[table.shots > 0]
    column = "image_auroc" if few.image_auroc.notna().any() else "pixel_auroc"
    few = few[few.shots == few.shots.min()].dropna(subset=column)
    rows = []
    for (method, category), part in few.groupby(["method", "category"], sort=False):
        if part.seed.nunique() > 1:
            ends = part.loc[part[column].idxmax()], part.loc[part[column].idxmin()]
            facts = {"method": method, "category": category, "shots": int(part.shots.iloc[0]), "draws": len(part)}
            for name, row in zip(("best", "worst"), ends, strict=True):
                facts |= {f"{name} seed": int(row.seed), f"{name} {tables.TITLES[column]}": row[column]}
            rows.append(facts | {"range": ends[0][column] - ends[1][column]})
    found = pd.DataFrame(rows)
    return found.sort_values("range", ascending=False, kind="stable", ignore_index=True) if rows else found


def drawn(scores: pd.DataFrame, shots: int) -> pd.DataFrame:
    """Which reference files each draw of ``shots`` took, by category (rows) and seed (columns)."""
    rows = scores[scores.shots == shots].drop_duplicates(["category", "seed"])
    names = rows.references.map(lambda text: ", ".join(one.rpartition("/")[2] for one in text.split(";")))
    wide = rows.assign(files=names).pivot(index="category", columns="seed", values="files").fillna("none")
    return wide.rename(columns="seed {}".format).reset_index().rename_axis(columns=None)


def draw_findings(table: pd.DataFrame) -> str:
    """What more references bring, whether the gain falls, and how much the draw matters, as a Markdown list."""
    known = table.dropna(subset="image_auroc")
    if known.empty:
        return tables.NO_AUROC
    keys = ["method", "measure", "fewer", "more"]
    both = steps(table).merge(steps_over_categories(table), on=keys, suffixes=("", "_over")).dropna(subset="gain")
    lines = []
    for (method, measure), part in both.groupby(["method", "measure"], sort=False):
        told = [
            f"{step(row)} shots {row.gain:+.3f} (for other products {_ends(row.low_over, row.high_over)}, "
            f"n = {tables.format_categories(row.n_over)}: {comparison.verdict(row.low_over, row.high_over)}; "
            f"with other "
            f"references of these products {_ends(row.low, row.high)}, n = "
            f"{tables.format_count(row.n, 'draw', 'draws')}: "
            f"{comparison.verdict(row.low, row.high)})"
            for row in part.itertuples()
        ]
        lines.append(
            f"**{method}**, {tables.TITLES[measure]}: {'; '.join(told)}. {_diminishing(table, method, measure)}"
        )
    if lines:
        lines.append(
            "For a new product the intervals over categories decide, for other references of a known one those over "
            f"draws. Each holds at 95 % by itself: of {len(both)} steps chance alone would decide about "
            f"{(1 - statistics.LEVEL) * len(both):.1f}."
        )
    extreme = extreme_draws(table)
    if len(extreme):
        first = extreme.iloc[0]
        lines.append(
            f"The draw matters most for {first.category}: {first['range']:.3f} between the best and the worst of "
            f"{first.draws} draws of {first.shots}; in the median category {extreme['range'].median():.3f} "
            f"(n = {len(extreme)})."
        )
    return "\n".join(f"- {line}" for line in lines) or by_category.describe_shots(table)


def _ends(low: float, high: float) -> str:
    """An interval, or that there is none where its ends say nothing."""
    if low == high == 0:
        return "the same in each"
    return f"{low:+.3f} to {high:+.3f}" if low > -1 or high < 1 else "no interval"


def _diminishing(table: pd.DataFrame, method: str, measure: str) -> str:
    """Whether each further step gains less than the first, paired over draws."""
    draws = table[table.method == method].groupby(["shots", "seed"])[measure].mean().unstack("shots")
    counts = sorted(draws.columns)
    if len(counts) < 3:
        return "Whether gains diminish needs three numbers of references."
    if counts[0] == 0:
        draws[0] = draws[0].dropna().iloc[0]
    first = draws[counts[1]] - draws[counts[0]]
    last = (draws[counts[-1]] - draws[counts[1]]) / (len(counts) - 2)
    mean, low, high = statistics.difference((first - last).to_numpy())
    told = {"higher": "gains diminish", "lower": "gains grow"}.get(comparison.verdict(low, high), "not decided")
    n = int((first - last).notna().sum())
    apart = comparison.format_difference(mean, low, high)
    return f"First step less the mean of the later ones, over n = {n} draws for these products, {apart}: {told}."


CLAIMS = {
    "average": ("gains", "average_gain_0_to_1_shot"),
    "capsule": ("gains", "gain_capsule_grid_hazelnut"),
    "grid": ("gains", "gain_capsule_grid_hazelnut"),
    "hazelnut": ("gains", "gain_capsule_grid_hazelnut"),
    "bottle": ("drops", ""),
    "screw": ("drops", ""),
}
"""What the study says that one reference image does to the image AUROC (section 5.2.1), and where its figure is."""


def shot_claims(table: pd.DataFrame) -> pd.DataFrame:
    """The study's claims of one reference, against its own zero-shot Table 1 and against these metrics of a WinCLIP.

    ``room``: how far the image AUROC could rise at all from Table 1. Only MVTec AD can be compared.
    """
    gains = steps(table[table.shots.isin([0, 1])], ("method", "category"))
    macro = steps(table[table.shots.isin([0, 1])]).assign(category="average")
    gains = pd.concat([gains, macro])
    gains = gains[(gains.measure == "image_auroc") & gains.gain.notna()].drop_duplicates("category")
    comparable = set(table.dataset) == {"MVTec AD"}
    rows, all_of_them = [], sweeps.study("Table 1").query("group == 'category' and item != 'mean'")["item"].nunique()
    for name, (way, item) in CLAIMS.items():
        start = float(sweeps.claim("Table 1", "mean" if name == "average" else name, "image_auroc"))
        ends = [float(end) for end in sweeps.claim("text 5.2.1", item).split("-")] if item else [-1.0, 0.0]
        own = gains[gains.category == name]
        if name == "average" and table.category.nunique() < all_of_them:
            own = own[:0]  # a mean of other categories
        facts = {
            "category": name,
            "the study": f"{way} {' to '.join(f'{end:+.2f}' for end in ends)}" if item else way,
            "its Table 1": start,
            "room": 1 - start,
            "by its own table": "possible" if ends[0] <= 1 - start else "impossible",
        }
        rows.append(facts | _measured(own, ends, bool(item), comparable, set(table.dataset)))
    return pd.DataFrame(rows)


def _measured(own: pd.DataFrame, ends: list[float], bounded: bool, comparable: bool, datasets: set[str]) -> dict:
    """What was measured of one claim: the gain and whether it agrees, or why there is no comparison."""
    if not comparable:
        why = f"the data are {', '.join(sorted(datasets))}" if datasets else "no WinCLIP was run"
        return {"here": f"no comparison: {why}", "verdict": "none"}
    if own.empty:
        return {"here": "no comparison: not run here with 0 and 1 shot", "verdict": "none"}
    row = own.iloc[0]
    low, high = (ends[0], ends[-1]) if bounded else (-1.0, -1e-9)
    apart = row.low > high or row.high < low
    inside = low <= row.low and row.high <= high
    word = "contradicted" if apart else "agrees" if inside else "not decided"
    return {
        "here": f"{comparison.format_difference(row.gain, row.low, row.high)}, n = {row.n}",
        "verdict": word,
    }


def claim_findings(claims: pd.DataFrame) -> str:
    """How the study's claims of one reference fare, as a line of a Markdown list."""
    impossible = claims[claims["by its own table"] == "impossible"]
    names = [f"{one['category']} (room for {one['room']:.3f})" for one in impossible.to_dict("records")]
    told = claims[claims.verdict != "none"]
    here = [f"{row.category} {row.verdict}" for row in told.itertuples()]
    return (
        f"- Of the study's {len(claims)} statements on one reference, {len(names)} cannot be true by its own table"
        f"{': ' + ', '.join(names) if names else ''}. "
        + (f"On these data (n = {len(here)}): {', '.join(here)}." if here else f"Here, {claims.here.iloc[0]}.")
    )
