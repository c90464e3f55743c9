"""What trained demo weights are worth: their scores on held-out auxiliary categories; model card and data card."""

from __future__ import annotations

import hashlib
import inspect
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from vlmad_lib import PACKAGE
from vlmad_lib.demo.data import CATEGORIES, CONTRASTS, names, render, write
from vlmad_lib.demo.defects import AREA, LEVELS
from vlmad_lib.encoders import backbones, prompts
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import winclip

HELD_OUT = ("roof_shingles", "padlock", "glove")
"""Auxiliary categories kept out of training, to watch it by: one texture, one rigid, one flexible."""
TERMS = ("class", "2x2", "3x3", "patch", "early", "local", "near", "name")
"""The losses, as the curve and the card name them."""


@lru_cache(maxsize=32)
def sample(category: str, seed: int, good: int, bad: int) -> tuple[np.ndarray, np.ndarray]:
    """Fresh scenes of a category, the good ones first, and their masks."""
    defects = list(CATEGORIES[category].defects)
    pictures = [render(category, seed, i) for i in range(good)]
    pictures += [render(category, seed, good + i, defects[i % len(defects)], CONTRASTS[i % 3]) for i in range(bad)]
    return tuple(np.stack(part) for part in zip(*pictures, strict=True))


@torch.inference_mode()
def validate(
    model: torch.nn.Module, categories: list[str], seed: int = 7, good: int = 24, bad: int = 24, shots: int = 4
) -> dict[str, float]:
    """WinCLIP on fresh scenes of categories: image and pixel AUROC of each and their means, zero- and few-shot."""
    was, chosen = model.training, winclip.settings()
    net, found = backbones.Backbone("demo", "", model.eval(), ""), {}
    for category in categories:
        images, masks = sample(category, seed, shots + good, bad)
        text = prompts.prototypes(net, *prompts.ensemble(CATEGORIES[category].class_name))
        seen = winclip.encode(net, net.normalise(images), winclip.arrays(chosen, shots))
        memory, seen = ({name: value[part] for name, value in seen.items()} for part in np.s_[:shots, shots:])
        for few, references in (("", None), (f" {shots}-shot", memory)):
            scores, maps = winclip.score(seen, text, chosen, net.grid, references)
            pairs = zip(maps.numpy(), masks[shots:], strict=True)
            frames = ((metrics.upsample(one, *mask.shape[::-1]), mask) for one, mask in pairs)
            found[f"{category} image{few}"] = metrics.image_metrics(masks[shots:].any((1, 2)), scores)["image_auroc"]
            found[f"{category} pixel{few}"] = metrics.pixel_metrics(frames, coarse=False)["pixel_auroc"]
    model.train(was)
    kinds = [name.removeprefix(categories[0]) for name in list(found)[:4]]
    means = {f"mean{kind}": float(np.mean([found[category + kind] for category in categories])) for kind in kinds}
    return means | {name: float(value) for name, value in found.items()}


CARD = """# Model card: vlmad-demo

An open_clip ViT trained from scratch by `python -m vlmad_lib.demo.training.train`, for the demo of this workbook only.
This card is written by that command.

- **Weights**: `{file}`, fp16, SHA-256 of the file `{sha256}`, {parameters:,} parameters.
- **Data**: drawn by `vlmad_lib.demo`, pairs of the same scene with and without a defect, from the auxiliary
  categories {categories}. The target categories of the demo, their names and their pictures are never seen.
- **Captions**: the compositional prompt ensemble of WinCLIP, state words in templates, on class names, "object" and
  random words; now and then the defect's own word.
- **Objective**: the text tower first learns on captions alone to put a name and a state where all captions of that
  name and state are (cosine reached: {text}); it is then locked. The image tower answers which of two captions, normal
  or anomalous, fits, by binary cross-entropy at the methods' own temperature: with the class token of pictures and of
  2x2 and 3x3 windows, with every patch token of the last and of earlier layers, and, in the first steps only, with
  those of AnomalyCLIP's V-V path. Two more terms ask which class name fits, and that a patch token be near one of a
  clean picture of its category unless it is defective. Their weights are below. **The patch terms and the two phases
  are not how CLIP was trained**; a model of this size needs them.
- **Run**: AdamW, with Muon on the matrices of the blocks from where `muon` is True, seed {seed}, {minutes:.0f} minutes
  on two shared cores after the pictures were drawn.
{parts}
- **Losses** at the end (chance is 0.693 for all but near and name): {losses}.
- **Watched on**: the categories {held_out}, {how}; the weights are those of the last step.

| | image AUROC | pixel AUROC | image, 4-shot | pixel, 4-shot |
|---|---|---|---|---|
{scores}

WinCLIP on 24 good and 24 defective pictures each, on the moving average of the weights, at the published temperature.
The whole curve is in `{curve}`. The demo report gives the scores on the target categories.

{scale}
## Limits

It knows drawn pictures and a handful of nouns. All state words mean the same to it, so that prompts hardly matter;
words it never read are blank. Its numbers say how the methods behave, never how good they are on real parts.
"""


