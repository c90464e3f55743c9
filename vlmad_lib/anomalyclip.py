"""AnomalyCLIP (Zhou et al., ICLR 2024): learned prompts, read against patch tokens of a V-V attention path.

Follows the official code where it differs from the paper. An image is encoded once; scoring and training its
prompts are matrix products on what was kept.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from vlmad_lib import InputError
from vlmad_lib.backbones import Backbone
from vlmad_lib.features import replace
from vlmad_lib.winclip import probability

SIDE, TEMPERATURE, SIGMA = 518, 0.07, 4
ATTENTION = {"vv": (2, 2), "qq": (0, 0), "kk": (1, 1)}
"""Which of query, key and value stand in for query and key in the local path (section 3.3 of the paper)."""


# ---------------------------------------------------------------- image side


def refined_from(layers: int) -> int:
    """The first refined block, counted from 1: 6 of 24 as in the official code, the same share of other depths."""
    return round(layers * 5 / 24) + 1


def positions(visual: torch.nn.Module, grid: int) -> Tensor:
    """(1 + grid^2, width) position embedding, its patches resized bilinearly without antialias."""
    table = visual.positional_embedding
    patches = table[1:].unflatten(0, visual.grid_size).permute(2, 0, 1)[None]
    resized = F.interpolate(patches, (grid, grid), mode="bilinear", align_corners=False)
    return torch.cat([table[:1], resized[0].flatten(1).T])


@torch.inference_mode()
def encode(
    backbone: Backbone, images: Tensor, layers: Sequence[int] = (), attention: str | None = "vv"
) -> dict[str, Tensor]:
    """Features of normalised images (N, 3, S, S), fp32, none of them L2-normalised.

    ``class`` (N, D) is the class token of plain CLIP, projected without ``ln_post``. ``local_l`` (N, P, D) are
    the patch tokens of the local path after block l, counted from 1 (default: the last): from the first refined
    block on it adds each block's attention, with one of Q, K, V in the place of both Q and K, and no MLP; it reads
    the original path and never feeds back. ``attention`` None leaves the plain path.
    """
    visual = backbone.visual
    blocks = visual.transformer.resblocks
    wanted = tuple(layers) or (len(blocks),)
    if not all(1 <= layer <= len(blocks) for layer in wanted):
        raise InputError(f"Layers {list(wanted)}: {backbone.name} has blocks 1 to {len(blocks)}.")
    if attention is not None and attention not in ATTENTION:
        raise InputError(f"Unknown attention {attention!r}: {', '.join(ATTENTION)}, or none.")
    start, found = refined_from(len(blocks)), {}
    with backbone.autocast():
        patches = visual.conv1(images)
        tokens = torch.cat(
            [visual.class_embedding.expand(len(images), 1, -1), patches.flatten(2).mT.to(visual.class_embedding.dtype)],
            1,
        )
        original = local = visual.ln_pre(tokens + positions(visual, patches.shape[-1]))
        for number, block in enumerate(blocks, 1):
            refined = attention is not None and number >= start
            if refined:
                local = local + _attend(block, original, *ATTENTION[attention])
            original = block(original)
            if not refined:
                local = original
            if number in wanted:
                found[f"local_{number}"] = (visual.ln_post(local[:, 1:]) @ visual.proj).float()
    return {"class": (original[:, 0] @ visual.proj).float()} | found


def _attend(block: torch.nn.Module, tokens: Tensor, query: int, key: int) -> Tensor:
    """A block's attention over (N, L, width) with chosen parts of its own projection as query and key."""
    attn = block.attn
    parts = F.linear(block.ln_1(tokens), attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1)
    heads = [part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in parts]
    mixed = F.scaled_dot_product_attention(heads[query], heads[key], heads[2])
    return attn.out_proj(mixed.transpose(1, 2).flatten(2))


# ---------------------------------------------------------------- text side


class PromptLearner(torch.nn.Module):
    """The learned prompts: twelve context rows each for normal and anomalous, and deep prompts shared by both.

    Section 3.2 of the paper. ``tokens`` (2, 77) name the prompts, normal first: twelve placeholders, then "object."
    or "damaged object.". A ``deep`` row block replaces positions 1 to 4 before text blocks 2 to 9.
    """

    def __init__(self, backbone: Backbone, seed: int = 0, context: int = 12, depth: int = 9, width: int = 4):
        super().__init__()
        model, stream = backbone.model, torch.Generator().manual_seed(seed)
        blanks = " ".join(["X"] * context)
        self.register_buffer("tokens", open_clip.tokenize([f"{blanks} object.", f"{blanks} damaged object."]))
        rows = model.token_embedding(self.tokens).detach()
        size, depth = rows.shape[-1], min(depth, len(model.transformer.resblocks))
        self.register_buffer("prefix", rows[:, :1].clone())
        self.register_buffer("suffix", rows[:, 1 + context :].clone())
        self.context = torch.nn.Parameter(0.02 * torch.randn(2, context, size, generator=stream))
        self.deep = torch.nn.ParameterList(
            0.02 * torch.randn(width, size, generator=stream) for _ in range(max(0, depth - 1))
        )

    def forward(self, backbone: Backbone) -> Tensor:
        """(2, D) text features, normal first, not normalised."""
        model = backbone.model
        x = torch.cat([self.prefix, self.context, self.suffix], 1) + model.positional_embedding
        for number, block in enumerate(model.transformer.resblocks):
            if 1 <= number <= len(self.deep):
                # Rounded to fp16 and expanded before, as in the official code: gradients pass the same grid.
                row = self.deep[number - 1].expand(2, -1, -1).half().float()
                x = torch.cat([x[:, :1], row, x[:, 1 + row.shape[1] :]], 1)
            x = block(x, attn_mask=model.attn_mask)
        x = model.ln_final(x)
        return x[torch.arange(2), self.tokens.argmax(-1)] @ model.text_projection


