"""Compare this code with oracle files: ``python tests/parity.py FILE...`` exits 1 beyond a tolerance.

An oracle file holds for each quantity its shape, sum, deviation, extremes, first and last values, as another
implementation computed them on seeded random weights. WinCLIP's name a model config, a seed, an image and a class
name; AnomalyCLIP's and APRIL-GAN's have in ``args`` the config (small or full) and the seed, where they are not small
and 0; MuSc's has drawn features, whole runs from pictures and metrics. Runs keep features as fp16: quantities marked so
are computed from features that went through a ``Store``.
Those of AnomalyDINO and SubspaceAD hold pictures and values themselves (module ``dino_oracles``).
"""

from __future__ import annotations

import json
import sys
import tempfile
import zlib
from functools import lru_cache
from pathlib import Path

import dino_oracles
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from vlmad_lib.data import image_files
from vlmad_lib.encoders import backbones, feature_store, image_towers, prompts
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import anomalyclip, aprilgan, musc, objectives, winclip
from vlmad_lib.methods.objectives import prompt_loss as loss

EMBEDDING, SCORE, METRIC = 2e-5, 2e-6, 1e-9
KEPT = ", kept as fp16"
"""What the name of a quantity ends with that was computed from kept features, as every run computes it."""
HALF = {"winclip": 1e-4, "anomalyclip": 5e-4, "aprilgan": 5e-4}
"""Tolerances of scores and maps from kept features: fp16 rounds each number of a feature by up to 0.05 %, and a low
temperature enlarges what that does to a cosine."""


@lru_cache(maxsize=8)
def image(seed: int, height: int = 700, width: int = 900) -> np.ndarray:
    """The oracles' seeded picture: (height, width, 3) uint8 with low and high frequencies."""
    stream = np.random.default_rng([seed, 777])
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = np.zeros((height, width, 3))
    for channel in range(3):
        for _ in range(6):
            across, down, phase = stream.uniform(0, 0.03), stream.uniform(0, 0.03), stream.uniform(0, 6.28)
            waves[..., channel] += np.sin(across * columns + down * rows + phase)
    return np.clip(np.rint(128 + 15 * waves + stream.normal(0, 12, waves.shape)), 0, 255).astype(np.uint8)


def model_config(short: dict) -> dict:
    """An open_clip config of an oracle's short one; heads are 64 wide as in every CLIP."""
    return {
        "embed_dim": short["embed"],
        "vision_cfg": {
            "image_size": short["res"],
            "layers": short["v_layers"],
            "width": short["v_width"],
            "head_width": 64,
            "patch_size": short["patch"],
        },
        "text_cfg": {
            "context_length": short["ctx"],
            "vocab_size": short["vocab"],
            "width": short["t_width"],
            "heads": short["t_width"] // 64,
            "layers": short["t_layers"],
        },
        "quick_gelu": short.get("quick_gelu", False),
    }


def backbone(short: dict, seed: int) -> backbones.Backbone:
    """Seeded random weights in the shape of an oracle's config."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(model_config(short)))
        return backbones.load_backbone(str(path), f"random:{seed}")


def view(net: backbones.Backbone, seed: int, side: int = 0) -> torch.Tensor:
    """The seeded picture as the model's input, squashed, through the same code as a real image."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.png"
        Image.fromarray(image(seed)).save(path)
        return net.normalise(image_files.views(path, "squash", side or net.image_size))