def card(weights: Path, hold_out: bool) -> str:
    """The model card of trained weights, from what the run recorded in the curve beside them."""
    curve = [json.loads(line) for line in weights.with_suffix(".curve.jsonl").read_text().splitlines()]
    last, runs = curve[-1], [line for line in curve if "settings" in line]
    seconds = {line["resumed_at"]: line["seconds"] for line in curve if "seconds" in line}  # of each part of a run
    kinds = ("image", "pixel", "image 4-shot", "pixel 4-shot")
    rows = [[name, *(f"{last[f'{name} {kind}']:.3f}" for kind in kinds)] for name in ("mean", *HELD_OUT)]
    return CARD.format(
        **runs[-1]["settings"],
        file=weights.name,
        scale=scale_section(weights),
        curve=weights.with_suffix(".curve.jsonl").name,
        sha256=hashlib.sha256(weights.read_bytes()).hexdigest(),
        parameters=sum(value.numel() for value in load_file(weights).values()),
        categories=", ".join(name for name in names("auxiliary") if not (hold_out and name in HELD_OUT)),
        text=curve[0]["text"],
        minutes=sum(seconds.values()) / 60,
        parts="\n".join(_parts(runs)),
        losses=", ".join(f"{name} {last[name]:.3f}" for name in TERMS if name in last),
        held_out=", ".join(HELD_OUT),
        how="auxiliary too, kept out of training" if hold_out else "which were trained on as well",
        scores="\n".join(f"| {' | '.join(row)} |" for row in rows),
    )


def _parts(runs: list[dict]) -> list[str]:
    """A line for the first settings of a run, and one for every resumption with others."""
    told, before = [], {}
    for line in runs:
        changed = {name: value for name, value in line["settings"].items() if before.get(name) != value}
        if changed:
            told.append(f"  - from step {line['step']}: " + ", ".join(f"{n} {v}" for n, v in changed.items()) + ".")
        before = line["settings"]
    return told


# ---------------------------------------------------------------- the card's section on the temperature

SCALE = """## Temperature

The image tower learned at the temperature {published:g} that WinCLIP reads with, where CLIP learns at 0.01 and is read
at {published:g}; so its cosines spread wider, and at {published:g} the words would swamp the references. On this
backbone **every temperature is multiplied by {factor}** (`{key}` in `{config}`), WinCLIP's to {used:g}; other backbones
keep the published values. `python -m vlmad_lib.demo.training.temperature` chose it on {held_out}, not trained on:
{good} normal and {bad} defective fresh scenes each, references from {pool} more normal ones, {draws} draws. WinCLIP+
takes the plain mean of its map of words and its map of references, so the factor is the candidate at which, over normal
pictures, both vary most alike: the geometric mean over categories of the ratio of their standard deviations is nearest
1. No AUROC enters.

{choice}

Macro means over n = {n} categories, too few to tell AUROCs this close apart; a zero-shot image AUROC does not depend
on the temperature. The other methods on the same scenes, with what the demo ships for them:

{effect}
"""
UNSCALED = """## Temperature

The factor on temperatures was not chosen for these weights yet: `python -m vlmad_lib.demo.training.temperature`.
"""


def scale_file(weights: Path) -> Path:
    """Where ``demo.temperature`` keeps what it measured on weights."""
    return weights.with_suffix(".temperature.json")


def words_to_references(measured: pd.DataFrame) -> pd.Series:
    """By factor, how WinCLIP's map of words varies, by its map of references: the geometric mean over categories."""
    return np.exp(np.log(measured.words / measured.references).groupby(measured.factor).mean())


