"""What an accelerator computes against the CPU, the reference: run by ``make test-gpu`` on a machine that has one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.nn.functional as F

from vlmad_lib import config, methods
from vlmad_lib.config import Profile
from vlmad_lib.demo import data as demo_data
from vlmad_lib.encoders import devices
from vlmad_lib.methods import METHODS
from vlmad_lib.pipeline import run
from vlmad_lib.pipeline.results import Results

pytestmark = pytest.mark.gpu

LEARNED = ("anomalyclip", "aprilgan", "hybrid", "coop")
SCORES, COSINE, RANK = 1e-3, 1e-4, 0.999


@pytest.fixture(scope="module")
def device() -> str:
    name = devices.choose_device("auto").type
    if name == "cpu":
        pytest.skip("this machine has no accelerator")
    return name


def demo(folder: Path, device: str, precision: str = "fp32") -> Profile:
    """Two categories of the demo by all methods, without and with references, from a cache of their own."""
    usual = {"backbone": "demo", "weights": "demo", "precision": precision}
    learned = {kind: {"checkpoint": "demo"} if kind in LEARNED else {} for kind in METHODS}
    learned["musc"] = {"preset": "mutual_scoring"}  # which neighbours rescoring takes turns on the last digits
    # the numbers of a training part from those of another device with every step
    kinds = [kind for kind in METHODS if not METHODS[kind].keeps_networks]
    specs = [{"method": kind, "name": kind} | usual | learned[kind] for kind in kinds]
    values = {"categories": demo_data.names("target")[:2], "methods": specs, "device": device, "cache": str(folder)}
    return config.load_profile("demo", values | {"shots": [0, 2], "seeds": [0], "workers": 1})


@pytest.fixture(scope="module")
def reference(device, tmp_path_factory) -> Results:
    """The run on the CPU."""
    return run.run(demo(tmp_path_factory.mktemp("cpu"), "cpu"))


@pytest.fixture(scope="module")
def exact(device, tmp_path_factory) -> Results:
    """The same run on the device in fp32."""
    return run.run(demo(tmp_path_factory.mktemp("device"), device))


KEYS = ["method", "category", "image", "shots", "seed"]


def test_fp32_scores_and_maps_are_those_of_the_cpu(reference, exact):
    both = reference.scores.merge(exact.scores, on=KEYS, suffixes=("_cpu", ""))
    assert len(both) == len(reference.scores)
    spread = both.groupby("method").score_cpu.transform(lambda values: max(1, values.abs().max()))  # distances grow
    assert ((both.score - both.score_cpu).abs() / spread).max() < SCORES
    measured = reference.metrics.merge(exact.metrics, on=["method", "category", "shots", "seed"], suffixes=("_cpu", ""))
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        assert (measured[name] - measured[f"{name}_cpu"]).abs().max() < 5e-3


def test_fp32_features_are_those_of_the_cpu(reference, exact):
    images = list(dict.fromkeys(reference.scores.image))[:20]
    for spec in reference.profile.methods:
        pair = []
        for results in (reference, exact):
            chosen = methods.choose(spec, results.profile)
            store = chosen.store(results.cache, run._backbone(spec, results.profile))
            names = chosen.method.array_names(chosen.settings, 2 if chosen.method.few_shot else 0)
            pair.append(store.load(images, names)[0])
        for name, values in pair[0].items():
            assert (1 - F.cosine_similarity(values, pair[1][name], dim=-1)).max() < COSINE, (spec.name, name)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32"])
def test_lower_precision_keeps_the_order(device, exact, precision, tmp_path):
    if precision == "tf32" and device != "cuda":
        pytest.skip("tf32 is for NVIDIA GPUs")
    found = run.run(demo(tmp_path, device, precision))
    both = exact.scores.merge(found.scores, on=KEYS, suffixes=("_fp32", ""))
    for (method, shots), part in both.groupby(["method", "shots"]):
        assert part.score.corr(part.score_fp32, method="spearman") > RANK, (method, shots)


def test_batches_of_any_size_and_a_resumed_run_give_the_same_scores(device, exact, tmp_path):
    changed = demo(tmp_path, device).model_copy(update={"methods": exact.profile.methods[:2]})
    few = changed.model_copy(update={"categories": changed.categories[:1]})
    run.run(few)  # the rest is encoded later, beside other images
    found = run.run(changed)
    both = exact.scores.merge(found.scores, on=KEYS, suffixes=("_whole", ""))
    assert (both.score - both.score_whole).abs().max() < 1e-5
