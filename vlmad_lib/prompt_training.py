"""Training AnomalyCLIP's prompts on kept features: the image encoder is frozen and runs once an image.

The objective is the official one (section 3.4 of the paper); data are a profile's test images, normal and
anomalous, which must not be those the prompts are judged on later.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from tqdm.auto import tqdm

from vlmad_lib import InputError, anomalyclip, backbones, data, features, profile
from vlmad_lib.methods import Chosen
from vlmad_lib.profile import Profile, Strict
from vlmad_lib.prompt_learner import PromptLearner, write

TERMS = ("cross_entropy", "focal", "dice_anomalous", "dice_normal", "total")


class Plan(Strict):
    """What decides a training besides its profile; the defaults are the official ones."""

    epochs: Annotated[int, Field(ge=1)] = 15
    batch: Annotated[int, Field(ge=1)] = 8
    rate: Annotated[float, Field(gt=0)] = 1e-3
    seed: Annotated[int, Field(ge=0)] = 111
    exact: bool = True  # features kept as fp32; fp16 halves their size and shares them with a run that scores


# ---------------------------------------------------------------- objective


@dataclass(frozen=True)
class Loss:
    """The terms of the objective; ``total`` = CE + 4 (focal + both dice), these summed over layers."""

    cross_entropy: Tensor
    focal: Tensor
    dice_anomalous: Tensor
    dice_normal: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.cross_entropy + 4 * (self.focal + self.dice_anomalous + self.dice_normal)


def loss(features: dict[str, Tensor], text: Tensor, labels: Tensor, masks: Tensor, known: Tensor | None = None) -> Loss:
    """Terms on the arrays of ``encode``, labels (B,) in {0, 1} and masks (B, side, side) in {0, 1}.

    ``text`` is (2, D), or (B, 2, D) where every image has prompts of its own. Images without a mask, those not
    ``known`` (B,), count for the cross entropy alone.
    """
    text = F.normalize(text, dim=-1).expand(len(labels), -1, -1)
    whole = F.normalize(features["class"], dim=-1)
    entropy = F.cross_entropy((text @ whole[..., None])[..., 0] / anomalyclip.TEMPERATURE, labels.long())
    known = torch.ones(len(labels), dtype=torch.bool) if known is None else known
    focal = anomalous = normal = torch.zeros(())
    masks = masks[known]
    for name, value in features.items():
        if name == "class" or not known.any():
            continue
        logits = F.normalize(value[known], dim=-1) @ text[known].mT / anomalyclip.TEMPERATURE
        grid = round(value.shape[1] ** 0.5)
        chances = logits.softmax(-1).mT.unflatten(2, (grid, grid))
        chances = F.interpolate(chances, masks.shape[-2:], mode="bilinear", align_corners=False)
        focal = focal + focal_loss(chances, masks)
        anomalous = anomalous + dice_loss(chances[:, 1], masks)
        normal = normal + dice_loss(chances[:, 0], 1 - masks)
    return Loss(entropy, focal, anomalous, normal)


def focal_loss(chances: Tensor, masks: Tensor, small: float = 1e-5) -> Tensor:
    """Mean focal loss, gamma 2, of chances (B, 2, H, W) against masks (B, H, W)."""
    truth = torch.stack([1 - masks, masks], 1).clamp(small, 1 - small)
    right = (truth * chances).sum(1) + small
    return -((1 - right) ** 2 * right.log()).mean()


def dice_loss(chance: Tensor, mask: Tensor) -> Tensor:
    """One minus the mean over a batch of the smoothed Dice overlap of (B, H, W) and (B, H, W)."""
    chance, mask = chance.flatten(1), mask.flatten(1)
    return 1 - ((2 * (chance * mask).sum(1) + 1) / (chance.sum(1) + mask.sum(1) + 1)).mean()


# ---------------------------------------------------------------- examples


@dataclass(frozen=True)
class Examples:
    """The images to learn from: rows of the index, kept features, and masks at the input's size as packed bits."""

    table: pd.DataFrame
    store: features.Store
    names: list[str]
    masks: dict[str, np.ndarray]

    def batch(self, places: np.ndarray) -> tuple[pd.DataFrame, dict[str, Tensor], Tensor, Tensor]:
        """Rows, features, masks (B, side, side) and which of the masks are known (B,)."""
        rows, side = self.table.iloc[places], self.store.size
        found, _ = self.store.load(list(rows.image), self.names)
        masks = np.zeros((len(rows), side * side), np.float32)
        for place, image in enumerate(rows.image):
            if image in self.masks:
                masks[place] = np.unpackbits(self.masks[image], count=side * side)
        known = ((rows.label == 0) | (rows["mask"] != "")).to_numpy(copy=True)
        return rows, found, torch.from_numpy(masks).unflatten(1, (side, side)), torch.from_numpy(known)


