"""The formulas of both methods, each with the line of code that computes it, looked up in the source."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmad_lib import PACKAGE
from vlmad_lib.encoders import prompts
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import anomalyclip, objectives, winclip
from vlmad_lib.methods.prompt_learner import PromptLearner


@dataclass(frozen=True)
class Formula:
    """What is computed (LaTeX), the function that does it, and words that only the line in question holds."""

    what: str
    latex: str
    function: Callable[..., Any]
    words: str

    def line(self) -> tuple[str, int, str]:
        """File in vlmad_lib, number and line; ValueError unless the words are in exactly one line of the function."""
        lines, first = inspect.getsourcelines(self.function)
        found = [number for number, line in enumerate(lines) if self.words in line]
        if len(found) != 1:
            raise ValueError(f"{self.what}: {self.words!r} is in {len(found)} lines of {self.function.__qualname__}.")
        file = Path(inspect.getsourcefile(inspect.unwrap(self.function))).relative_to(PACKAGE)
        return file.as_posix(), first + found[0], lines[found[0]].strip()


_CHANCE = r"\sigma\left(\frac{\cos(f%s, t_a) - \cos(f%s, t_n)}{\tau}\right)"

_PIXELS = Formula(
    "The map of the pixels $u$ of the frame where masks are compared: bilinear, with weights $b$, from the patches $i$",
    r"M(u) = \sum_i b_i(u) m(i)",
    metrics.upsample,
    "return F.interpolate",
)

# f an embedding of the image side, t a text feature, tau the temperature, i a patch
WINCLIP = [
    Formula(
        "A prototype: the mean of the embedded prompts $q$ of a state $s$, normal or anomalous",
        r"t_s = \frac{1}{n_s} \sum_{q} \frac{g(q)}{\lVert g(q) \rVert}",
        prompts.prototypes,
        "return torch.stack",
    ),
    Formula(
        "The chance that an embedding is anomalous",
        rf"p(f) = {_CHANCE % ('', '')}",
        winclip.probability,
        "torch.sigmoid",
    ),
    Formula(
        "A window's embedding: the class token $c$ and the window's patch tokens $x_j$ alone, through the network",
        r"f_w = E(c, \{x_j : j \in w\})",
        winclip._windows,
        "members = F.pad",
    ),
    Formula(
        "The map of one window size: harmonic mean over the $n_i$ windows that cover a patch",
        r"m_k(i) = \frac{n_i}{\sum_{w \ni i} 1 / p(f_w)}",
        winclip.spread,
        "return count / total",
    ),
    Formula(
        "The zero-shot map: harmonic mean over $K$ scales, the whole image being one of them",
        r"m(i) = \frac{K}{\sum_k 1 / m_k(i)}",
        winclip.fuse,
        "return len(maps)",
    ),
    Formula(
        "The zero-shot image score, of the whole image's class token",
        r"s = p(f_{\text{image}})",
        winclip.zero_shot,
        'whole = probability(features["class"]',
    ),
    Formula(
        "The distance to the nearest embedding $r$ of the references, of windows and patch tokens alike",
        r"d(f) = \frac{1 - \max_r \cos(f, r)}{2}",
        winclip.distance,
        "return (1 - nearest)",
    ),
    Formula(
        "The association map: mean over the $K$ window sizes, each spread like $m_k$, and the patch tokens",
        r"a(i) = \frac{1}{K + 1} \left( \sum_k a_k(i) + d(x_i) \right)",
        winclip.associate,
        "return torch.stack(maps).mean(0)",
    ),
    Formula("The map of WinCLIP+", r"m^+(i) = \frac{m(i) + a(i)}{2}", winclip.score, "fused = (fused + near) / 2"),
    Formula("The image score of WinCLIP+", r"s^+ = \frac{s + \max_i a(i)}{2}", winclip.score, "whole = (whole + near"),
    _PIXELS,
]

ANOMALYCLIP = [
    Formula(
        "The learned prompts: twelve free vectors each, then fixed words",
        r"t_n = g(V_1, \ldots, V_{12}, \text{object.}) \qquad t_a = g(W_1, \ldots, W_{12}, \text{damaged object.})",
        PromptLearner.forward,
        "x = (torch.cat([self.prefix, context, suffix]",
    ),
    Formula(
        "The deep prompts: four positions overwritten by learned rows $D_l$ before text blocks 2 to 9",
        r"h^{(l)}_{1 \ldots 4} \leftarrow D_l",
        PromptLearner.forward,
        "x = torch.cat([x[:, :1], row",
    ),
    Formula(
        "V-V attention, per head of width $d$; with Q and K in the place of the first two it is CLIP's own",
        r"A_{vv}(x) = \text{softmax}\left(\frac{V V^\top}{\sqrt{d}}\right) V",
        anomalyclip.mix,
        "mixed = attend(heads[query]",
    ),
    Formula(
        "The local path: from the first refined block on it adds attention on the original path's tokens $x$, no MLP",
        r"z_l = z_{l-1} + A_{vv}(x_{l-1})",
        anomalyclip.encode,
        "local[kind] = block.add",
    ),
    Formula(
        "The map of a layer, of the local path's patch tokens projected to $f_i$; two classes' softmax is this sigmoid",
        rf"m_l(i) = {_CHANCE % ('_i', '_i')}",
        anomalyclip._maps,
        "return {name: probability",
    ),
    Formula("The map: the sum over the chosen layers", r"m(i) = \sum_l m_l(i)", anomalyclip.score, "sum(_maps("),
    _PIXELS,
    Formula(
        f"Smoothed with a Gaussian of {anomalyclip.Settings().sigma:g} pixels in a frame of {metrics.FRAME}",
        r"M^*(u) = \sum_v G(u - v) M(v)",
        metrics.framed_map,
        "return ndimage.gaussian_filter",
    ),
    Formula(
        "The image score, of plain CLIP's class token",
        r"s = p(f_{\text{image}})",
        anomalyclip.score,
        'whole = probability(features["class"]',
    ),
    Formula(
        "Trained with: cross entropy of the image's chances against its label $y$",
        r"L_{CE} = -y \log s - (1 - y) \log (1 - s)",
        objectives.cross_entropy,
        "return F.cross_entropy",
    ),
    Formula(
        "Focal loss, the mean over pixels of the chance $p_t$ given to what is true there",
        r"L_{focal} = -(1 - p_t)^2 \log p_t",
        objectives.focal_loss,
        "return -((1 - right)",
    ),
    Formula(
        "Dice loss of a map $m$ and a mask $M$, once for anomalous and once for normal",
        r"L_{Dice} = 1 - \frac{2 \sum_i m_i M_i + 1}{\sum_i m_i + \sum_i M_i + 1}",
        objectives.dice_loss,
        "return 1 - ((2",
    ),
    Formula(
        "All together",
        r"L = L_{CE} + 4 \left( L_{focal} + L_{Dice,a} + L_{Dice,n} \right)",
        objectives.Loss.total.fget,
        "return self.cross_entropy + 4",
    ),
]


def written(formulas: list[Formula]) -> str:
    """Markdown: what each formula is, the formula, and its line of code."""
    parts = []
    for one in formulas:
        file, number, code = one.line()
        parts.append(f"{one.what}:\n\n$${one.latex}$$\n\n`{file}`, line {number}: `{code}`")
    return "\n\n".join(parts)