def through_store(
    module, chosen, net: backbones.Backbone, seeds: list[int], names: list[str]
) -> dict[str, torch.Tensor]:
    """The features of seeded pictures as a run reads them: encoded, kept on disk as fp16, read back."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{seed}.png") for seed in seeds]
        for seed, path in zip(seeds, paths, strict=True):
            Image.fromarray(image(seed)).save(path)
        place = module.image_side(chosen, net), "squash", "rgb"
        store = feature_store.Store(Path(folder) / "cache", net, module.encode, module.encoder_version, *place)
        store.fill(paths, names)
        return store.load(paths, names)[0]


def winclip_quantities(oracle: dict) -> dict[str, tuple[torch.Tensor, float]]:
    """Everything a WinCLIP oracle names, computed by this code, with its tolerance."""
    net = backbone(oracle["config"], oracle["seed"])
    chosen = winclip.settings("accurate", {"patch_tokens": "last_ln_post"})
    names = winclip.arrays(chosen, shots=2)
    test = winclip.encode(net, view(net, oracle["image_seed"]), names)
    shots = [winclip.encode(net, view(net, oracle["image_seed"] + shot), names) for shot in (1, 2)]
    memory = {name: torch.cat([one[name] for one in shots]) for name in names}
    text = prompts.prototypes(
        net, *prompts.ensemble(oracle["class_name"], chosen.states, chosen.templates), chosen.normalise_prompts
    )
    zero_score, zero_map = winclip.score(test, text, chosen, net.grid)
    few_score, few_map = winclip.score(test, text, chosen, net.grid, memory)
    kept = through_store(winclip.WINCLIP, chosen, net, [oracle["image_seed"] + shot for shot in range(3)], names)
    kept_test, kept_memory = (
        {name: value[part] for name, value in kept.items()} for part in (slice(1), slice(1, None))
    )
    rough = {
        "zero_shot": winclip.score(kept_test, text, chosen, net.grid),
        "few_shot": winclip.score(kept_test, text, chosen, net.grid, kept_memory),
    }
    rounded = {
        f"{name}_{part}{KEPT}": (value, HALF["winclip"])
        for name, pair in rough.items()
        for part, value in zip(("score", "grid_map"), pair, strict=True)
    }
    return rounded | {
        "text_mean_unnormalised": (text, EMBEDDING),
        "class_embedding": (test["class"], EMBEDDING),
        "windows_k2": (test["window_2"], EMBEDDING),
        "windows_k3": (test["window_3"], EMBEDDING),
        "patch_tokens_ln_post": (test["patch_ln_post"], EMBEDDING),
        "zero_shot_score": (zero_score, SCORE),
        "zero_shot_grid_map": (zero_map, SCORE),
        "association_grid_map_2shot": (winclip.associate(test, memory, chosen, net.grid), SCORE),
        "few_shot_grid_map": (few_map, SCORE),
        "few_shot_score": (few_score, SCORE),
    }


SMALL = {"embed": 64, "res": 336, "v_layers": 24, "v_width": 128, "patch": 14, "ctx": 77, "vocab": 49408}
SMALL |= {"t_width": 128, "t_layers": 12, "quick_gelu": True}
CONFIGS = {"small": SMALL, "full": SMALL | {"embed": 768, "v_width": 1024, "t_width": 768}}
"""The shapes of the AnomalyCLIP oracles; ``full`` is ViT-L/14 at 336 px."""
LAYERS = (6, 12, 18, 24)


def arguments(oracle: dict) -> tuple[dict, int, dict[str, int]]:
    """Config, seed of the weights, and seeds a file names for single parts, from its ``args`` or its own keys."""
    said = oracle.get("args") or {}
    if isinstance(said, str):
        said = said.split()
    if isinstance(said, list):  # a command line: names and numbers
        words = [word.strip("-") for entry in said for word in str(entry).split("=")]
        named = {word: following for word, following in zip(words, words[1:], strict=False) if following.isdecimal()}
        said = {"config": next((word for word in words if word in CONFIGS), "small"), **named}
        said |= {"seed": next((word for word in words if word.isdecimal()), 0)} if "seed" not in said else {}
    said = {**{key: oracle[key] for key in ("config", "seed") if key in oracle}, **said}
    config = next((said[key] for key in ("config", "cfg", "size", "model", "shape") if key in said), "small")
    seed = int(said.get("seed", 0))
    parts = {key.removesuffix("_seed"): int(value) for key, value in said.items() if key.endswith("_seed")}
    return (CONFIGS[config] if isinstance(config, str) else config), seed, parts


def learner(net: backbones.Backbone, seed: int = 0) -> anomalyclip.PromptLearner:
    """Prompts drawn by name, as the oracles' were."""
    found = anomalyclip.PromptLearner(net)
    size = found.context.shape[-1]

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        stream = np.random.default_rng([seed, zlib.crc32(f"prompt.{name}".encode())])
        return torch.from_numpy(np.float32(0.1) * stream.standard_normal(shape, dtype=np.float32))

    with torch.no_grad():
        for row, sign in enumerate(("pos", "neg")):
            found.context[row] = draw(f"ctx_{sign}", (12, size))
        for i, deep in enumerate(found.deep):
            deep.copy_(draw(f"compound_prompts_text.{i}", (4, size)))
    return found


