"""AnomalyCLIP's learned prompts (section 3.2 of the paper) and their files."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from vlmad_lib import PACKAGE, InputError, open_clip
from vlmad_lib.encoders.backbones import Backbone, text_tower
from vlmad_lib.files import replace_file
from vlmad_lib.methods import checkpoints

DEMO = PACKAGE / "demo" / "anomalyclip-demo.pth"
FOLDERS = {"visa": "9_12_4_multiscale", "mvtec": "9_12_4_multiscale_visa"}
"""Where the authors' repository (github.com/zqhang/AnomalyCLIP) has its checkpoints, by data set trained on."""
_DEAD = 896  # rows of projections that official files hold and nothing uses


class PromptLearner(torch.nn.Module):
    """The learned prompts: twelve context rows each for normal and anomalous, and deep prompts shared by both.

    ``tokens`` (2, 77) name the prompts, normal first: twelve placeholders, then "object." or "damaged object.".
    A ``deep`` row block replaces positions 1 to 4 before text blocks 2 to 9. CoOp differs in the two constants.
    """

    WORDS = "{}.", "damaged {}."  # behind the context
    CONTEXTS = 2  # or 1, shared by both prompts

    def __init__(self, backbone: Backbone, seed: int = 0, context: int = 12, depth: int = 9, width: int = 4):
        super().__init__()
        tower, stream = text_tower(backbone.model), torch.Generator().manual_seed(seed)
        if tower.pool_type != "argmax" or backbone.tokenizer:
            raise InputError(
                f"Prompts cannot be learned for {backbone.name}: its text tower does not read the end token of CLIP's "
                "own tokenizer; choose another backbone (try ViT-L-14-336-quickgelu)."
            )
        tokens, self.ends, rows = _rows(backbone, self.WORDS, "object", context)
        size, depth = rows.shape[-1], min(depth, len(tower.transformer.resblocks))
        self.register_buffer("tokens", tokens)
        self.register_buffer("prefix", rows[:, :1].clone())
        self.register_buffer("suffix", rows[:, 1 + context :].clone())
        self.context = torch.nn.Parameter(0.02 * torch.randn(self.CONTEXTS, context, size, generator=stream))
        self.deep = torch.nn.ParameterList(
            0.02 * torch.randn(width, size, generator=stream) for _ in range(max(0, depth - 1))
        )
        self.to(backbone.device)  # drawn on the CPU, so that a seed gives the same numbers on every device

    def forward(self, backbone: Backbone, name: str = "object", deep: bool = True) -> Tensor:
        """(2, D) text features, normal first, not normalised.

        ``name`` other than "object" is the class-aware ablation, ``deep`` False the one without deep prompts.
        """
        tower, ends, suffix = text_tower(backbone.model), self.ends, self.suffix
        if name != "object":
            _, ends, rows = _rows(backbone, self.WORDS, name, self.context.shape[1])
            suffix = rows[:, 1 + self.context.shape[1] :]
        mask, length = tower.attn_mask, self.tokens.shape[1]
        if mask is not None:  # it keeps what stands behind the end token from reaching it
            length = max(ends) + 1
            mask = mask[:length, :length]
        context = self.context.expand(2, -1, -1)
        x = (torch.cat([self.prefix, context, suffix], 1) + tower.positional_embedding)[:, :length]
        for number, block in enumerate(tower.transformer.resblocks):
            if deep and 1 <= number <= len(self.deep):
                # Rounded to fp16 and expanded before, as in the official code: gradients pass the same grid.
                row = self.deep[number - 1].expand(2, -1, -1).half().float()
                x = torch.cat([x[:, :1], row, x[:, 1 + row.shape[1] :]], 1)
            x = block(x, attn_mask=mask)
        x = tower.ln_final(x)
        return tower.project(torch.stack([x[row, end] for row, end in enumerate(ends)]))


def _rows(
    backbone: Backbone, words: tuple[str, str], name: str, context: int
) -> tuple[Tensor, tuple[int, ...], Tensor]:
    """Of both prompts of a name: tokens (2, length of the text tower, 77 in CLIP), places of their end, embeddings.

    Tokens are on the CPU and embeddings on the backbone's device.
    """
    blanks, tower = " ".join(["X"] * context), text_tower(backbone.model)
    texts = tuple(f"{blanks} {ending.format(name)}" for ending in words)
    if max(_tokenise(texts, 256)[1]) >= tower.context_length:
        raise InputError(
            f"The text tower of {backbone.name} reads {tower.context_length} tokens, too few for {context} learned "
            f"ones and {name!r}; choose a backbone that reads more, or a shorter class name."
        )
    tokens, ends = _tokenise(texts, tower.context_length)
    return tokens, ends, tower.token_embedding(tokens.to(backbone.device)).detach()


