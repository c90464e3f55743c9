"""Training what a method learns on kept features: the image encoder is frozen and runs once an image.

Data are a profile's test images, normal and anomalous, which must not be those the method is judged on later. What is
learned and by which objective is a ``Task`` (module ``objectives``). Steps are computed on the profile's device, while
threads read what the next ones see. The command is ``python -m vlmad_lib train METHOD PROFILE --out FILE``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from vlmad_lib import InputError, commands, config, digests, files, methods
from vlmad_lib.config import Profile
from vlmad_lib.data import datasets, image_files, mask_files
from vlmad_lib.encoders import backbones, devices, feature_store
from vlmad_lib.methods import ChosenMethod, settings
from vlmad_lib.methods.objectives import TASKS, Batch, Plan, Task

AHEAD = 2  # batches that are read while a step computes


# ---------------------------------------------------------------- examples


@dataclass(frozen=True)
class Examples:
    """The images to learn from: rows of the index, kept features, and masks at the input's size as packed bits."""

    table: pd.DataFrame
    store: feature_store.Store
    names: list[str]
    masks: dict[str, np.ndarray]

    def batch(self, places: np.ndarray) -> Batch:
        """The images at some places of the table."""
        rows, side = self.table.iloc[places], self.store.size
        arrays, _ = self.store.load(list(rows.image), self.names)
        masks = np.zeros((len(rows), side * side), np.float32)
        for place, image in enumerate(rows.image):
            if image in self.masks:
                masks[place] = np.unpackbits(self.masks[image], count=side * side)
        masks_known = ((rows.label == 0) | (rows["mask"] != "")).tolist()
        return Batch(rows, arrays, torch.from_numpy(masks).unflatten(1, (side, side)), masks_known)

    def each(self, parts: Iterable[np.ndarray], plan: Plan, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch at some places of the table, in this order, on the CPU.

        Threads read the next ones meanwhile, a few at most, and stitch the pictures that stand in for examples. What
        one of them raises is raised here; they end with this generator, which is to be closed.
        """
        pinned = self.store.backbone.device.type == "cuda" and torch.cuda.is_available()

        def read(places: np.ndarray) -> Batch:
            batch = replace(self.batch(places), sheets=_stitch(self.table, places, plan, epoch, self.store.size))
            return batch.pinned() if pinned else batch

        reading = deque()
        with ThreadPoolExecutor(AHEAD) as readers:
            try:
                for places in parts:
                    reading.append(readers.submit(read, places))
                    if len(reading) > AHEAD:
                        yield reading.popleft().result()
                while reading:
                    yield reading.popleft().result()
            finally:
                for future in reading:
                    future.cancel()


def examples(
    profile: Profile, chosen: ChosenMethod, backbone: backbones.Backbone, plan: Plan, progress: bool, task: Task
) -> Examples:
    """Every test image of a profile that teaches anything, encoded where its features are not kept yet."""
    table = datasets.select_tested(datasets.build_index(profile.model_copy(update={"shots": [0]}))[0])
    place, noun = profile.path(profile.root), task.kind.noun
    if table.label.nunique() < 2:
        raise InputError(
            f"{place} has only {'anomalous' if table.label.any() else 'normal'} test images; "
            f"{noun} are learned from both."
        )
    if task.masks:
        table = table[(table.label == 0) | (table["mask"] != "")]
        if not table.label.any():
            raise InputError(f"{place} has no masks; {noun} are learned from them: add ground_truth/<defect>/.")
    table = table.reset_index(drop=True)
    store = chosen.store(profile.path(profile.cache), backbone, exact=plan.exact)
    names = chosen.method.array_names(chosen.settings)
    store.fill(list(table.image), names, profile.batch, progress)
    masks = {
        row.image: np.packbits(mask_files.framed_mask(row.mask, row.width, row.height, store.fit, store.size))
        for row in table[table["mask"] != ""].itertuples()
    }
    return Examples(table, store, names, masks)


# ---------------------------------------------------------------- four pictures as one


def _stitch(
    table: pd.DataFrame, places: Iterable[int], plan: Plan, epoch: int, side: int
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Four pictures of its category, side by side, and their mask, for some examples of a batch, by number in it.

    Which ones depends on seed, epoch and place alone.
    """
    sheets = {}
    for number, place in enumerate(places):
        stream = np.random.default_rng([plan.seed, epoch, place])
        if stream.random() < plan.stitched:
            sheets[number] = _sheet(_four(table, table.category.iloc[place], stream), side)
    return sheets


def _encode_sheets(batch: Batch, found: Examples, chosen: ChosenMethod) -> None:
    """Put a batch's stitched pictures in the place of its examples; each is seen once, so its features are not kept."""
    for number, (pixels, mask) in batch.sheets.items():
        backbone = found.store.backbone.loaded
        values, _ = feature_store.encode_pixels(backbone, chosen.method.encode, pixels[None], found.names, 1)
        for name, value in values.items():
            batch.arrays[name][number] = torch.from_numpy(value[0])
        batch.masks[number] = torch.from_numpy(mask)


def _four(table: pd.DataFrame, category: str, stream: np.random.Generator) -> list[pd.Series]:
    """Four rows of a category: of each the kind is drawn first, good or one of its defects, then the picture."""
    rows_of_category = table[table.category == category]
    kinds = [rows for _, rows in rows_of_category.groupby("defect")]
    drawn = [kinds[kind] for kind in stream.integers(len(kinds), size=4)]
    return [rows.iloc[stream.integers(len(rows))] for rows in drawn]


def _sheet(rows: list[pd.Series], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Four pictures, two by two, as the model's input (side, side, 3) uint8, and their mask (side, side) bool."""
    width, height = rows[0].width, rows[0].height
    whole, cover = (Image.new(mode, (2 * width, 2 * height)) for mode in ("RGB", "L"))
    for number, row in enumerate(rows):
        corner = number % 2 * width, number // 2 * height
        whole.paste(image_files.load_image(row.image), corner)
        if row["mask"]:
            cover.paste(Image.fromarray(mask_files.load_mask(row["mask"]).astype(np.uint8) * 255), corner)
    shrunk = cover.resize((side, side), Image.Resampling.BILINEAR)
    return np.array(whole.resize((side, side), Image.Resampling.BICUBIC)), np.asarray(shrunk) > 127


# ---------------------------------------------------------------- training


def train(
    task: Task, profile: Profile, out: Path, plan: Plan | None = None, method: str = "", progress: bool = False
) -> list[dict]:
    """Train what a profile's method learns (its first of the task's, or the one of that name) and write it.

    Returns the means of the loss terms, one dictionary an epoch, which are also kept beside ``out`` as JSON lines.
    Learner and optimiser are kept after every epoch: an interrupted training goes on there and ends the same, and
    one that is done goes on to more epochs, on whatever device. Raises InputError for wrong input.
    """
    plan, chosen = plan or task.plan, _method(task, profile, method)
    spec = chosen.spec
    backbone = methods.load_backbone(spec, profile.download, profile.device)
    training_examples = examples(profile, chosen, backbone, plan, progress, task)
    learner = task.start(backbone, chosen.settings, plan.seed)
    optimiser = torch.optim.Adam(learner.parameters(), plan.rate, (0.5, 0.999))
    state, key = out.with_suffix(".state.pt"), _key(task, chosen, backbone, training_examples, plan)
    curve, places = _resume(state, key, learner, optimiser)
    if len(curve) > plan.epochs:
        raise InputError(f"{state} has done {len(curve)} epochs, more than {plan.epochs}; remove it, or change --out.")
    steps = -(-len(training_examples.table) // plan.batch)
    bar = tqdm(total=plan.epochs * steps, initial=len(curve) * steps, desc="train", disable=not progress, leave=False)
    with bar, devices.multiply_in("fp32", backbone.device):
        while len(curve) < plan.epochs:
            means = _epoch(task, training_examples, backbone, chosen, learner, optimiser, plan, len(curve), bar)
            curve.append({"epoch": len(curve) + 1} | means)
            places = list(dict.fromkeys([*places, devices.describe_device(backbone.device)]))
            kept = {"key": key, "learner": learner.state_dict(), "optimiser": optimiser.state_dict()}
            kept = _fetch(kept | {"curve": curve, "devices": places})
            files.replace_file(state, lambda path, kept=kept: torch.save(kept, path))
    lines = "".join(json.dumps(epoch) + "\n" for epoch in curve)
    files.replace_file(out.with_suffix(".curve.jsonl"), lambda path: path.write_text(lines, encoding="utf-8"))
    # the demo's is drawn wherever it is wanted, under one name
    root = "" if profile.dataset == "demo" else str(profile.path(profile.root).resolve())
    origin = {
        "trained_on": datasets.describe_identity(profile),
        "root": root,
        "categories": list(training_examples.table.category.unique()),
    }
    task.write(learner, out, origin, backbone)
    count = sum(value.numel() for value in learner.parameters())
    text = _card(task, out, profile, chosen, backbone, training_examples.table, plan, curve, count, places)
    files.replace_file(out.with_suffix(".md"), lambda path: path.write_text(text, encoding="utf-8"))
    return curve


CARD = """# Model card: {name}

Learned {noun} of {title}, written by `{command}`, as this card is.

- **{Noun}**: `{file}`, SHA-256 `{sha256}`, {numbers:,} learned numbers; everything else of the model is frozen.
- **Belongs to**: {backbone}, SHA-256 of the weights `{fingerprint}`; a run refuses them with other weights.
- **Trained on**: {trained_on}, {images} test images ({anomalous} anomalous) of {categories}. A run refuses to test on
  these data.
- **Settings**: {settings}.
- **Run**: {epochs} epochs, batch {batch}, Adam at {rate}, seed {seed}; {objective}{sheets}.
- **Computed on**: {devices}.

| | first epoch | last epoch |
|---|---|---|
{losses}

The whole curve is in `{curve}`.
"""


def _card(
    task: Task, out: Path, profile: Profile, chosen: ChosenMethod, backbone: backbones.Backbone, table: pd.DataFrame,
    plan: Plan, curve: list, numbers: int, places: list[str],
) -> str:  # fmt: skip
    """The model card of what was written."""
    size = {"image_size": chosen.method.image_side(chosen.settings, backbone)}
    values = chosen.settings.model_dump(exclude_none=True) | size
    return CARD.format(
        **plan.model_dump(),
        name=out.stem,
        noun=task.kind.noun,
        Noun=task.kind.noun.capitalize(),
        title=task.title,
        command=task.kind.command,
        objective=task.objective,
        sheets=f"; {plan.stitched:.0%} of the examples are four pictures stitched together" if plan.stitched else "",
        file=out.name,
        curve=out.with_suffix(".curve.jsonl").name,
        sha256=hashlib.sha256(out.read_bytes()).hexdigest(),
        numbers=numbers,
        devices=" and ".join(places),
        backbone=backbone.label,
        fingerprint=backbone.fingerprint,
        trained_on=datasets.describe_identity(profile),
        images=len(table),
        anomalous=int(table.label.sum()),
        categories=", ".join(table.category.unique()),
        settings=", ".join(f"{key} {value}" for key, value in values.items()),
        losses="\n".join(
            f"| {name.replace('_', ' ')} | {curve[0][name]:.3f} | {curve[-1][name]:.3f} |" for name in task.names
        ),
    )


def _method(task: Task, profile: Profile, name: str) -> ChosenMethod:
    """The method to train; its checkpoint need not exist."""
    candidates = [spec for spec in profile.methods if spec.method == task.method and name in ("", spec.name)]
    if not candidates:
        called = f" named {name!r}" if name else ""
        raise InputError(f"The profile has no {task.title} method{called}; add one, with its backbone and weights.")
    if candidates[0].tiles:
        raise InputError(f"{candidates[0].name}: it is trained on whole pictures; leave 'tiles' out of the method.")
    chosen = ChosenMethod(candidates[0], settings(candidates[0]))
    if not chosen.settings.learned:
        raise InputError(f"{candidates[0].name}: hand-written prompts have nothing to learn; leave 'prompts' out.")
    return chosen


def _epoch(
    task: Task, found: Examples, backbone: backbones.Backbone, chosen: ChosenMethod, learner: nn.Module,
    optimiser: torch.optim.Optimizer, plan: Plan, epoch: int, bar: tqdm,
) -> dict[str, float]:  # fmt: skip
    """One pass over all images in an order that depends on seed and epoch alone; means of the loss terms."""
    order = np.random.default_rng([plan.seed, epoch]).permutation(len(found.table))
    sums = dict.fromkeys(task.names, 0.0)
    parts = (order[start : start + plan.batch] for start in range(0, len(order), plan.batch))
    with closing(found.each(parts, plan, epoch)) as batches:
        for batch in batches:
            _encode_sheets(batch, found, chosen)
            terms = task.terms(learner, backbone, chosen.settings, batch.to(backbone.device))
            optimiser.zero_grad()
            terms["total"].backward()
            optimiser.step()
            # all of them at once, for to read a number waits for the device
            values = torch.stack([terms[name].detach() for name in task.names]).tolist()
            for name, value in zip(task.names, values, strict=True):
                sums[name] += value * len(batch.rows)
            bar.set_postfix(epoch=epoch + 1, loss=f"{values[-1]:.3f}", refresh=False)
            bar.update()
    return {name: value / len(order) for name, value in sums.items()}


def _key(task: Task, chosen: ChosenMethod, backbone: backbones.Backbone, found: Examples, plan: Plan) -> str:
    """What a training must share with the one it goes on from: all but the number of epochs."""
    paths = [*found.table.image, *found.table["mask"]]
    pixels = digests.digest_files(paths, found.store.cache)
    facts = chosen.settings.model_dump(), plan.model_dump(exclude={"epochs"}), found.table.to_csv(index=False)
    code = digests.digest_code(sys.modules[__name__])
    return digests.digest(backbone.key, str(found.store.folder.name), facts, pixels, task.method, code)


def _fetch(kept: dict | list | Tensor) -> dict | list | Tensor:
    """What a state holds, every tensor on the CPU, so that a machine without this device can read it."""
    if isinstance(kept, dict):
        return {name: _fetch(one) for name, one in kept.items()}
    if isinstance(kept, list):
        return [_fetch(one) for one in kept]
    return kept.cpu() if isinstance(kept, Tensor) else kept


def _resume(file: Path, key: str, learner: nn.Module, optimiser: torch.optim.Optimizer) -> tuple[list[dict], list[str]]:
    """Put learner and optimiser where a training stopped, on their own device; its curve and its devices so far."""
    if not file.is_file():
        return [], []
    try:
        kept = torch.load(file, map_location="cpu", weights_only=True)
        if kept["key"] == key:
            learner.load_state_dict(kept["learner"])
            optimiser.load_state_dict(kept["optimiser"])
            return kept["curve"], kept["devices"]
    except Exception:  # an unpickler that meets garbage raises anything
        raise InputError(f"{file} is damaged; remove it to train from the start.") from None
    raise InputError(f"{file} belongs to a training with other data, settings or code; remove it, or change --out.")


def _official(task: Task, chosen: Profile) -> dict:
    """The changes of the plan by which the official code trains on a profile's data; InputError where it does not."""
    official = task.official.get(datasets.describe_identity(chosen))
    if official is None:
        names = " or ".join(task.official)
        raise InputError(f"The official code of {task.title} trains on {names}; leave --official out for other data.")
    return official


def main(arguments: list[str]) -> int:
    """The command line, a method's name first; 0 done, 2 wrong input, 3 a fault of vlmad, 130 interrupted."""
    task = TASKS.get(arguments[0]) if arguments else None
    if task is None:
        print(f"python -m vlmad_lib train METHOD ...: METHOD is one of {', '.join(TASKS)}.", file=sys.stderr)
        return 2
    noun = task.kind.noun
    command = argparse.ArgumentParser(prog=task.kind.command, description=f"Train {noun} of {task.title}.")
    command.add_argument("profile", help="a profile in reports/, or the path of a YAML file; its test images are used")
    command.add_argument("--out", type=Path, required=True, help="the checkpoint to write, such as mine.pth")
    keys = ["epochs", "batch", "rate", "seed", *(["stitched"] if task.official else [])]
    for key in keys:
        value = getattr(task.plan, key)
        command.add_argument(f"--{key}", type=type(value), default=value, help=f"default {value}")
    if task.official:
        help_text = "as the official code trains on these data: epochs, and the share of stitched pictures"
        command.add_argument("--official", action="store_true", help=help_text)
    command.add_argument("--half", action="store_true", help="keep features as fp16: half the disk, nearly the same")
    command.add_argument("--method", default="", help="name of the method to train, where the profile has several")
    command.add_argument("-p", dest="pairs", action="append", default=[], metavar="KEY=VALUE", help="override a key")
    options = command.parse_args(arguments[1:])
    interrupted = "interrupted: the same command goes on after the last whole epoch"
    return commands.run_command(lambda: _train_and_show(task, options, keys), interrupted)


def _train_and_show(task: Task, options: argparse.Namespace, keys: list[str]) -> int:
    """Train what a command line asks for, by the options ``keys``, and print its losses; the exit code."""
    given = dict(config.parse_override(pair) for pair in options.pairs)
    loaded = config.load_profile(options.profile, given)
    values = {key: getattr(options, key) for key in keys} | {"exact": not options.half}
    if task.official and options.official:
        values |= _official(task, loaded)
    plan = config.check_record(Plan, values, "train")
    curve = train(task, loaded, options.out.resolve(), plan, options.method, progress=sys.stderr.isatty())
    print(f"{options.out}: {len(curve)} epochs, loss {curve[0]['total']:.3f} to {curve[-1]['total']:.3f}")
    return 0