def mask(seed: int = 0, size: int = 518, count: int = 2) -> torch.Tensor:
    """The oracles' masks (count, size, size): the first empty, the others two rectangles."""
    stream = np.random.default_rng([seed, 778])
    found = np.zeros((count, size, size), np.float32)
    for i in range(1, count):
        for _ in range(2):
            y, x = stream.integers(0, size - 120, 2)
            found[i, y : y + int(stream.integers(20, 120)), x : x + int(stream.integers(20, 120))] = 1
    return torch.from_numpy(found)


def metric_case(seed: int, n: int = 8, size: int = 96) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, image scores, masks and maps of the oracles' metrics."""
    stream = np.random.default_rng([seed, 779])
    masks, maps = np.zeros((n, size, size), bool), np.zeros((n, size, size), np.float32)
    labels = np.arange(n) % 2
    for i in range(n):
        maps[i] = stream.normal(0.3, 0.08, (size, size))
        if labels[i]:
            for _ in range(2):
                y, x = stream.integers(0, size - 30, 2)
                a, b = stream.integers(6, 30, 2)
                masks[i, y : y + a, x : x + b] = True
                maps[i, y + 2 : y + a + 2, x + 2 : x + b + 2] += stream.uniform(0.05, 0.3)
    return labels, (0.4 + 0.2 * labels + stream.normal(0, 0.15, n)).astype(np.float32), masks, maps


def official_map(grid_map: torch.Tensor, side: int = 518) -> torch.Tensor:
    """(1, grid, grid) -> (1, side, side) by the code every run measures and draws with."""
    sigma = anomalyclip.settings().sigma
    return torch.from_numpy(metrics.framed_map(grid_map.numpy(), side, side, "squash", side, sigma))[None]


