"""Wordings: the same features read with other prompts (notebook 09).

Variants are methods with changed settings for ``run.run``; no image is encoded again. Differences are paired over
categories.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from vlmad_lib import InputError, methods, tables
from vlmad_lib.analysis import comparison
from vlmad_lib.config import Method, Profile
from vlmad_lib.encoders import prompts
from vlmad_lib.encoders.backbones import Backbone

_WORDED = {"own_normal": [], "own_anomalous": []}  # a set of states in the place of one's own
ENSEMBLES = {
    "one pair": {"states": "one", "templates": "none"} | _WORDED,
    "states only": {"templates": "none"},
    "templates only": {"states": "one"} | _WORDED,
    "21 templates": {"templates": "21"},
    "22 templates": {"templates": "22"},
    "no full stops": {"templates": "22 no stop"},
    "folder names": {"names": "folder"},
    "cleaned names": {"names": "cleaned"},
    "the word object": {"names": "object"},
    "temperature 0.01": {"temperature": 0.01},
    "temperature 0.07": {"temperature": 0.07},
    "temperature 0.2": {"temperature": 0.2},
    "full ensemble": {"states": "all", "templates": "22"} | _WORDED,
}
"""WinCLIP's wordings, one part changed at a time; those that a method has already are left out."""
WORDS = ("damaged", "broken", "defective", "flawed", "anomalous", "faulty")
"""Words of AnomalyCLIP's hand-written pair, "object" and "<word> object"."""
UNLEARNED = {"checkpoint": "", "trained_on": "", "force_leak": False}
"""What a method of a profile has no more where it reads hand-written prompts."""
ALIKE = 0.99  # a cosine of two prototypes above which a backbone has hardly seen their words
MEASURES = ("image_auroc", "pixel_auroc")


def list_worded_methods(profile: Profile) -> list[Method]:
    """The methods of a profile that read words."""
    return [spec for spec in profile.methods if methods.METHODS[spec.method].zero_shot]


def list_prompt_variants(spec: Method, own_normal: str = "", own_anomalous: str = "") -> list[Method]:
    """A method as it is, then with other prompts: WinCLIP's sets and one's own pair, AnomalyCLIP's words.

    Others have those of WinCLIP's that their settings know.

    InputError where only one prompt of one's own pair is given, or one is unfit.
    """
    if spec.method == "anomalyclip":
        changes, unlearned = {f"word: {word}": _word(word) for word in WORDS}, UNLEARNED
    else:
        pair = {"own pair": _pair(own_normal, own_anomalous)} if own_normal or own_anomalous else {}
        changes, unlearned = ENSEMBLES | pair, {}
    module = methods.METHODS[spec.method]
    choose, fields = module.settings, module.Settings.model_fields
    found, known = [spec], [choose(spec.preset, spec.settings)]
    for name, change in changes.items():
        # an empty list stands for no prompts of one's own, which not every method has
        change = {key: value for key, value in change.items() if key in fields or value != []}
        if not change or not set(change) <= set(fields):
            continue
        settings = spec.settings | change
        chosen = choose(spec.preset, settings)
        if chosen not in known:
            known.append(chosen)
            found.append(spec.model_copy(update={"name": f"{spec.name}, {name}", "settings": settings} | unlearned))
    return found


def set_own_prompts(spec: Method, normal: str, anomalous: str) -> Method:
    """A WinCLIP that reads one's own pair of prompts, or an AnomalyCLIP with the word ``anomalous`` for "damaged".

    InputError where only one prompt of a pair is given.
    """
    if spec.method == "anomalyclip":
        return spec.model_copy(update={"settings": spec.settings | _word(anomalous)} | UNLEARNED)
    if not (normal and anomalous):
        raise InputError("Write both prompts, or neither for the method's own words.")
    return spec.model_copy(update={"settings": spec.settings | _pair(normal, anomalous)})


def _word(word: str) -> dict:
    return {"prompts": "object", "word": word}


def _pair(normal: str, anomalous: str) -> dict:
    return {"own_normal": [normal], "own_anomalous": [anomalous], "states": "own", "templates": "none"}


