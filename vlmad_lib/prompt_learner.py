"""AnomalyCLIP's learned prompts (section 3.2 of the paper), their files, and what they were trained on."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import open_clip
import torch
from torch import Tensor

from vlmad_lib import InputError, data
from vlmad_lib.backbones import Backbone
from vlmad_lib.features import replace, stamp
from vlmad_lib.profile import Method, Profile

DEMO = Path(__file__).parent / "demo" / "anomalyclip-demo.pth"
FOLDERS = {"visa": "9_12_4_multiscale", "mvtec": "9_12_4_multiscale_visa"}
"""Where the authors' repository (github.com/zqhang/AnomalyCLIP) has its checkpoints, by data set trained on."""
_DEAD = 896  # rows of projections that official files hold and nothing uses


class PromptLearner(torch.nn.Module):
    """The learned prompts: twelve context rows each for normal and anomalous, and deep prompts shared by both.

    ``tokens`` (2, 77) name the prompts, normal first: twelve placeholders, then "object." or "damaged object.".
    A ``deep`` row block replaces positions 1 to 4 before text blocks 2 to 9.
    """

    def __init__(self, backbone: Backbone, seed: int = 0, context: int = 12, depth: int = 9, width: int = 4):
        super().__init__()
        model, stream = backbone.model, torch.Generator().manual_seed(seed)
        tokens, rows = _rows(backbone, "object", context)
        size, depth = rows.shape[-1], min(depth, len(model.transformer.resblocks))
        self.register_buffer("tokens", tokens)
        self.register_buffer("prefix", rows[:, :1].clone())
        self.register_buffer("suffix", rows[:, 1 + context :].clone())
        self.context = torch.nn.Parameter(0.02 * torch.randn(2, context, size, generator=stream))
        self.deep = torch.nn.ParameterList(
            0.02 * torch.randn(width, size, generator=stream) for _ in range(max(0, depth - 1))
        )

    def forward(self, backbone: Backbone, name: str = "object", deep: bool = True) -> Tensor:
        """(2, D) text features, normal first, not normalised.

        ``name`` other than "object" is the class-aware ablation, ``deep`` False the one without deep prompts.
        """
        model, tokens, suffix = backbone.model, self.tokens, self.suffix
        if name != "object":
            tokens, rows = _rows(backbone, name, self.context.shape[1])
            suffix = rows[:, 1 + self.context.shape[1] :]
        ends = tokens.argmax(-1)
        length = int(ends.max()) + 1  # a causal mask keeps what stands behind the end token from reaching it
        x = (torch.cat([self.prefix, self.context, suffix], 1) + model.positional_embedding)[:, :length]
        for number, block in enumerate(model.transformer.resblocks):
            if deep and 1 <= number <= len(self.deep):
                # Rounded to fp16 and expanded before, as in the official code: gradients pass the same grid.
                row = self.deep[number - 1].expand(2, -1, -1).half().float()
                x = torch.cat([x[:, :1], row, x[:, 1 + row.shape[1] :]], 1)
            x = block(x, attn_mask=model.attn_mask[:length, :length])
        x = model.ln_final(x)
        return x[torch.arange(2), ends] @ model.text_projection


def _rows(backbone: Backbone, name: str, context: int) -> tuple[Tensor, Tensor]:
    """Tokens (2, 77) of both prompts of a name, and their embeddings."""
    blanks = " ".join(["X"] * context)
    tokens = open_clip.tokenize([f"{blanks} {name}.", f"{blanks} damaged {name}."])
    return tokens, backbone.model.token_embedding(tokens).detach()


# ---------------------------------------------------------------- files


def write(learner: PromptLearner, path: Path, trained_on: str, root: str = "", categories: Sequence[str] = ()) -> None:
    """Write prompts in the official checkpoint's format, with the name of the data set they were trained on.

    ``root`` is the folder of a data set that has no known name, ``categories`` those trained on (all for none). The
    projections that the official code loads and never uses are zeros, all of them one stored number.
    """
    state = OrderedDict()
    for row, sign in enumerate(("pos", "neg")):
        state[f"ctx_{sign}"] = learner.context.detach()[row].clone()[None, None]
        state[f"token_prefix_{sign}"] = learner.prefix[row].clone()[None, None]
        state[f"token_suffix_{sign}"] = learner.suffix[row].clone()[None, None]
        state[f"tokenized_prompts_{sign}"] = learner.tokens[row].int()[None, None]
    state |= {f"compound_prompts_text.{i}": row.detach().clone() for i, row in enumerate(learner.deep)}
    zero = torch.zeros(1)
    for i in range(len(learner.deep)):
        state[f"compound_prompt_projections.{i}.weight"] = zero.expand(_DEAD, learner.context.shape[-1])
        state[f"compound_prompt_projections.{i}.bias"] = zero.expand(_DEAD)
    content = {"prompt_learner": state, "trained_on": trained_on, "root": root, "categories": list(categories)}
    replace(path, lambda file: torch.save(content, file))


