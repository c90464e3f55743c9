"""The oracles of AnomalyDINO and SubspaceAD beside this code, end to end: pictures, weights, tokens, scores and maps.

Their pictures and weights are drawn here by the rules that the oracles name, and their digests compared first.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from vlmad_lib.data import image_files
from vlmad_lib.data.image_files import Rotation
from vlmad_lib.encoders import backbones, image_towers
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import anomalydino, subspacead

Row = tuple[str, float, float]  # a quantity, its largest difference, its tolerance


# ---------------------------------------------------------------- pictures and weights


def draw_part(seed: int = 0, defect: bool = False, height: int = 300, width: int = 400) -> np.ndarray:
    """(height, width, 3) uint8: a striped ellipse on a plain ground, with a bright scar where asked."""
    stream = np.random.default_rng([seed, 780])
    y, x = np.mgrid[:height, :width].astype(np.int64)
    cy = height // 2 + int(stream.integers(-height // 20, height // 20 + 1))
    cx = width // 2 + int(stream.integers(-width // 20, width // 20 + 1))
    half_y, half_x = height * 38 // 100, width * 36 // 100
    inside = ((x - cx) * half_y) ** 2 + ((y - cy) * half_x) ** 2 < (half_y * half_x) ** 2
    bands = []
    for ground, body, period in ((38, 150, 23), (46, 120, 31), (52, 90, 41)):
        stripes = _wave(3 * (x - cx) + 5 * (y - cy), period) * 40 // period
        bands.append(np.where(inside, body + stripes, ground + x * 12 // width))
    pixels = np.stack(bands, -1) + stream.integers(-9, 10, (height, width, 3))
    if defect:
        dy, dx = y - (cy - height // 8), x - (cx + width // 10)
        pixels[(np.abs(dy - dx // 3) < height // 40 + 1) & (np.abs(dx) < width // 12)] += (70, 90, 110)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def draw_cloth(seed: int = 0, height: int = 300, width: int = 400) -> np.ndarray:
    """(height, width, 3) uint8: a texture over the whole picture."""
    stream = np.random.default_rng([seed, 781])
    y, x = np.mgrid[:height, :width].astype(np.int64)
    periods = ((17, 29), (19, 37), (13, 43))
    bands = [70 + 3 * _wave(2 * x + y, first) + _wave(x - 3 * y, second) for first, second in periods]
    pixels = np.stack(bands, -1) + stream.integers(-12, 13, (height, width, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _wave(values: np.ndarray, period: int) -> np.ndarray:
    return np.abs(values % (2 * period) - period)


def draw_picture(facts: dict) -> Image.Image:
    """A picture of an oracle; AssertionError where its bytes are not the oracle's."""
    pixels = {"rand_part": draw_part, "rand_plain": draw_cloth}[facts["function"]](**facts["arguments"])
    assert digest(pixels) == facts["digest"], "the picture was drawn otherwise"
    return Image.fromarray(pixels)


def digest(array: np.ndarray) -> str:
    """16 hexadecimal digits of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def draw_weight(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The oracles' draw of one of timm's tensors, by name and shape alone."""
    parent, leaf = ["", *name.split(".")][-2:]
    fan_in, mean = float(np.prod(shape[1:])) if len(shape) > 1 else 1.0, 0.0
    if name == "norm.weight":
        mean, deviation = 3.0, 0.4
    elif leaf.startswith("gamma"):
        mean, deviation = 0.8, 0.2
    elif parent.startswith("norm"):
        mean, deviation = float(leaf == "weight"), 0.1
    elif leaf in ("cls_token", "reg_token", "pos_embed"):
        deviation = 0.2 if leaf == "pos_embed" else 0.5
    elif leaf.endswith("bias"):
        deviation = 0.1 if parent == "qkv" or leaf in ("q_bias", "v_bias") else 0.05
    else:
        deviation = (0.5 if parent in ("proj", "fc2") and "blocks" in name else 1.0) * fan_in**-0.5
    return backbones.draw_named(seed, name, shape, mean, deviation)