def write(learner: PromptLearner, path: Path, trained_on: str) -> None:
    """Write prompts in the official checkpoint's format, with the name of the data set they were trained on."""
    state = OrderedDict()
    for row, sign in enumerate(("pos", "neg")):
        state[f"ctx_{sign}"] = learner.context.detach()[row].clone()[None, None]
        state[f"token_prefix_{sign}"] = learner.prefix[row].clone()[None, None]
        state[f"token_suffix_{sign}"] = learner.suffix[row].clone()[None, None]
        state[f"tokenized_prompts_{sign}"] = learner.tokens[row].int()[None, None]
    state |= {f"compound_prompts_text.{i}": row.detach().clone() for i, row in enumerate(learner.deep)}
    replace(path, lambda file: torch.save({"prompt_learner": state, "trained_on": trained_on}, file))


def read(backbone: Backbone, path: Path) -> tuple[PromptLearner, str]:
    """Prompts of a checkpoint and the data set they were trained on ("" where it does not say, as official ones).

    The dead ``compound_prompt_projections`` are ignored. Raises InputError for a file that is none, and where prefix
    or suffix are not the token embeddings of the loaded CLIP, which means other CLIP weights.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        state = found["prompt_learner"]
        deep = [state[f"compound_prompts_text.{i}"] for i in range(sum("prompts_text" in name for name in state))]
        context, prefix, suffix, tokens = (
            torch.cat([state[f"{name}_{sign}"][0] for sign in ("pos", "neg")])
            for name in ("ctx", "token_prefix", "token_suffix", "tokenized_prompts")
        )
    except FileNotFoundError:
        raise InputError(f"The prompt checkpoint {path} does not exist; correct its path in the profile.") from None
    except (OSError, RuntimeError, KeyError, TypeError, IndexError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path} is no AnomalyCLIP prompt checkpoint ({reason}); fetch it again.") from None
    learner = PromptLearner(backbone, 0, context.shape[1], len(deep) + 1)
    for name, theirs in (("prefix", prefix), ("suffix", suffix)):
        own = getattr(learner, name)
        if own.shape != theirs.shape or not torch.allclose(own, theirs.float(), atol=1e-6):
            raise InputError(
                f"The {name} in {path} is not what {backbone.label} has for these words: the prompts belong to other "
                "CLIP weights; name the backbone they were trained on."
            )
    if len(deep) != len(learner.deep) or not torch.equal(tokens.long(), learner.tokens):
        raise InputError(f"The prompts in {path} are not those of AnomalyCLIP, or have too many layers for this CLIP.")
    with torch.no_grad():
        learner.context.copy_(context)
        for own, theirs in zip(learner.deep, deep, strict=True):
            own.copy_(theirs)
    return learner, found.get("trained_on", "")


# ---------------------------------------------------------------- score


def score(features: dict[str, Tensor], text: Tensor) -> tuple[Tensor, Tensor]:
    """P(anomalous) of whole images (N,) and maps (N, grid, grid), the sum over layers, not smoothed.

    The image score never looks at the map (appendix of the paper; the official code agrees).
    """
    whole = probability(features["class"], text, TEMPERATURE)
    maps = [probability(value, text, TEMPERATURE) for name, value in features.items() if name.startswith("local_")]
    total = torch.stack(maps).sum(0)
    grid = round(total.shape[1] ** 0.5)
    return whole, total.unflatten(1, (grid, grid))


def smooth(maps: Tensor, side: int = SIDE) -> Tensor:
    """(N, grid, grid) -> (N, side, side): bilinear, then a Gaussian of 4 pixels."""
    large = F.interpolate(maps[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]
    return torch.stack([torch.from_numpy(ndimage.gaussian_filter(one, SIGMA)) for one in large.numpy()])


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Loss:
    """The terms of the objective, section 3.4; ``total`` = CE + 4 (focal + both dice), summed over layers."""

    cross_entropy: Tensor
    focal: Tensor
    dice_anomalous: Tensor
    dice_normal: Tensor

    @property
    def total(self) -> Tensor:
        """What is minimised."""
        return self.cross_entropy + 4 * (self.focal + self.dice_anomalous + self.dice_normal)


def loss(features: dict[str, Tensor], text: Tensor, labels: Tensor, masks: Tensor) -> Loss:
    """Terms on features of ``encode``, text (2, D), labels (B,) in {0, 1} and masks (B, side, side) in {0, 1}."""
    whole, text = F.normalize(features["class"], dim=-1), F.normalize(text, dim=-1)
    entropy = F.cross_entropy(whole @ text.T / TEMPERATURE, labels.long())
    focal = anomalous = normal = torch.zeros(())
    for name, value in features.items():
        if name.startswith("local_"):
            logits = F.normalize(value, dim=-1) @ text.T / TEMPERATURE
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