def anomalyclip_quantities(oracle: dict) -> dict[str, tuple[torch.Tensor, float]]:
    """Everything an AnomalyCLIP oracle names, computed by this code, with its tolerance."""
    config, seed, parts = arguments(oracle)
    net, candidates = backbone(config, seed), [seed, 0] if seed else [0]
    chosen = anomalyclip.settings("paper", {"layers": list(LAYERS)})
    grid = anomalyclip.side(chosen, net) // config["patch"]

    def drawn(part: str, quantity: str, compute):
        """The draw of the seed named for a part, else of the weights' seed, or of 0 where only that one fits."""
        seeds = [parts[part]] if part in parts else candidates
        found = [compute(one) for one in seeds]
        if len(found) == 1 or quantity not in oracle:
            return found[0]
        return min(found, key=lambda one: difference(one[1], oracle[quantity]))

    picture, row = drawn("image", "image_tensor_row", lambda one: _pixels(net, one))
    own, raw = drawn("prompt", "text_features_raw", lambda one: _text(net, one))
    batch = torch.cat([picture, picture.flip(-1)])  # normal, and its mirror image as anomalous
    features = anomalyclip.encode(net, batch, anomalyclip.arrays(chosen))
    first = {name: value[:1] for name, value in features.items()}
    found = {
        "image_tensor_row": (row, SCORE),
        "pos_embed_interp": (image_towers.resize_positions(net.visual, (grid, grid))[[0, 1, 2, 700, -1]], SCORE),
        "tokens": (own.tokens, 0.0),
        "text_features_raw": (raw, 1e-5),
        "text_features": (torch.nn.functional.normalize(raw, dim=-1)[None], 1e-6),
        "global_raw": (first["class"], EMBEDDING),
        "global": (torch.nn.functional.normalize(first["class"], dim=-1), SCORE),
    }
    for layer in LAYERS:
        one = anomalyclip.settings("paper", {"layers": [layer]})
        alone = anomalyclip.score(first, raw, one, grid)
        found[f"patchprob_L{layer}"] = (alone[1].flatten(1), SCORE)
        found[f"patch_L{layer}_raw"] = (first[f"vv_{layer}"][0, -1, -4:], EMBEDDING)
    score, total = anomalyclip.score(first, raw, chosen, grid)
    found |= {"image_score": (score, SCORE), "map_last": (official_map(alone[1]), SCORE)}
    found["map_sum"] = (official_map(total), 4 * SCORE)
    kept = through_store(anomalyclip.ANOMALYCLIP, chosen, net, [parts.get("image", seed)], anomalyclip.arrays(chosen))
    score, total = anomalyclip.score(kept, raw, chosen, grid)
    found |= {
        f"image_score{KEPT}": (score, HALF["anomalyclip"]),
        f"map_sum{KEPT}": (official_map(total), 4 * HALF["anomalyclip"]),
    }
    last = {"class": features["class"], "vv_24": features["vv_24"]}
    labels = torch.tensor([0, 1])

    def terms(one: int) -> tuple:
        found = loss(last, own(net), labels, mask(one))
        return found, found.total.detach()

    optimiser = torch.optim.Adam(own.parameters(), 1e-3, (0.5, 0.999))
    step, _ = drawn("mask", "loss_total", terms)
    step.total.backward()
    named = {"ce": step.cross_entropy, "focal": step.focal, "dice_abn": step.dice_anomalous}
    named |= {"dice_norm": step.dice_normal, "total": step.total}
    found |= {f"loss_{name}": (value.detach(), 1e-5) for name, value in named.items()}
    for kind, tolerance in (("grad", 1e-4), ("after_step", 1e-5)):
        if kind == "after_step":
            optimiser.step()
        value = (lambda one: one.grad) if kind == "grad" else (lambda one: one.detach())
        for row, sign in enumerate(("pos", "neg")):
            found[f"{kind}.ctx_{sign}"] = (value(own.context)[row][None, None], tolerance)
        for i, deep in enumerate(own.deep):
            found[f"{kind}.compound_prompts_text.{i}"] = (value(deep), 2e-3 if kind == "grad" else tolerance)
    return found | drawn("metric", "metric.pixel-auroc", _metrics)[0]


def projections(net: backbones.Backbone, seed: int = 0) -> aprilgan.Projections:
    """Projections drawn by name, as the oracles' were."""
    width, joint = aprilgan.widths(net)
    found = aprilgan.Projections(len(LAYERS), width, joint)
    with torch.no_grad():
        for name, value in found.named_parameters():
            stream = np.random.default_rng([seed, zlib.crc32(f"aprilgan.{name}".encode())])
            drawn = stream.standard_normal(tuple(value.shape), dtype=np.float32)
            value.copy_(torch.from_numpy(drawn * np.float32(width**-0.5 if value.ndim == 2 else 0.1)))
    return found