def tabulate_prompts(some: Sequence[Method], profile: Profile, backbone: Backbone, row: pd.Series) -> pd.DataFrame:
    """What each of the variants asks of an index row: how many prompts, one of each side, how alike the sides are.

    ``cosine`` is that of the normal and the anomalous prototype, in [-1, 1]; learned prompts have no words to show.
    """
    rows = []
    for spec in some:
        chosen = methods.choose(spec, profile)
        words = chosen.method.prompt_wording(chosen.settings, row)
        text = F.normalize(chosen.text(profile.path(profile.cache), backbone, words), dim=-1)
        written = isinstance(words[0], list) or not chosen.settings.learned
        sides = words[:2] if written else ["learned", "learned"]
        sides = [[one] if isinstance(one, str) else one for one in sides]
        rows.append(
            {
                "variant": spec.name,
                "normal": len(sides[0]),
                "anomalous": len(sides[1]),
                "a normal one": sides[0][-1],
                "an anomalous one": sides[1][-1],
                "cosine": float(text[0] @ text[1]),
            }
        )
    return pd.DataFrame(rows)


def find_unread_words(some: Sequence[Method], backbone: Backbone, row: pd.Series) -> dict[str, list[str]]:
    """The variants of a family (its first is the base) that bring words which the backbone's text tower never read.

    By the variant's name, those words (``Backbone.unread_words``) that the base does not have too; a base with learned
    prompts has none. What such a variant differs by says nothing about its words. Empty for large CLIPs.
    """
    own, *others = (set(backbone.unread_words(_texts(spec, row))) for spec in some)
    brought = {spec.name: sorted(words - own) for spec, words in zip(some[1:], others, strict=True)}
    return {name: words for name, words in brought.items() if words}


def _texts(spec: Method, row: pd.Series) -> list[str]:
    """All prompts of a method for an index row; of learned ones the words behind what is learned."""
    words = methods.METHODS[spec.method].prompt_wording(methods.settings(spec), row)
    sides = [[one] if isinstance(one, str) else one for one in words if isinstance(one, (str, list))]
    return [text for side in sides for text in side]


def describe_unread_words(brought: dict[str, list[str]]) -> str:
    """Which variants are left out because of words never read (``unread``), as a line of a Markdown list."""
    if not brought:
        return ""
    named = "; ".join(f"{name} ({', '.join(words)})" for name, words in brought.items())
    return (
        "- **Left out**, since this backbone's text tower never read a word that they bring, so that any other word of "
        f"that kind would do the same: {named}."
    )


@torch.no_grad()
def compare_states(backbone: Backbone, class_name: str, own: Sequence[str] = ()) -> pd.DataFrame:
    """Cosines (n, n) of WinCLIP's seven normal and four anomalous states for a class name, then of one's own prompts.

    Without templates; empty prompts of one's own are left out, unfit ones refused (InputError).
    """
    own = [text for text in own if text]
    prompts.refuse_unfit(own, "own prompts")
    normal, anomalous = prompts.ensemble(class_name, "all", "none")
    texts = [*normal, *anomalous, *(text.format(class_name) for text in own)]
    embedded = F.normalize(backbone.encode_text(texts), dim=-1)
    return pd.DataFrame((embedded @ embedded.T).cpu().numpy(), index=texts, columns=texts)


def compare_prompts(metrics: pd.DataFrame, families: Sequence[Sequence[Method]]) -> pd.DataFrame:
    """Paired differences of every variant to the first of its family, image and pixel AUROC, over *n* categories.

    ``metrics`` are those of all families in their order. Columns: base, variant, measure, auroc, difference, low,
    high, n; no difference for the base itself.
    """
    # what tables call a method is not always what its profile does: learned prompts may be marked as leaked
    named, rows = list(metrics.method.unique()), []
    for family in families:
        own, named = named[: len(family)], named[len(family) :]
        labels = [own[0], *(spec.name.removeprefix(f"{family[0].name}, ") for spec in family[1:])]
        part = metrics[metrics.method.isin(own)]
        for column in MEASURES:
            found = comparison.compare_with_base(part, own[0], column).rename(columns={column: "auroc"})
            found[["low", "high"]] = found[["low", "high"]].clip(-1, 1)  # no difference of AUROCs is larger
            found = found.assign(base=own[0], variant=labels, measure=column)
            rows.append(found[["base", "variant", "measure", "auroc", "difference", "low", "high", "n"]])
    return pd.concat(rows, ignore_index=True)