def _open(path: Path) -> dict:
    """What a checkpoint holds; plain tensors and text only, nothing in it is executed."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        state = found["prompt_learner"]
        deep = [state[f"compound_prompts_text.{i}"] for i in range(sum("prompts_text" in name for name in state))]
        names = ("ctx", "token_prefix", "token_suffix", "tokenized_prompts")
        parts = {name: torch.cat([state[f"{name}_{sign}"][0] for sign in ("pos", "neg")]) for name in names}
        whole = all(bool(torch.isfinite(values).all()) for values in [*parts.values(), *deep])
    except Exception as error:  # an unpickler that meets garbage raises anything
        raise _refusal(path, error) from None
    if not whole or parts["ctx"].ndim != 3 or any(row.shape != deep[0].shape or row.ndim != 2 for row in deep):
        raise _refusal(path, "wrong shapes or values that are not finite")
    said = {key: found.get(key, "") for key in ("trained_on", "root")}
    said = {key: value if isinstance(value, str) else "" for key, value in said.items()}
    named = found.get("categories", [])
    known = isinstance(named, list) and all(isinstance(name, str) for name in named)
    return parts | {"deep": deep, "categories": named if known else []} | said


def _refusal(path: Path, error: Exception | str) -> InputError:
    reason = " ".join(str(error).split())[:120]
    return InputError(f"{path} is no AnomalyCLIP prompt checkpoint ({reason}); fetch it again.")


def read(backbone: Backbone, path: Path) -> tuple[PromptLearner, str]:
    """Prompts of a checkpoint and the data set they were trained on ("" where it does not say, as official ones).

    The dead ``compound_prompt_projections`` are ignored. Raises InputError for a file that is none, and where prefix
    or suffix are not the token embeddings of the loaded CLIP, which means other CLIP weights.
    """
    found = _open(path)
    context, deep = found["ctx"], found["deep"]
    learner = PromptLearner(backbone, 0, context.shape[1], len(deep) + 1, len(deep[0]) if deep else 4)
    for name in ("prefix", "suffix"):
        own, theirs = getattr(learner, name), found[f"token_{name}"]
        if own.shape != theirs.shape or not torch.allclose(own, theirs.float(), atol=1e-6):
            raise InputError(
                f"The {name} in {path} is not what {backbone.label} has for these words: the prompts belong to other "
                "CLIP weights; name the backbone they were trained on."
            )
    same_shape = len(deep) == len(learner.deep) and context.shape == learner.context.shape
    same_shape &= all(own.shape == theirs.shape for own, theirs in zip(learner.deep, deep, strict=False))
    if not same_shape or not torch.equal(found["tokenized_prompts"].long(), learner.tokens):
        raise InputError(f"The prompts in {path} are not those of AnomalyCLIP, or have too many layers for this CLIP.")
    with torch.no_grad():
        learner.context.copy_(context)
        for own, theirs in zip(learner.deep, deep, strict=True):
            own.copy_(theirs)
    return learner, found["trained_on"]


# ---------------------------------------------------------------- leakage


@dataclass(frozen=True)
class Checkpoint:
    """A prompt file a profile names; ``leaked`` where its prompts were trained on the data of the profile."""

    path: Path
    digest: str
    trained_on: str
    leaked: bool


def checkpoint(spec: Method, profile: Profile) -> Checkpoint:
    """The prompts a method of a profile names, checked before anything is computed.

    Raises InputError for none, a missing or broken file, one that does not say what it was trained on (nor the
    profile), and one trained on the profile's own data, unless ``force_leak`` is set.
    """
    if not spec.checkpoint:
        raise InputError(
            f"{spec.name}: its prompts are missing; set 'checkpoint' to a file, or settings {{prompts: object}} for "
            "hand-written ones."
        )
    path = DEMO if spec.checkpoint == "demo" else profile.path(spec.checkpoint)
    if not path.is_file():
        raise InputError(_missing(path, spec))
    found, digest = _kept(path, stamp(str(path)))
    own, given = data.known_name(found["trained_on"]), data.known_name(spec.trained_on)
    if own and given and own != given:
        raise InputError(f"{spec.name}: {path} says it was trained on {own}, the profile {given}; drop 'trained_on'.")
    if not own and not given:
        raise InputError(
            f"{spec.name}: {path} does not say which data set its prompts were trained on; set 'trained_on' of the "
            "method, such as visa or mvtec."
        )
    leaked = data.overlaps(own or given, found["root"], profile, found["categories"])
    if leaked and not spec.force_leak:
        raise InputError(
            f"{spec.name}: the prompts in {path} were trained on {own or given}, the data they would be tested on; "
            "use prompts of another data set, or set 'force_leak: true' to get results marked LEAKED."
        )
    return Checkpoint(path, digest, own or given, leaked)


@lru_cache(maxsize=8)
def _kept(path: Path, _: str) -> tuple[dict, str]:
    return _open(path), hashlib.sha256(path.read_bytes()).hexdigest()


def _missing(path: Path, spec: Method) -> str:
    sentence = f"{spec.name}: the prompt checkpoint {path} does not exist; "
    official = FOLDERS.get(data.known_name(spec.trained_on))
    if official:
        sentence += f"its authors publish it at github.com/zqhang/AnomalyCLIP as checkpoints/{official}/epoch_15.pth: "
        return sentence + "put it there, or leave the method out, as -p 'methods=[{}]' does (WinCLIP alone)."
    return sentence + "correct its path, or train one by python -m vlmad_lib.anomalyclip train."
