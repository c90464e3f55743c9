"""Prompts and other settings varied on kept features (notebooks 03 and 09).

Variants are methods with changed settings for ``run.run``; no image is encoded again for other words. Differences are
paired over categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import torch.nn.functional as F

from vlmad_lib import InputError, methods
from vlmad_lib.analysis import comparison
from vlmad_lib.config import Method, Profile
from vlmad_lib.encoders.backbones import Backbone

UNLEARNED = {"checkpoint": "", "trained_on": "", "force_leak": False}
"""What a method of a profile has no more where it reads hand-written prompts."""
MEASURES = ("image_auroc", "pixel_auroc")


def list_worded_methods(profile: Profile) -> list[Method]:
    """The methods of a profile that read words."""
    return [spec for spec in profile.methods if methods.METHODS[spec.method].reads_words]


def vary_settings(spec: Method, changes: Mapping[str, dict]) -> list[Method]:
    """A method as it is, then with each of the changes of its settings, named ``<method>, <change>``.

    Changes that the method's settings do not know, or that give settings which are there already, are left out. A
    change that leaves nothing to be learned drops the checkpoint.

    Args:
        spec: The method.
        changes: Settings by the name of the change. An empty list, for no prompts of one's own, goes where the method
            has no such setting.

    Raises:
        InputError: Settings that do not go together, such as only one prompt of one's own pair.
    """
    method = methods.METHODS[spec.method]
    fields = method.Settings.model_fields
    varied, settings_so_far = [spec], [method.settings(spec.preset, spec.settings)]
    for name, change in changes.items():
        change = {key: value for key, value in change.items() if key in fields or value != []}
        if not change or not set(change) <= set(fields):
            continue
        settings = method.settings(spec.preset, spec.settings | change)
        if settings not in settings_so_far:
            settings_so_far.append(settings)
            update = {"name": f"{spec.name}, {name}", "settings": spec.settings | change}
            varied.append(spec.model_copy(update=update | ({} if settings.learned else UNLEARNED)))
    return varied


def set_own_prompts(spec: Method, normal: str, anomalous: str) -> Method:
    """A WinCLIP that reads one's own pair of prompts, or an AnomalyCLIP with the word ``anomalous`` for "damaged".

    InputError where only one prompt of a pair is given.
    """
    if spec.method == "anomalyclip":
        return spec.model_copy(
            update={"settings": spec.settings | {"prompts": "object", "word": anomalous}} | UNLEARNED
        )
    if not (normal and anomalous):
        raise InputError("Write both prompts, or neither for the method's own words.")
    pair = {"own_normal": [normal], "own_anomalous": [anomalous], "states": "own", "templates": "none"}
    return spec.model_copy(update={"settings": spec.settings | pair})


def tabulate_prompts(specs: Sequence[Method], profile: Profile, backbone: Backbone, row: pd.Series) -> pd.DataFrame:
    """What each of the methods asks of an index row: how many prompts, one of each side, how alike the sides are.

    ``cosine`` is that of the normal and the anomalous prototype, in [-1, 1]; learned prompts have no words to show.
    """
    rows = []
    for spec in specs:
        chosen = methods.choose(spec, profile)
        wording = chosen.method.prompt_wording(chosen.settings, row)
        prototypes = F.normalize(chosen.text(profile.path(profile.cache), backbone, wording), dim=-1)
        written = isinstance(wording[0], list) or not chosen.settings.learned
        sides = wording[:2] if written else ["learned", "learned"]
        sides = [[side] if isinstance(side, str) else side for side in sides]
        rows.append(
            {
                "variant": spec.name,
                "normal": len(sides[0]),
                "anomalous": len(sides[1]),
                "a normal one": sides[0][-1],
                "an anomalous one": sides[1][-1],
                "cosine": float(prototypes[0] @ prototypes[1]),
            }
        )
    return pd.DataFrame(rows)


def find_unread_words(family: Sequence[Method], backbone: Backbone, row: pd.Series) -> dict[str, list[str]]:
    """The variants of a family (its first is the base) that bring words which the backbone's text tower never read.

    By the variant's name, those words (``Backbone.unread_words``) that the base does not have too; a base with learned
    prompts has none. What such a variant differs by says nothing about its words: any nonsense word would do the same.
    Empty for large CLIPs.
    """
    own, *others = (set(backbone.unread_words(_list_texts(spec, row))) for spec in family)
    brought = {spec.name: sorted(words - own) for spec, words in zip(family[1:], others, strict=True)}
    return {name: words for name, words in brought.items() if words}


def _list_texts(spec: Method, row: pd.Series) -> list[str]:
    """All prompts of a method for an index row; of learned ones the words behind what is learned."""
    wording = methods.METHODS[spec.method].prompt_wording(methods.settings(spec), row)
    sides = [[side] if isinstance(side, str) else side for side in wording if isinstance(side, (str, list))]
    return [text for side in sides for text in side]


def compare_families(metrics: pd.DataFrame, families: Sequence[Sequence[Method]]) -> pd.DataFrame:
    """Paired differences of every variant to the first of its family, image and pixel AUROC, over *n* categories.

    ``metrics`` are those of all families in their order. Columns: base, variant, auroc (the macro mean) and those of
    ``comparison.COLUMNS``; the base itself has no difference. Intervals hold at 95 % for all variants of a family and
    measure together.
    """
    # what tables call a method is not always what its profile does: learned prompts may be marked as leaked
    names, frames = list(metrics.method.unique()), []
    for family in families:
        own, names = names[: len(family)], names[len(family) :]
        labels = [own[0], *(spec.name.removeprefix(f"{family[0].name}, ") for spec in family[1:])]
        for measure in MEASURES:
            compared = comparison.compare_with_base(metrics[metrics.method.isin(own)], own[0], measure)
            compared[["low", "high"]] = compared[["low", "high"]].clip(-1, 1)  # no difference of AUROCs is larger
            facts = {"base": own[0], "variant": labels, "measure": measure, "over": "categories"}
            frames.append(compared.rename(columns={measure: "auroc"}).assign(**facts))
    return pd.concat(frames, ignore_index=True)[["base", "variant", "auroc", *comparison.COLUMNS]]
