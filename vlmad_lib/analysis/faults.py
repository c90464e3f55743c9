"""The study's WinCLIP taken apart: its faults added to the paper's one at a time, and taken from its own."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from vlmad_lib import tables
from vlmad_lib.analysis import comparison
from vlmad_lib.config import Method, Profile
from vlmad_lib.methods import winclip


@dataclass(frozen=True)
class Fault:
    """One setting of the preset ``study_claims`` that differs from the paper's."""

    name: str
    setting: str
    does: str
    zero_shot: bool = True  # whether it changes anything without references
    few_shot: bool = False  # whether it belongs to the part that references add


FAULTS = [
    Fault("map maximum as score", "image_score",
          "the image score is the largest value of the map: the strangest window of an image decides, defect or not"),
    Fault("no whole-image scale", "full_image",
          "the map is made of windows alone; nothing holds it down where the image as a whole looks normal"),
    Fault("harmonic of normal", "harmonic_of",
          "1 - HM(P(normal)): of merged windows the least normal wins; in the paper the most normal does"),
    Fault("temperature 0.01", "temperature",
          "probabilities jump to 0 or 1, so means over windows keep little of what lies between"),
    Fault("blue and red swapped", "channels",
          "test images enter as BGR and the references as RGB: colours are wrong, and not even equally wrong",
          few_shot=True),
    Fault("no full stops", "templates",
          "the prompts lack the full stop of the templates"),
    Fault("folder names", "names",
          "prompts say 'metal_nut' as the folder is called, not 'metal nut'"),
    Fault("prompts not normalised", "normalise_prompts",
          "the mean over prompts weighs long embeddings more"),
    Fault("no patch tokens", "patch_tokens",
          "references are compared by windows only, without single patches", zero_shot=False, few_shot=True),
    Fault("plain mean of windows", "window_association",
          "distances to references are averaged where the paper takes the harmonic mean",
          zero_shot=False, few_shot=True),
    Fault("harmonic fusion", "fusion",
          "the map of the words and that of the references are merged harmonically, so either can silence the other",
          zero_shot=False, few_shot=True),
]  # fmt: skip
"""The differences of the presets, all but ``fit``, which makes none on square images."""
METRICS = ["image_auroc", "pixel_auroc"]
COLUMNS = ["shots", "fault", "direction", "metric", "base", "value", "n", "difference", "low", "high"]
PAPER, STUDY = "as in the paper", "as in the study"
ADDED, REMOVED = "one fault added to the paper's", "one fault taken from the study's"
ALL = "all faults together"


def faults() -> pd.DataFrame:
    """``FAULTS`` for display, with both values of each setting."""
    good, bad = winclip.settings("paper").model_dump(), winclip.settings("study").model_dump()
    rows = [(one.name, one.setting, str(good[one.setting]), str(bad[one.setting]), one.does) for one in FAULTS]
    return pd.DataFrame(rows, columns=["fault", "setting", "paper", "study", "what it does"])


def _acting(shots: int) -> list[Fault]:
    return [fault for fault in FAULTS if (fault.few_shot if shots else fault.zero_shot)]


def variants(spec: Method, shots: int = 0) -> list[Method]:
    """A WinCLIP as the paper and as the study have it; with one fault added to the one, taken from the other.

    Backbone, windows, states and ``fit`` stay the method's own. Without references the faults that act zero-shot, with
    them those of the part that references add.
    """
    own = winclip.settings(spec.preset, spec.settings)
    keep = own.model_dump(include={"windows", "states", "own_normal", "own_anomalous", "fit"})
    values = {name: winclip.settings(name).model_dump() for name in ("paper", "study")}
    found = [(PAPER, "paper", keep), (STUDY, "study", keep)]
    for fault in _acting(shots):
        found.append((f"{ADDED}: {fault.name}", "paper", keep | {fault.setting: values["study"][fault.setting]}))
        found.append((f"{REMOVED}: {fault.name}", "study", keep | {fault.setting: values["paper"][fault.setting]}))
    return [spec.model_copy(update={"name": name, "preset": base, "settings": more}) for name, base, more in found]


def sweep(profile: Profile, spec: Method, shots: int = 0) -> Profile:
    """The profile that runs ``variants``, with a single draw of references where there are shots."""
    changes = {"methods": variants(spec, shots), "imports": [], "shots": [shots], "seeds": profile.seeds[:1]}
    return profile.model_copy(update=changes)


def shots_swept(profile: Profile) -> list[int]:
    """The profile's smallest number of shots above zero, where it has one, and zero.

    In this order an image is encoded once: references need all arrays, zero-shot runs some of them.
    """
    return [*sorted(shots for shots in set(profile.shots) if shots)[:1], 0]