def aprilgan_quantities(oracle: dict) -> dict[str, tuple[torch.Tensor, float]]:
    """Everything an APRIL-GAN oracle names, computed by this code, with its tolerance."""
    config, seed, parts = arguments(oracle)
    net = backbone(config | {"quick_gelu": oracle["quick_gelu"]}, seed)
    chosen = aprilgan.settings("paper", {"layers": list(LAYERS), "image_size": 518})
    grid, names = 518 // config["patch"], aprilgan.arrays(chosen)
    first = parts.get("image", seed)
    picture, row = _pixels(net, first)
    own = projections(net, seed)
    text = prompts.prototypes(net, *prompts.ensemble(oracle["class_name"], chosen.states, chosen.templates))
    unit = torch.nn.functional.normalize(text, dim=-1)
    pictures = [picture, *(_pixels(net, first + shot)[0] for shot in (1, 2))]
    exact = {name: [] for name in names}
    for one in pictures:
        for name, value in aprilgan.encode(net, one, names).items():
            exact[name].append(value)
    exact = {name: torch.cat(values) for name, values in exact.items()}
    position = image_towers.resize_positions(net.visual, (grid, grid), "bicubic")[[0, 1, 2, 700, -1]]
    found = {
        "image_tensor_row": (row, 1e-5),
        "pos_embed_interp": (position, 1e-5),
        "text_features": (unit, 1e-5),
        "image_features_raw": (exact["image"][:1], EMBEDDING),
    }
    for number, layer in enumerate(LAYERS):
        tokens = exact[f"raw_{layer}"]
        projected = own.fc[number](tokens[:1]).detach()
        found |= {f"raw_L{layer}": (tokens[:1], EMBEDDING), f"projected_L{layer}": (projected, EMBEDDING)}
        found[f"patchprob_L{layer}"] = (winclip.probability(projected, text, chosen.temperature), 1e-5)
        found[f"distance_L{layer}"] = (2 * winclip.distance(tokens[:1], F.normalize(tokens[1:], dim=-1)), 1e-5)
    found |= _aprilgan_scores(exact, text, own, chosen, grid, 1e-5)
    kept = through_store(aprilgan.APRILGAN, chosen, net, [first, first + 1, first + 2], names)
    rough = _aprilgan_scores(kept, text, own, chosen, grid, HALF["aprilgan"])
    found |= {f"{name}{KEPT}": pair for name, pair in rough.items() if not name.startswith("map_L")}
    return found | _aprilgan_step(net, picture, own, text, chosen, parts.get("mask", seed))


def _aprilgan_scores(
    kept: dict[str, torch.Tensor], text: torch.Tensor, own: aprilgan.Projections, chosen, grid: int, tolerance: float
) -> dict[str, tuple[torch.Tensor, float]]:
    """Scores, and maps at 518 px by the code every run measures and draws with; the first picture is the one tested."""
    test, memory = ({name: value[part] for name, value in kept.items()} for part in (slice(1), slice(1, None)))
    with torch.no_grad():
        zero_score, zero = aprilgan.score(test, text, chosen, grid, learned=own)
        few_score, few = aprilgan.score(test, text, chosen, grid, memory, learned=own)

    def framed(stack: torch.Tensor) -> torch.Tensor:
        found = metrics.framed_map(stack.numpy(), 518, 518, "squash", 518, chosen.sigma)
        return torch.from_numpy(found)[None]

    alone = {f"map_L{layer}": torch.stack([zero[:, at], zero[:, -1]], 1) for at, layer in enumerate(LAYERS)}
    stacks = alone | {"zero_map": zero, "association_map": few[:, -1:], "few_map": few}
    found = {name: (framed(stack), tolerance) for name, stack in stacks.items()}
    return found | {"zero_score": (zero_score, tolerance), "few_max": (few_score[:, 1], tolerance)}


def _aprilgan_step(
    net: backbones.Backbone, picture: torch.Tensor, own: aprilgan.Projections, text: torch.Tensor, chosen, seed: int
) -> dict[str, tuple[torch.Tensor, float]]:
    """Losses, gradients and one step of Adam on the picture, as normal, and its mirror image, as anomalous."""
    batch = aprilgan.encode(net, torch.cat([picture, picture.flip(-1)]), aprilgan.layers(chosen))
    optimiser = torch.optim.Adam(own.parameters(), 1e-3, (0.5, 0.999))
    projected = [one(batch[name]) for one, name in zip(own.fc, aprilgan.layers(chosen), strict=True)]
    terms = objectives.projection_loss(projected, text.expand(2, -1, -1), mask(seed))
    terms["total"].backward()
    found = {f"loss_{name}": (value.detach(), 1e-5) for name, value in terms.items()}
    found |= {f"grad.{name}": (value.grad.clone(), 1e-5) for name, value in own.named_parameters()}
    optimiser.step()
    return found | {f"after_step.{name}": (value.detach(), 1e-5) for name, value in own.named_parameters()}