def draw_backbone(architecture: str, overrides: dict, seed: int) -> backbones.Backbone:
    """The seeded timm model of an oracle, with the mean and deviation of ImageNet."""
    visual = image_towers.build_timm(f"timm/{architecture}", **overrides)
    shapes = {name: tuple(value.shape) for name, value in visual.trunk.state_dict().items()}
    visual.trunk.load_state_dict({name: draw_weight(name, shape, seed) for name, shape in shapes.items()})
    visual.image_mean, visual.image_std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    model = backbones.ImageModel(visual.eval().requires_grad_(False))
    return backbones.Backbone(f"timm/{architecture}", f"random:{seed}", model, "")


# ---------------------------------------------------------------- AnomalyDINO


class DinoOracle:
    """What the oracle of AnomalyDINO computed, and the same by this code."""

    def __init__(self, oracle: dict):
        self.oracle = oracle
        architecture, overrides = oracle["weights"]["timm"]
        self.backbone = draw_backbone(architecture, overrides, oracle["weights"]["seed"])
        self.encoded: dict[tuple, torch.Tensor] = {}

    def tokens(self, kind: str, name: str, side: int = 448, angle: float = 0) -> tuple[torch.Tensor, tuple[int, int]]:
        """(P, width) tokens of a picture, short edge ``side``, the right and lower rim cut; rows and columns."""
        key = kind, name, side, angle
        if key not in self.encoded:
            self.encoded[key] = self._encode(kind, name, side, angle)
        return self.encoded[key]

    def _encode(self, kind: str, name: str, side: int, angle: float) -> tuple[torch.Tensor, tuple[int, int]]:
        image = draw_picture(self.oracle["pictures"][kind][name])
        image = Rotation(angle, "mirror").turn(image) if angle else image
        short = min(image.size)
        resized = image.resize(tuple(side if edge == short else int(side * edge / short) for edge in image.size), 3)
        rows, columns = resized.height // 14, resized.width // 14
        pixels = self.backbone.normalise(np.array(resized)[None, : 14 * rows, : 14 * columns])
        return anomalydino.encode(self.backbone, pixels, ["patches"])["patches"][0], (rows, columns)

    def compare(self) -> Iterator[Row]:
        """Each quantity of the oracle with its largest difference and its tolerance."""
        yield from self.compare_rotations()
        yield from self.compare_masks()
        yield from compare_top_percents(self.oracle)
        for number in range(len(self.oracle["runs"])):
            yield from self.compare_run(number)
        for number in (0, 1, 2):  # without and with masks and rotations
            yield from self.compare_run(number, kept=True)

    def compare_rotations(self) -> Iterator[Row]:
        """Rotated copies: the same bytes at right angles, elsewhere single grey levels may differ."""
        picture = draw_picture(self.oracle["pictures"]["part"]["train/good/000"])
        for angle, expected in self.oracle["rotation"]["angles"].items():
            turned = np.asarray(Rotation(float(angle), "mirror").turn(picture))
            if int(angle) % 90 == 0:
                yield f"rotation by {angle}, bytes", float(digest(turned) != expected["digest"]), 0.0
            yield f"rotation by {angle}, means", _apart(turned.mean((0, 1)), np.array(expected["means"])), 1e-4

    def compare_masks(self) -> Iterator[Row]:
        """The first component and the mask: the ordinary way, and on its other side."""
        for kind in ("part", "cloth"):
            expected = self.oracle["mask"][kind]
            tokens, grid = self.tokens(kind, expected["picture"].removeprefix(f"{kind} "))
            kept = anomalydino.find_foreground(tokens, *grid).unflatten(0, grid)
            drawn = ["".join(".#"[int(value)] for value in row) for row in kept]
            stored = np.array(expected["first_component"])
            steps = [-(-length // count) for length, count in zip(grid, stored.shape, strict=True)]
            component = anomalydino.first_component(tokens).unflatten(0, grid)[:: steps[0], :: steps[1]]
            yield f"first component, {kind}", _apart(component, stored), self.oracle["tolerances"]["first component"]
            yield f"mask, {kind}", float(drawn != expected["mask"]), 0.0

    def compare_run(self, number: int, kept: bool = False) -> Iterator[Row]:
        """Scores, distances and maps of one run of the official code, with tokens rounded as fp16 where ``kept``."""
        run = self.oracle["runs"][number]
        kind, side, shots = run["object"], run["resolution"], run.get("shots", 1)
        settings = anomalydino.ANOMALYDINO.settings(
            overrides={
                "masking": run["masking"],
                "mask_references": run.get("mask_ref", False),
                "nearest_patches": run.get("k", 1),
                "distance": run.get("metric", "cosine"),
                "rotation": run["rotation"],
            }
        )

        def read(name: str, angle: float = 0) -> tuple[torch.Tensor, tuple[int, int]]:
            tokens, grid = self.tokens(kind, name, side, angle)
            return tokens.half().float() if kept else tokens, grid

        angles = [0, *(rotation.angle for rotation in anomalydino.ANOMALYDINO.reference_rotations(settings).values())]
        first = run.get("seed", 0) * shots
        memories = []
        for reference in range(first, first + shots):
            parts = []
            for angle in angles:
                tokens, grid = read(f"train/good/{reference:03}", angle)
                parts.append(tokens[anomalydino.find_foreground(tokens, *grid)] if settings.mask_references else tokens)
            memories.append(anomalydino.as_compared(torch.cat(parts), settings))
        for name, expected in run["images"].items():
            tokens, grid = read(f"test/{name}")
            distances = anomalydino.measure_distances(tokens, memories, settings)[0]
            if run["masking"]:
                distances = distances * anomalydino.find_foreground(tokens, *grid)
            field, stored = distances.unflatten(0, grid), expected["map"]
            large = metrics.upsample(field.numpy(), *reversed(stored["shape"]))
            smooth = ndimage.gaussian_filter(large, 4)[np.ix_(stored["rows"], stored["columns"])]
            step = 6 if "distances_are" in expected else 1
            pairs = {
                "scores": (anomalydino.average_top_percent(distances), expected["score"]),
                "distances": (field[::step, ::step], np.array(expected["distances"])),
                "maps": (smooth, np.array(stored["values"])),
            }
            for quantity, pair in pairs.items():
                title = f"run {number}{', kept as fp16' if kept else ''}, {name}, {quantity}"
                yield title, _apart(*pair), self._bound(run, quantity, kept)

    def _bound(self, run: dict, quantity: str, kept: bool) -> float:
        """The oracle's tolerance of a quantity of a run."""
        bounds = self.oracle["tolerances"]
        if run.get("metric") == "L2":
            return bounds["metric L2"]
        bound = bounds[f"{quantity} where rotation is true" if run["rotation"] else quantity]
        return max(bound, bounds["if features are kept in fp16"][quantity]) if kept else bound


def compare_top_percents(oracle: dict) -> Iterator[Row]:
    """The image score of drawn distances, of few and of many."""
    for case in oracle["top_percent"]:
        values = torch.from_numpy(np.random.default_rng([case["n"], 782]).random(case["n"]))
        found = anomalydino.average_top_percent(values)
        yield f"top percent of {case['n']}", _apart(found, case["mean"]), 1e-8  # the file has nine digits


# ---------------------------------------------------------------- SubspaceAD


def compare_subspacead(oracle: dict) -> Iterator[Row]:
    """Each quantity of the oracle of SubspaceAD with its largest difference and its tolerance, relative as there."""
    architecture, overrides = oracle["weights"]["timm"]
    backbone = draw_backbone(architecture, overrides, oracle["weights"]["seed"])
    side = oracle["settings"]["image_res"]
    bounds = oracle["tolerances"]["pil, pil_rotated, pil_rotated_once"]
    rounded = oracle["tolerances"]["if features are kept in fp16"]

    def encode(name: str, rotation: Rotation | None = None) -> torch.Tensor:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture.png"
            draw_picture(oracle["pictures"][name]).save(path)
            pixels = backbone.normalise(image_files.views(path, "squash", side, rotation))
        return subspacead.encode(backbone, pixels, ["middle"])["middle"]

    references = {name: encode(name) for name in ("train/good/001", "train/good/000")}
    tests = {name: encode(f"test/{name}") for name in ("bad/000", "good/000")}
    for name, expected in oracle["pil"]["tokens"].items():
        tokens = references[name] if name in references else tests[name.removeprefix("test/")]
        found = tokens[0, expected["at"], :6]
        yield f"tokens, {name}", _apart(found, np.array(expected["first_six"])), bounds["tokens"]
    angles = oracle["rotated"]["angles_covariance_pass"]
    turned = [encode("train/good/001", Rotation(angle, "black"))[0] for angle in angles]
    both = [tokens[0] for tokens in references.values()]
    sets = {"pil": both, "pil_rotated_once": [both[0], *turned]}
    for kind, pictures in sets.items():
        expected = oracle[kind]
        subspace = subspacead.find_subspace(pictures, 0.99)
        wanted = np.array(expected["pca"]["eigenvalues"])
        yield f"{kind}, k", float(abs(subspace.held.sum() - expected["pca"]["k"])), 0.0
        yield f"{kind}, mean", _apart(subspace.mean, np.array(expected["pca"]["mean"])), bounds["mean"]
        yield f"{kind}, eigenvalues", _apart(subspace.variances, wanted) / wanted.max(), bounds["eigenvalues"]
        yield from _compare_scores(kind, expected, tests, pictures, bounds)
    kept = {name: tokens.half().float() for name, tokens in tests.items()}
    fp16 = [tokens.half().float() for tokens in both]
    yield from _compare_scores("pil, kept as fp16", oracle["pil"], kept, fp16, rounded | {"maps": rounded["distances"]})
    for share, expected in oracle["other_shares"].items():
        if not share.startswith("_"):
            held = subspacead.find_subspace(both, float(share)).held
            yield f"share {share}, k", float(abs(held.sum() - expected["k"])), 0.0


def _compare_scores(title: str, expected: dict, tests: dict, pictures: list, bounds: dict) -> Iterator[Row]:
    side = expected["images"]["bad/000"]["map"]["shape"][0]
    settings = subspacead.SUBSPACEAD.settings(overrides={"image_size": side, "rotations": 0})
    memory = subspacead.remember({"middle": torch.stack(pictures)}, settings, 16)
    for name, image in expected["images"].items():
        score, maps = subspacead.score({"middle": tests[name]}, None, settings, 16, memory)
        distances, stored = np.array(image["distances"]), image["map"]
        large = subspacead.enlarge(maps, side)[0][np.ix_(stored["rows"], stored["columns"])]
        yield f"{title}, {name}, score", _apart(score, image["score"]) / image["score"], bounds["scores"]
        yield f"{title}, {name}, distances", _apart(maps[0], distances) / distances.max(), bounds["distances"]
        yield f"{title}, {name}, map", _apart(large, np.array(stored["values"])) / stored["max"], bounds["maps"]


def _apart(found: torch.Tensor | np.ndarray, expected: np.ndarray | float) -> float:
    """The largest absolute difference of two arrays of one shape."""
    found = np.asarray(found, np.float64)
    if found.squeeze().shape != np.squeeze(expected).shape:
        return float("inf")
    return float(np.abs(found.squeeze() - np.squeeze(expected)).max())
