"""What encoders return on a seeded backbone, beside the numbers kept in golden_features.json with their versions.

Kept features are found again by an encoder's version. So a change of what it returns must raise that version; then
``python tests/test_encoder_versions.py`` writes the new numbers.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TINY

from vlmad_lib.encoders import backbones
from vlmad_lib.methods import METHODS, anomalyclip, aprilgan, clip_baselines, prompt_learner

FILE = Path(__file__).with_name("golden_features.json")
ARRAYS = {  # of each method that has an encoder of its own
    "winclip": ["class", "window_2", "window_3", "patch", "patch_ln_post", "patch_penultimate"],
    "anomalyclip": ["class", "image", "vv_last", "qq_1", "kk_last", "diagonal_boost_last", "none_last", "raw_q1"],
    "aprilgan": ["image", "raw_q1", "raw_q4"],
    "musc": ["image", "raw_q1", "raw_q4"],
    "patchcore": ["class", "patch", "patch_ln_post", "patch_penultimate"],
    "anomalydino": ["patches"],
    "subspacead": ["middle", "blocks_1_2"],
    "autoencoder": ["pixels"],
}
# The others are on the tiny one.
NETWORKS = dict.fromkeys(("patchcore", "anomalydino", "subspacead"), {"name": "timm/test_vit", "weights": "random:0"})
NETWORKS["autoencoder"] = {"name": "pixels", "weights": "none"}
RESIZED = {"musc": {"image_size": 128}}  # of methods whose own size is the backbone's, where no position is resized
ROW = pd.Series({"category": "metal_nut", "class_name": "metal nut"})
TOLERANCE = 1e-4  # of the largest number of an array: another CPU rounds otherwise


def write_checkpoint(key: str, net: backbones.Backbone, path: Path) -> Path | None:
    """A checkpoint of seeded numbers for a method that learns something."""
    if key in ("anomalyclip", "hybrid"):
        prompt_learner.write(prompt_learner.PromptLearner(net), path, "visa")
    elif key == "coop":
        clip_baselines.write(clip_baselines.Context(net), path, "visa")
    elif key == "aprilgan":
        facts = {"fingerprint": net.fingerprint, "activation": net.activation}
        aprilgan.write(aprilgan.Projections(4, *aprilgan.widths(net)), path, "visa", **facts)
    else:
        return None
    return path


def sample(values: torch.Tensor) -> list[float]:
    """The largest size of an array's numbers, and eight numbers spread over it."""
    flat = values.detach().double().flatten()
    places = torch.linspace(0, len(flat) - 1, 8).round().long()
    return [flat.abs().max().item(), *flat[places].tolist()]


def compute(key: str, net: backbones.Backbone) -> dict:
    """Version, arrays and text features of a method's encoders on a seeded picture."""
    method, net = METHODS[key], backbones.load_backbone(**NETWORKS[key]) if key in NETWORKS else net
    settings = method.settings(overrides=RESIZED.get(key))
    side, numbers = method.image_side(settings, net), {}
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, side, side), dtype=np.float32))
    if key in ARRAYS:
        numbers = {name: sample(array) for name, array in method.encode(net, images, ARRAYS[key]).items()}
    wording = method.prompt_wording(settings, ROW)
    if wording:
        with tempfile.TemporaryDirectory() as folder:
            path = write_checkpoint(key, net, Path(folder) / "checkpoint.pth")
            numbers["text"] = sample(method.encode_text(net, wording, path))
    return {"version": method.encoder_version, "numbers": numbers}


def differing(now: dict, kept: dict) -> list[str]:
    """Names of the arrays whose numbers are others than those kept."""
    return [
        name
        for name in now["numbers"].keys() | kept["numbers"].keys()
        if not np.allclose(
            now["numbers"].get(name, np.nan), kept["numbers"].get(name, np.nan), 0, TOLERANCE * kept["numbers"][name][0]
        )
    ]


def check(key: str, net: backbones.Backbone) -> None:
    """AssertionError where a method's encoder returns other numbers than those kept for its version."""
    now, kept = compute(key, net), json.loads(FILE.read_text())[key]
    assert now["version"] == kept["version"], "run python tests/test_encoder_versions.py to keep the new numbers"
    names = differing(now, kept)
    assert not names, (
        f"{key} returns other numbers for {', '.join(names)}: raise its encoder_version, now {now['version']}, then "
        "run python tests/test_encoder_versions.py to keep the new numbers"
    )


@pytest.mark.parametrize("key", [key for key in METHODS if key in ARRAYS or METHODS[key].zero_shot])
def test_an_encoder_returns_what_its_version_promises(key, tiny_backbone):
    check(key, tiny_backbone)


def test_a_changed_encoder_is_noticed(tiny_backbone, monkeypatch):
    monkeypatch.setattr(anomalyclip, "BOOST", 10.1)
    with pytest.raises(AssertionError, match="diagonal_boost_last: raise its encoder_version"):
        check("anomalyclip", tiny_backbone)


def test_methods_that_share_an_encoder_share_its_version():
    owners = {METHODS[key].encode: METHODS[key].encoder_version for key in ARRAYS}
    shared = {key: method for key, method in METHODS.items() if method.encode in owners}
    assert set(METHODS) - set(shared) == {"hybrid"}  # it reads the stores of two others
    assert all(method.encoder_version == owners[method.encode] for method in shared.values())


def keep() -> None:
    """Write the numbers of all encoders; exits where some differ and their version was not raised."""
    net = backbones.load_backbone(TINY["backbone"], TINY["weights"])
    now = {key: compute(key, net) for key in METHODS if key in ARRAYS or METHODS[key].zero_shot}
    before = json.loads(FILE.read_text()) if FILE.is_file() else {}
    for key in now.keys() & before.keys():
        if now[key]["version"] == before[key]["version"] and differing(now[key], before[key]):
            sys.exit(f"{key} returns other numbers; raise its encoder_version first.")
    FILE.write_text(json.dumps(now, indent=1) + "\n")


if __name__ == "__main__":
    keep()