MUSC_PARTS = ("tiny_168", "tiny_112_native", "small_518")


def musc_oracle(oracle: dict) -> dict:
    """A MuSc oracle, whose quantities stand in parts, as one level: ``part quantity``."""
    flat = {}
    for part in ("functions", "metrics", *MUSC_PARTS):
        for name, facts in oracle.get(part, {}).items():
            if part == "metrics" or name == "two_subsets":
                flat |= {f"{part} {name} {inner}": value for inner, value in facts.items()}
            else:
                flat[f"{part} {name}"] = facts
            for inner in ("image1",) if isinstance(facts, dict) else ():
                flat |= {f"{part} {name} {inner}": facts[inner]} if inner in facts else {}
    for name, value in flat.items():
        if isinstance(value, list) and name.endswith("neighbours_9"):
            rows = np.array(value, float)
            flat[name] = {"shape": list(rows.shape), "first": value[0], "last": value[-1], "sum": rows.sum(),
                          "std": rows.std(), "values": rows.flatten().tolist()}  # fmt: skip
    return flat


def draw(seed: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers drawn by name that fp16 can hold, as the oracles' were."""
    stream = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return torch.from_numpy(stream.standard_normal(shape, dtype=np.float32)).half().float()


def musc_quantities(oracle: dict) -> dict[str, tuple[torch.Tensor, float]]:
    """Everything a MuSc oracle names, computed by this code, with the tolerance that the file has for it."""
    limits = oracle["tolerances"]
    found = _musc_functions(oracle["functions"], limits["functions"])
    with tempfile.TemporaryDirectory() as folder:
        paths = [_musc_picture(Path(folder) / f"{place}.png", facts) for place, facts in enumerate(oracle["images"])]
        for part in MUSC_PARTS:
            if part in oracle:
                run = _musc_run(oracle[part], limits, paths, Path(folder) / "cache")
                found |= {f"{part} {name}": value for name, value in run.items()}
    for seed in oracle["metrics"]:
        labels, scores, masks, maps = metric_case(int(seed))
        measured = metrics.image_metrics(labels, scores) | metrics.pixel_metrics(zip(maps, masks, strict=True))
        for name in oracle["metrics"][seed]:
            found[f"metrics {seed} {name}"] = torch.tensor(measured[name], dtype=torch.double), limits["metrics"]
    return found


def _musc_functions(facts: dict, limit: float) -> dict[str, tuple[torch.Tensor, float]]:
    """Neighbourhoods, mutual scores and rescoring of drawn features."""
    count, grid, channels = facts["images"], facts["grid"], facts["channels"]
    maps, found = [], {}
    for layer in range(facts["layers"]):
        base, noise = (
            draw(0, f"musc.{name}.{layer}", (number, grid**2 + 1, channels))
            for name, number in (("base", 1), ("noise", count))
        )
        tokens = (base + 0.3 * noise + 0.5)[:, 1:]
        for size in (1, 3, 5):
            units, name = musc.aggregate(tokens, grid, size), f"r{size}_layer{layer}"
            maps.append(musc.score_mutually(units, (0, 0.3)))
            found |= {f"unit_{name}_image0": units[0], f"scores_{name}": maps[-1]}
            found[f"scores_{name}_interval_0.1_0.5"] = musc.score_mutually(units, (0.1, 0.5))
    embeddings = 0.2 * draw(0, "musc.class", (count, 16)) + draw(0, "musc.class_base", (1, 16))
    mean = torch.stack(maps).mean(0)
    found |= {"grid_map": mean, "largest_cell": mean.amax(1)}
    for windows in ([1], [2], [3], [1, 2, 3], [8], [9], [1, 8, 9]):
        found[f"score_after_{'+'.join(map(str, windows))}"] = musc.rescore(mean.amax(1), embeddings, windows)
    return {f"functions {name}": (value, limit) for name, value in found.items()}


def _musc_picture(path: Path, facts: dict) -> str:
    """A picture of the oracle on disk: a seeded one, with a box of another, cropped."""
    pixels = image(facts["seed"]).copy()
    if "paste" in facts:
        seed, top, left, height, width = facts["paste"]
        box = np.s_[top : top + height, left : left + width]
        pixels[box] = image(seed)[box]
    top, left, height, width = facts["crop"]
    Image.fromarray(pixels[top : top + height, left : left + width]).save(path)
    return str(path)


def _musc_run(part: dict, limits: dict, paths: list[str], cache: Path) -> dict[str, tuple[torch.Tensor, float]]:
    """A category from pictures to scores, exactly and from kept features."""
    net = backbone(part["config"] | {"quick_gelu": part["activation"] == "QuickGELU"}, part["seed"])
    side, blocks = part["size"], len(net.blocks)
    grid, names = side // net.patch_size, [*musc.LAYERS, "image"]
    pixels = [net.normalise(image_files.views(path, "squash", side)) for path in paths]
    encoded = [musc.encode(net, values, names) for values in pixels]
    exact = {name: torch.cat([arrays[name] for arrays in encoded]) for name in names}
    found = {
        "pixels_row": (pixels[0][0, :, side // 2], limits["pixels_row"]),
        "positions": (image_towers.resize_positions(net.visual, (grid, grid), "cubic"), limits["positions"]),
        "class_projected": (exact["image"], limits["class_projected"]),
    }
    for quarter, name in enumerate(musc.LAYERS, 1):
        block = f"block_{anomalyclip.quarter(blocks, quarter)}"
        found[f"tokens_{block}"] = exact[name], limits["tokens"]
        for size in (1, 3, 5):
            units = musc.aggregate(exact[name], grid, size)
            scores = musc.score_mutually(units, (0, 0.3))
            found[f"unit_r{size}_{block}"] = units, limits["unit"]
            found[f"scores_r{size}_{block}"] = scores, limits["scores"]
            found[f"scores_r{size}_{block} image1"] = scores[1], limits["scores"]
    unit = F.normalize(exact["image"], dim=-1)
    order = (unit @ unit.T).sort(dim=1, descending=True, stable=True).indices[:, :9]
    found |= {"similarity": (unit @ unit.T, limits["similarity"]), "neighbours_9": (order, 0.0)}
    found |= _musc_scores(exact, grid, side, limits)
    store = feature_store.Store(cache, net, musc.encode, musc.ENCODER_VERSION, side, "squash", "rgb")
    store.fill(paths, names)
    kept = _musc_scores(store.load(paths, names)[0], grid, side, limits["_kept_as_fp16"])
    found |= {f"{name}{KEPT}": value for name, value in kept.items() if name != "map_upsampled"}
    members = [torch.tensor(places) for places in part["two_subsets"]["members"]]
    subsets = _musc_scores(exact, grid, side, limits, members)
    return found | {f"two_subsets {name}": value for name, value in subsets.items()}


def _musc_scores(
    features: dict[str, torch.Tensor], grid: int, side: int, limits: dict, members: list[torch.Tensor] | None = None
) -> dict[str, tuple[torch.Tensor, float]]:
    """Maps, and scores before and after rescoring; the whole by ``musc.score``, subsets as they are given."""
    chosen = musc.MUSC.settings("mutual_scoring")
    if members is None:
        before, stacks = musc.score(features, None, chosen, grid, side=side)
    else:
        stacks = musc.average_maps(features, chosen, grid, lambda _: members)[:, None]
        before = musc.largest_pixels(stacks, side)
    enlarged = torch.from_numpy(
        np.stack([metrics.framed_map(stack[None], side, side, "squash", side) for stack in stacks.numpy()])
    )
    found = {"grid_map": (stacks[:, 0], limits["grid_map"]), "score_before": (before, limits["score_before"])}
    found["map_upsampled"] = enlarged, limits.get("map_upsampled", 0.0)
    for windows in ([1, 2, 3], [1, 8, 9]):
        after = musc.rescore(before, features["image"], windows)
        found[f"score_after_{'+'.join(map(str, windows))}"] = after, limits["score_after"]
    return found


def _pixels(net: backbones.Backbone, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The picture as the model's input at 518 px, and the row of it that the oracles keep."""
    found = view(net, seed, 518)
    return found, found[0, :, 259]


def _text(net: backbones.Backbone, seed: int) -> tuple[anomalyclip.PromptLearner, torch.Tensor]:
    own = learner(net, seed)
    return own, own(net).detach()


def _metrics(seed: int) -> tuple[dict, torch.Tensor]:
    labels, scores, masks, maps = metric_case(seed)
    image, pixel = metrics.image_metrics(labels, scores), metrics.pixel_metrics(zip(maps, masks, strict=True))
    values = {"image-auroc": image["image_auroc"], "image-ap": image["image_ap"]}
    values |= {"pixel-auroc": pixel["pixel_auroc"], "pixel-aupro": pixel["aupro_200"]}
    found = {f"metric.{name}": (torch.tensor(value, dtype=torch.double), METRIC) for name, value in values.items()}
    return found, torch.tensor(pixel["pixel_auroc"], dtype=torch.double)


def difference(found: torch.Tensor, expected: dict | float) -> float:
    """The largest difference of the values an oracle keeps; the sum counts by element."""
    if isinstance(expected, float):
        return abs(float(found) - expected)
    if list(found.shape) != expected["shape"]:
        return float("inf")
    values = found.double().flatten().numpy()
    kept = len(expected["first"])
    pairs = [
        (values[:kept], expected["first"]),
        (values[-kept:], expected["last"]),
        (values.mean(), expected["sum"] / values.size),
        (values.std(), expected["std"]),
        (values.min(), expected.get("min", values.min())),
        (values.max(), expected.get("max", values.max())),
        (values, expected.get("values", values)),
    ]
    return max(float(np.abs(np.subtract(*pair)).max()) for pair in pairs)


def compare(path: str | Path) -> list[tuple[str, float, float]]:
    """(quantity, largest difference, tolerance) of one oracle file."""
    oracle = json.loads(Path(path).read_text(encoding="utf-8"))
    if "top_percent" in oracle:
        return list(dino_oracles.DinoOracle(oracle).compare())
    if "pil_rotated_once" in oracle:
        return list(dino_oracles.compare_subspacead(oracle))
    for name in [name for name in oracle if name.startswith("patch_L")]:  # with the class row, which nothing uses
        last = oracle[name]["last"]
        facts = {"shape": [len(last)], "first": last, "last": last, "sum": sum(last), "std": float(np.std(last))}
        oracle[name] = facts
    known = {"zero_shot_score": winclip_quantities, "map_last": anomalyclip_quantities}
    known |= {"projected_L6": aprilgan_quantities}
    known |= {"tiny_168": musc_quantities}
    quantities = next((known[key] for key in known if key in oracle), None)
    if quantities is None:
        raise SystemExit(f"{path} is no oracle this script knows; it needs one of the keys {', '.join(known)}.")
    computed = quantities(oracle)
    oracle = musc_oracle(oracle) if quantities is musc_quantities else oracle
    return [
        (name, difference(found, oracle[name.removesuffix(KEPT)]), tolerance)
        for name, (found, tolerance) in computed.items()
        if name.removesuffix(KEPT) in oracle
    ]


def main(paths: list[str]) -> int:
    if not paths:
        raise SystemExit(__doc__.splitlines()[0])
    failed = False
    for path in paths:
        print(path)
        for name, found, tolerance in compare(path):
            failed |= not found <= tolerance
            print(f"  {'ok  ' if found <= tolerance else 'FAIL'} {name:34} {found:.1e} (tolerance {tolerance:.0e})")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