def examples(profile: Profile, chosen: Chosen, backbone: backbones.Backbone, plan: Plan, progress: bool) -> Examples:
    """Every test image of a profile, encoded where its features are not kept yet."""
    table = data.tested(data.index(profile.model_copy(update={"shots": [0]}))[0]).reset_index(drop=True)
    if table.label.nunique() < 2:
        raise InputError(
            f"{profile.path(profile.root)} has only {'anomalous' if table.label.any() else 'normal'} test images; "
            "prompts are learned from both."
        )
    store = chosen.store(profile.path(profile.cache), backbone, exact=plan.exact)
    names = anomalyclip.arrays(chosen.settings)
    store.fill(list(table.image), names, profile.batch, progress)
    masks = {
        row.image: np.packbits(data.framed_mask(row.mask, row.width, row.height, store.fit, store.size))
        for row in table[table["mask"] != ""].itertuples()
    }
    return Examples(table, store, names, masks)


# ---------------------------------------------------------------- training


def train(
    profile: Profile, out: Path, plan: Plan | None = None, method: str = "", progress: bool = False
) -> list[dict]:
    """Train the prompts of a profile's AnomalyCLIP (its first, or the ``method`` of that name) and write them.

    Returns the means of the loss terms, one dictionary an epoch, which are also kept beside ``out`` as JSON lines.
    Learner and optimiser are kept after every epoch: an interrupted training goes on there and ends the same, and
    one that is done goes on to more epochs. Raises InputError for wrong input.
    """
    plan, chosen = plan or Plan(), _method(profile, method)
    spec = chosen.spec
    backbone = backbones.load(spec.backbone, spec.weights, spec.precision, profile.download)
    found = examples(profile, chosen, backbone, plan, progress)
    learner = PromptLearner(backbone, plan.seed)
    optimiser = torch.optim.Adam(learner.parameters(), plan.rate, (0.5, 0.999))
    state, key = out.with_suffix(".state.pt"), _key(chosen, backbone, found, plan)
    curve = _resume(state, key, learner, optimiser)
    if len(curve) > plan.epochs:
        raise InputError(f"{state} has done {len(curve)} epochs, more than {plan.epochs}; remove it, or change --out.")
    steps = -(-len(found.table) // plan.batch)
    bar = tqdm(total=plan.epochs * steps, initial=len(curve) * steps, desc="train", disable=not progress, leave=False)
    with bar:
        while len(curve) < plan.epochs:
            means = _epoch(found, backbone, chosen, learner, optimiser, plan, len(curve), bar)
            curve.append({"epoch": len(curve) + 1} | means)
            kept = {"key": key, "learner": learner.state_dict(), "optimiser": optimiser.state_dict(), "curve": curve}
            features.replace(state, lambda path, kept=kept: torch.save(kept, path))
    lines = "".join(json.dumps(epoch) + "\n" for epoch in curve)
    features.replace(out.with_suffix(".curve.jsonl"), lambda path: path.write_text(lines, encoding="utf-8"))
    own = profile.dataset == "folder"
    root = str(profile.path(profile.root).resolve()) if own else ""
    write(learner, out, data.identity(profile), root, list(found.table.category.unique()))
    text = _card(out, profile, chosen, backbone, found.table, plan, curve)
    features.replace(out.with_suffix(".md"), lambda path: path.write_text(text, encoding="utf-8"))
    return curve


CARD = """# Model card: {name}

Learned prompts of AnomalyCLIP, written by `python -m vlmad_lib.anomalyclip train`, as this card is.

- **Prompts**: `{file}`, SHA-256 `{sha256}`, {numbers:,} learned numbers; everything else of the model is frozen.
- **Belongs to**: {backbone}, SHA-256 of the weights `{fingerprint}`; a run refuses them with other weights.
- **Trained on**: {trained_on}, {images} test images ({anomalous} anomalous) of {categories}. A run refuses to test on
  these data.
- **Settings**: {settings}.
- **Run**: {epochs} epochs, batch {batch}, Adam at {rate}, seed {seed}; cross entropy + 4 (focal + Dice + Dice).

| | first epoch | last epoch |
|---|---|---|
{losses}

The whole curve is in `{curve}`.
"""


def _card(
    out: Path,
    profile: Profile,
    chosen: Chosen,
    backbone: backbones.Backbone,
    table: pd.DataFrame,
    plan: Plan,
    curve: list,
) -> str:
    """The model card of written prompts."""
    size = {"image_size": anomalyclip.side(chosen.settings, backbone)}
    values = chosen.settings.model_dump(exclude_none=True) | size
    learned = ("ctx", "compound_prompts_text")
    state = torch.load(out, weights_only=True)["prompt_learner"]
    return CARD.format(
        **plan.model_dump(),
        name=out.stem,
        file=out.name,
        curve=out.with_suffix(".curve.jsonl").name,
        sha256=hashlib.sha256(out.read_bytes()).hexdigest(),
        numbers=sum(value.numel() for name, value in state.items() if name.startswith(learned)),
        backbone=backbone.label,
        fingerprint=backbone.fingerprint,
        trained_on=data.identity(profile),
        images=len(table),
        anomalous=int(table.label.sum()),
        categories=", ".join(table.category.unique()),
        settings=", ".join(f"{key} {value}" for key, value in values.items()),
        losses="\n".join(
            f"| {name.replace('_', ' ')} | {curve[0][name]:.3f} | {curve[-1][name]:.3f} |" for name in TERMS
        ),
    )


def _method(profile: Profile, name: str) -> Chosen:
    """The method to train; its checkpoint need not exist."""
    known = [spec for spec in profile.methods if spec.method == "anomalyclip" and name in ("", spec.name)]
    if not known:
        called = f" named {name!r}" if name else ""
        raise InputError(f"The profile has no AnomalyCLIP method{called}; add one, with its backbone and weights.")
    chosen = Chosen(known[0], anomalyclip.settings(known[0].preset, known[0].settings))
    if not chosen.settings.learned:
        raise InputError(f"{known[0].name}: hand-written prompts have nothing to learn; leave 'prompts' out.")
    return chosen


def _epoch(
    found: Examples, backbone: backbones.Backbone, chosen: Chosen, learner: PromptLearner,
    optimiser: torch.optim.Optimizer, plan: Plan, epoch: int, bar: tqdm,
) -> dict[str, float]:  # fmt: skip
    """One pass over all images in an order that depends on seed and epoch alone; means of the loss terms."""
    order = np.random.default_rng([plan.seed, epoch]).permutation(len(found.table))
    sums = dict.fromkeys(TERMS, 0.0)
    for start in range(0, len(order), plan.batch):
        rows, arrays, masks, known = found.batch(order[start : start + plan.batch])
        labels = torch.from_numpy(rows.label.to_numpy(copy=True))
        terms = loss(arrays, _text(learner, backbone, chosen, rows), labels, masks, known)
        optimiser.zero_grad()
        terms.total.backward()
        optimiser.step()
        for name in TERMS:
            sums[name] += getattr(terms, name).item() * len(rows)
        bar.set_postfix(epoch=epoch + 1, loss=f"{terms.total.item():.3f}", refresh=False)
        bar.update()
    return {name: value / len(order) for name, value in sums.items()}


def _text(learner: PromptLearner, backbone: backbones.Backbone, chosen: Chosen, rows: pd.DataFrame) -> Tensor:
    """Text features (B, 2, D) of every row, each wording computed once."""
    words = [tuple(anomalyclip.wording(chosen.settings, row)) for _, row in rows.iterrows()]
    features = {one: learner(backbone, *one) for one in dict.fromkeys(words)}
    return torch.stack([features[one] for one in words])


def _key(chosen: Chosen, backbone: backbones.Backbone, found: Examples, plan: Plan) -> str:
    """What a training must share with the one it goes on from: all but the number of epochs."""
    code = (loss, focal_loss, dice_loss, _epoch, PromptLearner)
    stamps = [features.stamp(path) for path in [*found.table.image, *found.table["mask"]]]
    facts = chosen.settings.model_dump(), plan.model_dump(exclude={"epochs"}), found.table.to_csv(index=False)
    return features.digest(backbone.fingerprint, str(found.store.folder.name), facts, stamps, *code)


def _resume(file: Path, key: str, learner: PromptLearner, optimiser: torch.optim.Optimizer) -> list[dict]:
    """Put learner and optimiser where a training stopped; its curve so far, empty for a new one."""
    if not file.is_file():
        return []
    try:
        kept = torch.load(file, weights_only=True)
        if kept["key"] == key:
            learner.load_state_dict(kept["learner"])
            optimiser.load_state_dict(kept["optimiser"])
            return kept["curve"]
    except Exception:  # an unpickler that meets garbage raises anything
        raise InputError(f"{file} is damaged; remove it to train from the start.") from None
    raise InputError(f"{file} belongs to a training with other data, settings or code; remove it, or change --out.")


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 done, 2 wrong input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m vlmad_lib.anomalyclip", description=__doc__.splitlines()[0])
    command = parser.add_subparsers(dest="command", required=True).add_parser("train", help="train prompts")
    command.add_argument("profile", help="a profile in reports/, or the path of a YAML file; its test images are used")
    command.add_argument("--out", type=Path, required=True, help="the prompt checkpoint to write, such as mine.pth")
    for key, value in Plan().model_dump(exclude={"exact"}).items():
        command.add_argument(f"--{key}", type=type(value), default=value, help=f"default {value}")
    command.add_argument("--half", action="store_true", help="keep features as fp16: half the disk, nearly the same")
    command.add_argument("--method", default="", help="name of the method to train, where the profile has several")
    command.add_argument("-p", dest="pairs", action="append", default=[], metavar="KEY=VALUE", help="override a key")
    options = parser.parse_args(arguments)
    try:
        given = dict(profile.override(pair) for pair in options.pairs)
        values = {key: getattr(options, key) for key in ("epochs", "batch", "rate", "seed")}
        plan = profile.check(Plan, values | {"exact": not options.half}, "train")
        loaded = profile.load(options.profile, given)
        curve = train(loaded, options.out.resolve(), plan, options.method, progress=sys.stderr.isatty())
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on after the last whole epoch", file=sys.stderr)
        return 130
    print(f"{options.out}: {len(curve)} epochs, loss {curve[0]['total']:.3f} to {curve[-1]['total']:.3f}")
    return 0
