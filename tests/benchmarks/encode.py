"""Encoding against plain restatements, and against the machine's matrix peak: ``python tests/benchmarks/encode.py``.

Seeded random weights: neither time nor parity depends on what a network has learned. The plain WinCLIP feeds one window
after the other through open_clip's own blocks; a second one feeds all windows of a size at once, as public
implementations do. The plain AnomalyCLIP computes its attention matrices outright. All in one run, by the wall clock.
A machine that others share is faster for a moment than for the seconds that encoding takes, so encoding is held against
what matrix products reach in ``SPAN`` seconds: before the plain ways, after them, and after ours.
"""

from __future__ import annotations

import dataclasses
import sys
import time

import torch
import torch.nn.functional as F
from common import row, seconds, show
from torch import Tensor, nn

from vlmad_lib import methods
from vlmad_lib.analysis import efficiency
from vlmad_lib.config import Method
from vlmad_lib.encoders import backbones
from vlmad_lib.encoders.backbones import Backbone
from vlmad_lib.methods import anomalyclip, winclip
from vlmad_lib.pipeline import workload

SIZES = (2, 3)
REPEATS = 3
SPAN = 4  # seconds


@torch.inference_mode()
def windows(visual: nn.Module, tokens: Tensor, members: Tensor, batch: int) -> Tensor:
    """(n, D) embeddings of token subsets (n, L), so many at a time through all of every block."""
    found = []
    for part in members.split(batch):
        x = torch.cat([tokens[:, :1].expand(len(part), -1, -1), tokens[0, 1:][part]], 1)
        for block in visual.transformer.resblocks:
            x = block(x)
        found.append(visual.ln_post(x[:, 0]) @ visual.proj)
    return torch.cat(found)


@torch.inference_mode()
def plain_winclip(backbone: Backbone, image: Tensor, batch: int) -> dict[str, Tensor]:
    """The class token and all windows of one image."""
    tokens = backbone.visual._embeds(image)
    found = {
        f"window_{size}": windows(backbone.visual, tokens, winclip.window_tokens(backbone.grid, size), batch)[None]
        for size in SIZES
    }
    return found | {"class": backbone.model.encode_image(image)}


@torch.inference_mode()
def plain_anomalyclip(backbone: Backbone, image: Tensor) -> dict[str, Tensor]:
    """Class token and V-V patch tokens of one image, attention matrices written out (specification, section 2.1)."""
    visual = backbone.visual
    resblocks = visual.transformer.resblocks
    local = original = anomalyclip._start(visual, image)
    for number, block in enumerate(resblocks, 1):
        attn = block.attn
        heads = F.linear(block.ln_1(original), attn.in_proj_weight, attn.in_proj_bias)
        query, key, value = heads.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scale = query.shape[-1] ** -0.5
        if number >= anomalyclip.refined_from(len(resblocks)):
            mixed = (value @ value.mT * scale).softmax(-1) @ value
            local = local + attn.out_proj(mixed.transpose(1, 2).flatten(2))
        mixed = (query @ key.mT * scale).softmax(-1) @ value
        original = original + attn.out_proj(mixed.transpose(1, 2).flatten(2))
        original = original + block.mlp(block.ln_2(original))
        local = local if number >= anomalyclip.refined_from(len(resblocks)) else original
    return {"class": original[:, 0] @ visual.proj, "vv_last": visual.ln_post(local[:, 1:]) @ visual.proj}


def apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference of L2-normalised features."""
    return max((F.normalize(found[k], dim=-1) - F.normalize(wanted[k], dim=-1)).abs().max().item() for k in wanted)


def sustained(precision: str) -> float:
    """GFLOP/s of large matrix products over ``SPAN`` seconds, by the faster of the ways there are."""
    ways, count = workload.list_products(precision, *workload.SHAPES[1]), 0
    with torch.inference_mode():
        work, best = min(ways, key=lambda way: seconds(way[1], 3)[0])
        began = time.perf_counter()
        while (spent := time.perf_counter() - began) < SPAN:
            best()
            count += 1
    return count * work / spent


def encoder(kind: str, plain: dict, bars: dict[str, float | None], precisions: list[str], equal: float) -> list[dict]:
    """Rows of one method as published: plain ways first, then ours in some precisions."""
    spec = Method(method=kind, weights="random:0")
    code = methods.METHODS[kind]
    settings = code.settings()
    backbone = backbones.load_backbone(spec.backbone, spec.weights)
    size, names = code.image_side(settings, backbone), code.array_names(settings)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    work = workload.count_gflop(methods.ChosenMethod(spec, settings), spec.backbone)
    rows, slow = [row(f"{spec.name}: arithmetic of an image", work, "GFLOP")], {}
    rates = {precision: [sustained(precision)] for precision in precisions}
    for name, way in plain.items():
        slow[name], wanted = seconds(lambda way=way: way(backbone, image))
        rows.append(row(f"{spec.name}: {name}", slow[name], "s"))
    for precision in precisions:
        net = dataclasses.replace(backbone, precision=precision)
        code.encode(net, image, names)  # weights are prepared once
        rates[precision].append(sustained(precision))
        fast, found = seconds(lambda net=net: code.encode(net, image, names), REPEATS)
        rates[precision].append(sustained(precision))
        rate, told = sum(rates[precision]) / 3, f"{spec.name}: ours, {precision}"
        rows += [row(told, fast, "s"), row(f"{spec.name}: matrix products meanwhile, {precision}", rate, "GFLOP/s")]
        for number, (name, value) in enumerate(slow.items()):
            bar = bars[precision] if number == 0 else None
            rows.append(row(f"{told}, over {name}", value / fast, "times", least=bar))
            # a bar above this asks for more than the CPU can do
            rows.append(row(f"{spec.name}: the most that these allow over {name}", value * rate / work, "times"))
        rows.append(row(f"{told}, of the matrix products", work / fast / rate, "share", least=bars["share"]))
        limit = equal if precision == "fp32" else None
        rows.append(row(f"{told}, difference", apart(found, wanted), "", most=limit))
    return rows


def measure() -> list[dict]:
    """All rows; about three minutes on two cores. A precision the CPU has no instructions for is left out, and told."""
    plain, best = default_peak(), {kind: workload.measure_peak(kind) for kind in efficiency.list_precisions()}
    rows = [row("matrix product, fp32, PyTorch's default path", plain, "GFLOP/s")]
    rows += [row(f"matrix product, {kind}, fastest path", value, "GFLOP/s") for kind, value in best.items()]
    out = [kind for kind in ("fp32", "bf16") if kind not in best]
    rows.append(row(" ".join(["precisions left out, as this CPU has no instructions for them:", *out]), len(out)))
    ways = {
        "a window at a time, plain fp32": lambda net, image: plain_winclip(net, image, 1),
        "windows of a size at once, plain fp32": lambda net, image: plain_winclip(net, image, 10**9),
    }
    rows += encoder("winclip", ways, {"fp32": 2.4, "bf16": 4.5, "share": 0.75}, list(best), 1e-4)
    ways = {"explicit attention, plain fp32": plain_anomalyclip}
    least = 3.1 if "512" in torch.backends.cpu.get_cpu_capability() else 1.6  # without AVX-512 plain code is no slower
    return rows + encoder("anomalyclip", ways, {"fp32": least, "bf16": 5.8, "share": None}, list(best), 1e-5)


def default_peak() -> float:
    """GFLOP/s of PyTorch's own linear in fp32: what plain code has to live with."""
    rates = []
    for m, k, n in workload.SHAPES:
        x, weight = torch.ones(m, k), torch.ones(n, k)
        with torch.inference_mode():
            rates.append(2 * m * k * n / seconds(lambda x=x, weight=weight: F.linear(x, weight), 5)[0] / 1e9)
    return max(rates)


if __name__ == "__main__":
    sys.exit(show(measure()))