@lru_cache(maxsize=256)
def _tokenise(texts: tuple[str, ...], length: int) -> tuple[Tensor, tuple[int, ...]]:
    """Tokens (N, length) on the CPU, and the places of their end tokens: to read those off a device stops it."""
    tokens = open_clip.tokenize(list(texts), context_length=length)
    return tokens, tuple(tokens.argmax(-1).tolist())


# ---------------------------------------------------------------- files


def write(learner: PromptLearner, path: Path, trained_on: str, root: str = "", categories: Sequence[str] = ()) -> None:
    """Write prompts in the official checkpoint's format, with the name of the data set they were trained on.

    ``root`` is the folder of a data set that has no known name, ``categories`` those trained on (all for none). The
    projections that the official code loads and never uses are zeros, all of them one stored number.
    """
    state, width = OrderedDict(), learner.context.shape[-1]
    context, prefix, suffix, tokens = (
        rows.detach().cpu() for rows in (learner.context, learner.prefix, learner.suffix, learner.tokens)
    )
    for row, sign in enumerate(("pos", "neg")):
        state[f"ctx_{sign}"] = context[row].clone()[None, None]
        state[f"token_prefix_{sign}"] = prefix[row].clone()[None, None]
        state[f"token_suffix_{sign}"] = suffix[row].clone()[None, None]
        state[f"tokenized_prompts_{sign}"] = tokens[row].int()[None, None]
    state |= {f"compound_prompts_text.{i}": row.detach().cpu().clone() for i, row in enumerate(learner.deep)}
    zero = torch.zeros(1)
    for i in range(len(learner.deep)):
        state[f"compound_prompt_projections.{i}.weight"] = zero.expand(_DEAD, width)
        state[f"compound_prompt_projections.{i}.bias"] = zero.expand(_DEAD)
    content = {"prompt_learner": state, "trained_on": trained_on, "root": root, "categories": list(categories)}
    replace_file(path, lambda file: torch.save(content, file))


def _parse(content: dict) -> dict:
    """The tensors of a checkpoint by name, ``deep`` a list of them."""
    state = content["prompt_learner"]
    deep = [state[f"compound_prompts_text.{i}"] for i in range(sum("prompts_text" in name for name in state))]
    names = ("ctx", "token_prefix", "token_suffix", "tokenized_prompts")
    parts = {name: torch.cat([state[f"{name}_{sign}"][0] for sign in ("pos", "neg")]) for name in names}
    if parts["ctx"].ndim != 3 or any(row.shape != deep[0].shape or row.ndim != 2 for row in deep):
        raise ValueError("wrong shapes")
    return parts | {"deep": deep}


def _where(trained_on: str) -> str:
    folder = FOLDERS.get(trained_on, "")
    return folder and f"github.com/zqhang/AnomalyCLIP as checkpoints/{folder}/epoch_15.pth"


CHECKPOINT = checkpoints.Kind(
    title="AnomalyCLIP prompt",
    noun="prompts",
    demo=DEMO,
    parse=_parse,
    without="or, of an AnomalyCLIP, settings {prompts: object} for hand-written ones",
    where=_where,
    command="python -m vlmad_lib train anomalyclip",
)


def refuse_other_clip(backbone: Backbone, path: Path, name: str, own: Tensor, theirs: Tensor) -> None:
    """InputError where embeddings of words, kept beside prompts, are not those of the loaded CLIP."""
    own = own.cpu()
    # rounded as the file is: half the digits are no other weights
    if own.shape != theirs.shape or not torch.allclose(own.to(theirs.dtype).float(), theirs.float(), atol=1e-6):
        raise InputError(
            f"The {name} in {path} is not what {backbone.label} has for these words: the prompts belong to other "
            "CLIP weights; name the backbone they were trained on."
        )


def read(backbone: Backbone, path: Path) -> tuple[PromptLearner, str]:
    """Prompts of a checkpoint and the data set they were trained on ("" where it does not say, as official ones).

    The dead ``compound_prompt_projections`` are ignored. Raises InputError for a file that is none, and where prefix
    or suffix are not the token embeddings of the loaded CLIP, which means other CLIP weights.
    """
    content = checkpoints.read(path, CHECKPOINT)
    context, deep = content["ctx"], content["deep"]
    learner = PromptLearner(backbone, 0, context.shape[1], len(deep) + 1, len(deep[0]) if deep else 4)
    for name in ("prefix", "suffix"):
        refuse_other_clip(backbone, path, name, getattr(learner, name), content[f"token_{name}"])
    same_shape = len(deep) == len(learner.deep) and context.shape == learner.context.shape
    same_shape &= all(own.shape == theirs.shape for own, theirs in zip(learner.deep, deep, strict=False))
    if not same_shape or not torch.equal(content["tokenized_prompts"].long(), learner.tokens.cpu()):
        raise InputError(f"The prompts in {path} are not those of AnomalyCLIP, or have too many layers for this CLIP.")
    with torch.no_grad():
        learner.context.copy_(context)
        for own, theirs in zip(learner.deep, deep, strict=True):
            own.copy_(theirs)
    return learner, content["trained_on"]