def scale_section(weights: Path) -> str:
    """The card's section on the temperature, from what was measured on these very weights."""
    file = scale_file(weights)
    facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"weights": ""}
    if facts["weights"] != hashlib.sha256(weights.read_bytes()).hexdigest():
        return UNSCALED
    measured, others = pd.DataFrame(facts["balance"]), pd.DataFrame(facts["effect"])
    means = measured.drop(columns="category").groupby("factor").mean()
    means.insert(0, "words : references", words_to_references(measured))
    titles = {"above_0.9": "scores above 0.9", "image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC"}
    titles |= {"aupro": "AUPRO"}
    shown = {"words : references": "words : references", "above_0.9": "zero-shot scores above 0.9"}
    for name in ("image_auroc", "aupro"):
        shown |= {one: f"{titles[name]}, {one.rpartition('_')[2]}-shot" for one in means if one.startswith(name)}
    effect = others.groupby(["method", "shots", "factor"], sort=False)[list(titles)].mean().reset_index()
    published = winclip.settings().temperature
    return SCALE.format(
        factor=facts["factor"],
        good=facts["good"],
        bad=facts["bad"],
        pool=facts["pool"],
        draws=facts["draws"],
        published=published,
        used=published * facts["factor"],
        key=backbones.FACTOR,
        config=backbones.DEMO_CONFIG.name,
        held_out=", ".join(HELD_OUT),
        n=measured.category.nunique(),
        choice=_markdown(means[list(shown)].rename(columns=shown).reset_index()),
        effect=_markdown(effect.rename(columns=titles)),
    )


def _markdown(table: pd.DataFrame) -> str:
    """A table as Markdown, three decimals."""
    rows = [list(table.columns), ["---"] * table.shape[1]]
    rows += [[f"{one:.3f}" if isinstance(one, float) else str(one) for one in row] for row in table.itertuples(False)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# ---------------------------------------------------------------- the data card

DATA_CARD = """# Data card: the demo data

Pictures of parts that do not exist, drawn by `vlmad_lib.demo` from a seed, with a mask for every defect. This card is
written by `python -m vlmad_lib.demo.training.card`.

- **For**: showing how methods behave, and testing this workbook, offline. Not for saying how good a method is on real
  parts, nor for training one that will be used on them.
- **Pictures**: {size}x{size} pixels, 8-bit RGB, PNG, in MVTec AD's layout; {train} normal ones to train on, {good} good
  ones to test on and {per_defect} of each defect, for every category. Two pictures of one scene, with and without a
  defect, can be drawn as a pair.
- **Two disjoint sets**: {targets} target categories, to test on; {auxiliaries} auxiliary ones, to train on. The demo
  backbone and the demo prompts have seen the second set only.
- **Defects**: {kinds} on the target categories, of {classes} classes, each at {levels} contrasts in turn.
- **Masks**: where the drawn defect is, exactly; {least:.1%} to {most:.0%} of the picture. `demo.csv` tells the class,
  contrast, area and colour difference of each as measured.
- **Made by**: a program, from seed {seed}; the same seed draws the same pictures. No person, place or product is shown;
  nothing was collected.
- **Terms**: MIT, like the rest of the workbook.

| contrast | wanted colour difference to the surroundings (Delta-E 76) |
|---|---|
{contrasts}

| target category | group | defects: their class |
|---|---|---|
{rows}

Auxiliary categories: {auxiliary}.

## Limits

Pose, colours, light and noise vary from scene to scene, but one renderer drew them all, at one size. Contrast is set,
so that low, medium and high mean the same for all categories, which no real factory has. Textures come from a few
drawing routines: a method that knows them would look better here than anywhere else. But for `combined`, a picture has
one kind of defect.
"""


def data_card() -> str:
    """The data card of the demo data, from the program that draws them."""
    defaults = {name: one.default for name, one in inspect.signature(write).parameters.items()}
    target = [CATEGORIES[name] for name in names("target")]
    told = [
        f"| {one.name} | {one.group} | {'; '.join(f'{defect}: {kind}' for defect, kind in one.defects.items())} |"
        for one in target
    ]
    return DATA_CARD.format(
        **{name: defaults[name] for name in ("train", "good", "per_defect", "seed")},
        size=inspect.signature(render).parameters["size"].default,
        targets=len(target),
        auxiliaries=len(names("auxiliary")),
        kinds=sum(len(one.defects) for one in target),
        classes=len({kind for one in target for kind in one.defects.values()}),
        levels=len(LEVELS),
        least=AREA[0],
        most=AREA[1],
        contrasts="\n".join(f"| {name} | {low:g} to {high:g} |" for name, (low, high) in LEVELS.items()),
        rows="\n".join(told),
        auxiliary=", ".join(names("auxiliary")),
    )


if __name__ == "__main__":
    (PACKAGE / "demo" / "data-card.md").write_text(data_card(), encoding="utf-8")