def show_prompt_differences(found: pd.DataFrame) -> pd.DataFrame:
    """``differences`` for people: one row per variant, image and pixel level side by side."""
    parts = []
    for column, part in found.groupby("measure", sort=False):
        told = [comparison.format_difference(row.difference, row.low, row.high) for row in part.itertuples()]
        part = part.assign(told=told)[["base", "variant", "n", "auroc", "told"]]
        title = tables.TITLES[column]
        names = {"base": "method", "auroc": title, "told": f"{title}, difference", "n": f"n, {title}"}
        parts.append(part.rename(columns=names).set_index(["method", "variant"]))
    return pd.concat(parts, axis=1).reset_index()


# ---------------------------------------------------------------- sentences


def describe_prompt_differences(found: pd.DataFrame) -> str:
    """Which prompts do better or worse than their base, and which the categories cannot tell, as a Markdown list."""
    lines = []
    for (base, column), part in found.groupby(["base", "measure"], sort=False):
        own, others = part.iloc[0], part.iloc[1:].dropna(subset="difference")
        if np.isnan(own.auroc) or others.empty:
            continue
        told = np.array([comparison.judge_row(row) for row in others.itertuples()])
        told_apart = [_named(others[told == kind], kind) for kind in ("higher", "lower")]
        lines.append(
            f"**{base}**, {tables.TITLES[column]} {own.auroc:.3f} (n = {int(others.n.max())}): "
            f"{'; '.join(told_apart)}; no difference shown for {(told == 'no difference shown').sum()} of {len(told)}. "
            f"Intervals hold at 95 % for all {len(told)} together."
        )
    return "\n".join(f"- {line}" for line in lines) or tables.NO_AUROC


def _named(rows: pd.DataFrame, kind: str) -> str:
    rows = rows.sort_values("difference", key=abs, ascending=False)
    names = [
        f"{row.variant} {comparison.format_difference(row.difference, row.low, row.high)}" for row in rows.itertuples()
    ]
    return f"{kind} with {', '.join(names)}" if names else f"none is {kind}"


def describe_temperatures(metrics: pd.DataFrame) -> str:
    """Whether the zero-shot image AUROC depends on the temperature, a line of a Markdown list for each method."""
    lines, names = [], metrics.method.drop_duplicates()
    for base in names[names.str.contains(", temperature ")].str.split(", temperature ").str[0].unique():
        rows = metrics[(metrics.method == base) | metrics.method.str.startswith(f"{base}, temperature ")]
        image, pixel = (rows.groupby(["category", "method"])[column].mean().unstack() for column in MEASURES)
        moved, wandered = ((one.max(axis=1) - one.min(axis=1)).max() for one in (image, pixel))
        if pd.notna(moved):
            told = "does not depend on the temperature" if moved < 1e-9 else "depends on it by ties of rounding alone"
            told = told if moved < 0.01 else "depends on the temperature"
            more = f"; its pixel AUROC moves by up to {wandered:.3f}" if pd.notna(wandered) else ""
            lines.append(
                f"- **{base}**: the image AUROC {told}: no category moves by more than {moved:.4f} over "
                f"{rows.method.nunique()} temperatures (n = {len(image)}){more}."
            )
    return "\n".join(lines)


def describe_cosines(found: pd.DataFrame) -> str:
    """How alike the two sides of the prompts are (``asked``), as a line of a Markdown list."""
    low, high = found.loc[found.cosine.idxmin()], found.loc[found.cosine.idxmax()]
    blank = list(found[found.cosine > ALIKE].variant)
    unread = f" Above {ALIKE} the backbone hardly tells the words apart, and results say little: {', '.join(blank)}."
    return (
        f"- The normal and the anomalous prototype have a cosine of {low.cosine:.3f} ({low.variant}) to "
        f"{high.cosine:.3f} ({high.variant}), n = {len(found)} variants; only the little in which they differ can tell "
        "normal from anomalous." + (unread if blank else "")
    )