def changes(metrics: pd.DataFrame) -> pd.DataFrame:
    """Paired differences over categories of every variant to the one it was made from.

    Columns: shots, fault, direction (``ADDED`` or ``REMOVED``), metric, base, value, n, difference, low, high.
    """
    rows = []
    for metric in METRICS:
        for direction, base in ((ADDED, PAPER), (REMOVED, STUDY)):
            part = metrics[(metrics.method == base) | metrics.method.str.startswith(f"{direction}: ")]
            part = part.dropna(subset=metric)
            if part.empty:
                continue
            compared = comparison.compare_with_base(part, base, metric).set_index("method")
            for name, row in compared.drop(base).iterrows():
                facts = {"shots": int(part.shots.iloc[0]), "fault": name.partition(": ")[2], "direction": direction}
                values = {"metric": metric, "base": compared[metric][base], "value": row[metric]}
                rows.append(facts | values | row[["n", "difference", "low", "high"]].to_dict())
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n": int})


def together(metrics: pd.DataFrame) -> pd.DataFrame:
    """Paired differences over categories of the study's WinCLIP to the paper's, with the columns of ``changes``."""
    both, rows = metrics[metrics.method.isin([PAPER, STUDY])], []
    for metric in METRICS:
        part = both.dropna(subset=metric)
        if part.method.nunique() == 2:
            compared = comparison.compare_with_base(part, PAPER, metric).set_index("method")
            facts = {"shots": int(part.shots.iloc[0]), "fault": ALL, "direction": ALL, "metric": metric}
            values = {"base": compared[metric][PAPER], "value": compared[metric][STUDY]}
            rows.append(facts | values | compared.loc[STUDY, ["n", "difference", "low", "high"]].to_dict())
    return pd.DataFrame(rows, columns=COLUMNS).astype({"n": int})


def together_findings(whole: pd.DataFrame, gaps: dict[str, float]) -> str:
    """What all faults together do, as a Markdown list, and how much of the study's own gap that is.

    ``whole``: rows of ``together``; ``gaps``: the study's mean zero-shot figure less the paper's, by metric. These are
    of MVTec AD: none for rows of other data, which say nothing of them.
    """
    lines = []
    for row in whole.sort_values("shots", kind="stable").itertuples():
        decided = "not decided" if row.low <= 0 <= row.high else "lower" if row.high < 0 else "higher"
        told = (
            f"- **All faults together, {tables.name_shots(row.shots)}, {tables.TITLES[row.metric]}**: "
            f"{row.value:.3f} {STUDY}, {row.base:.3f} {PAPER}: {_told(row)}, n = {tables.format_categories(row.n)}, "
            f"{decided}."
        )
        gap = gaps.get(row.metric, float("nan")) if row.shots == 0 else float("nan")
        if gap < 0 and row.low > float("-inf"):
            least, most = (max(0.0, end / gap) for end in (row.high, row.low))
            told += (
                f" The study's lies {-gap:.3f} below the paper's on MVTec AD: the faults bring "
                f"{row.difference / gap:.0%} of that ({least:.0%} to {most:.0%} by the interval)"
                f"{', so alone they do not reproduce it' if most < 1 else ''}."
            )
        lines.append(told)
    return "\n".join(lines)


def findings(found: pd.DataFrame) -> str:
    """What the faults cost, as a Markdown list: bases, the largest effects either way, and how many are undecided."""
    if found.empty:
        return tables.NO_AUROC
    lines = []
    for (shots, metric), part in found.groupby(["shots", "metric"], sort=False):
        added, removed = (part[part.direction == direction] for direction in (ADDED, REMOVED))
        worst, best = added.loc[added.difference.idxmin()], removed.loc[removed.difference.idxmax()]
        idle = (part.low == 0) & (part.high == 0)
        undecided = (part.low <= 0) & (part.high >= 0) & ~idle
        lines.append(
            f"- **{tables.name_shots(shots)}, {tables.TITLES[metric]}**: {worst.base:.3f} {PAPER}, "
            f"{best.base:.3f} {STUDY} (n = {tables.format_categories(part.n.max())}). Added alone, "
            f"*{worst.fault}* costs "
            f"most ({_told(worst)}); taken away alone, *{best.fault}* recovers most ({_told(best)}). Of {len(part)} "
            f"changes {idle.sum()} change nothing and these categories cannot decide {undecided.sum()}."
        )
    return "\n".join(lines)


def _told(row) -> str:
    return f"{row.difference:+.3f}, {max(row.low, -1):+.3f} to {min(row.high, 1):+.3f}"
