"""What the demo multiplies temperatures by, chosen on auxiliary categories that the backbone was not trained on.

``python -m vlmad_lib.demo.training.temperature`` writes the factor into the backbone's config, and what was measured
into its card. WinCLIP+ takes the plain mean of a map of words and a map of references, which is a mean
of both only where both vary alike. So the factor is the one at which, over normal pictures, the two vary most alike. No
label and no AUROC enters the choice, and no target category; AUROCs are measured to show what it does.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vlmad_lib import methods
from vlmad_lib.config import Method
from vlmad_lib.demo.data import CATEGORIES
from vlmad_lib.demo.training.card import HELD_OUT, card, sample, scale_file, words_to_references
from vlmad_lib.encoders import backbones, devices, prompts
from vlmad_lib.encoders.backbones import Backbone
from vlmad_lib.evaluation import metrics, pixel_ranking
from vlmad_lib.files import replace_file
from vlmad_lib.methods import winclip

FACTORS = (1, 2, 4, 7, 10, 15, 20, 30)
POOL, GOOD, BAD, SEED = 16, 32, 32, 7
"""Fresh scenes of a category: normal ones to draw references from, normal and defective ones tested; their seed."""
SHOTS, DRAWS = (1, 4), 3
MEASURES = ("image_auroc", "pixel_auroc", "aupro")
LEARNED = ("anomalyclip", "coop", "aprilgan")


def encode(net: Backbone, category: str, code, chosen) -> tuple[dict[str, Tensor], np.ndarray]:
    """A method's arrays of a category's fresh scenes, ``POOL`` normal ones first, and all masks."""
    images, masks = sample(category, SEED, POOL + GOOD, BAD)
    names = code.array_names(chosen, max(SHOTS))
    parts = [code.encode(net, net.normalise(images[i : i + 1]), names) for i in range(len(images))]
    return {name: torch.cat([part[name] for part in parts]) for name in names}, masks


def balance(kept: dict[str, tuple[dict[str, Tensor], np.ndarray]], text: dict[str, Tensor], grid: int) -> pd.DataFrame:
    """WinCLIP by factor and category: how the two maps vary over normal pictures, saturation, and AUROCs by shots.

    ``kept`` are its arrays and masks, ``text`` its prototypes, by category. ``words`` and ``references`` are standard
    deviations over all cells of the maps of normal test pictures, the second the mean over draws of four references;
    ``above_0.9`` is the share of zero-shot image scores. AUROCs are means over draws.
    """
    stream, rows = np.random.default_rng(SEED), []
    for category, (arrays, masks) in kept.items():
        memory, tested = _split(arrays)
        masks = masks[POOL:]
        labels, regions = masks.any((1, 2)), [pixel_ranking.find_regions(mask) for mask in masks]
        draws = [stream.permutation(POOL)[:shots] for shots in SHOTS for _ in range(DRAWS)]
        places = [torch.from_numpy(draw) for draw in draws]
        plain = winclip.settings()
        far = torch.stack([winclip.associate(one, memory, plain, grid, places) for one in _each(tested)])
        normal = torch.from_numpy(~labels)
        references = float(far[normal][:, [len(draw) == max(SHOTS) for draw in draws]].std((0, 2, 3)).mean())
        for factor in FACTORS:
            chosen = plain.model_copy(update={"temperature": plain.temperature * factor})
            whole, words = winclip.zero_shot(tested, text[category], chosen, grid)
            row = {"factor": factor, "category": category, "words": float(words[normal].std())}
            row |= {"references": references, "above_0.9": float((whole > 0.9).float().mean())}
            scored = [(0, whole, words)]
            for number, draw in enumerate(draws):  # as winclip.score does, whose distances are those of every factor
                near = far[:, number]
                scored.append((len(draw), (whole + near.amax((1, 2))) / 2, (words + near) / 2))
            for shots in (0, *SHOTS):
                found = pd.DataFrame([_measured(labels, regions, *one[1:]) for one in scored if one[0] == shots])
                row |= {f"{name}_{shots}": value for name, value in found.mean().items()}
            rows.append(row)
    return pd.DataFrame(rows)


def best(measured: pd.DataFrame) -> int:
    """The factor at which words vary most like references, by the geometric mean of their ratio over categories."""
    return int(np.log(words_to_references(measured)).abs().idxmin())


def effect(net: Backbone, factor: int) -> pd.DataFrame:
    """Every other method of the demo on the same scenes, at the published temperature and at ``factor`` times that.

    A row a method, factor, number of references (one draw) and category.
    """
    rows, demo = [], {"backbone": "demo", "weights": "demo"}
    specs = [Method(method=name, checkpoint="demo", settings={"image_size": 240}, **demo) for name in LEARNED]
    specs += [Method(method="clip", settings={"image_size": 240}, **demo)]
    for spec in specs:
        code = methods.METHODS[spec.method]
        plain = code.settings(spec.preset, spec.settings)
        file = code.checkpoint_kind.demo if spec.checkpoint else None
        more = code.load_learned(file, "", devices.CPU) if spec.checkpoint else {}
        for category in HELD_OUT:
            arrays, masks = encode(net, category, code, plain)
            memory, tested = _split(arrays)
            masks = masks[POOL:]
            labels, regions = masks.any((1, 2)), [pixel_ranking.find_regions(mask) for mask in masks]
            row = pd.Series({"category": category, "class_name": CATEGORIES[category].class_name})
            text = code.encode_text(net, code.prompt_wording(plain, row), file)
            for times in dict.fromkeys((1, factor)):
                chosen = plain.model_copy(update={"temperature": plain.temperature * times})
                for shots in (0, max(SHOTS)) if code.few_shot else (0,):
                    few = {name: value[:shots] for name, value in memory.items()} if shots else None
                    found = [code.score(one, text, chosen, net.grid, few, **more) for one in _each(tested)]
                    whole, maps = (torch.cat(side) for side in zip(*found, strict=True))
                    facts = {"method": spec.name, "shots": shots, "factor": times, "category": category}
                    measured = _measured(labels, regions, whole, maps, chosen.sigma)
                    rows.append(facts | {"above_0.9": float((whole > 0.9).float().mean())} | measured)
    return pd.DataFrame(rows)


def _split(arrays: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The references to draw from, and the pictures tested."""
    return tuple({name: value[part] for name, value in arrays.items()} for part in np.s_[:POOL, POOL:])


def _each(arrays: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    count = len(next(iter(arrays.values())))
    return [{name: value[i : i + 1] for name, value in arrays.items()} for i in range(count)]


def _measured(labels: np.ndarray, regions: list, whole: Tensor, maps: Tensor, sigma: float = 0.0) -> dict[str, float]:
    """``MEASURES`` of image scores (N,) and maps (N, grid, grid) against labels and masks of 240 pixels."""
    frames = (metrics.framed_map(one[None].numpy(), 240, 240, "squash", 240, sigma) for one in maps)
    found = metrics.pixel_metrics(zip(frames, regions, strict=True), coarse=False)
    found |= metrics.image_metrics(labels, whole.numpy())
    return {name: found[name] for name in MEASURES}


def main() -> None:
    """The command line: measure, choose, write the config, the tables and the card."""
    net, chosen = backbones.load_backbone("demo"), winclip.settings()
    kept = {category: encode(net, category, winclip, chosen) for category in HELD_OUT}
    words = {category: prompts.ensemble(CATEGORIES[category].class_name) for category in HELD_OUT}
    measured = balance(kept, {name: prompts.prototypes(net, *two) for name, two in words.items()}, net.grid)
    factor = best(measured)
    write(measured, effect(net, factor), factor)


def write(measured: pd.DataFrame, others: pd.DataFrame, factor: int) -> None:
    """Put a factor into the demo's config, what it was chosen by beside the weights, and that into their card."""
    weights = backbones.DEMO_WEIGHTS
    facts = {"weights": hashlib.sha256(weights.read_bytes()).hexdigest(), "factor": factor}
    facts |= {"pool": POOL, "good": GOOD, "bad": BAD, "draws": DRAWS}
    facts |= {"balance": measured.round(4).to_dict("list"), "effect": others.round(4).to_dict("list")}
    replace_file(scale_file(weights), lambda path: path.write_text(json.dumps(facts) + "\n", encoding="utf-8"))
    config = json.loads(backbones.DEMO_CONFIG.read_text(encoding="utf-8")) | {backbones.FACTOR: factor}
    lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in config.items())
    replace_file(backbones.DEMO_CONFIG, lambda path: path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8"))
    weights.with_suffix(".md").write_text(card(weights, hold_out=True), encoding="utf-8")


if __name__ == "__main__":
    main()
