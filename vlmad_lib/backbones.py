"""One door to every open_clip ViT: by name and weights, offline unless told, with a fingerprint."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlmad_lib import ROOT, InputError, open_clip
from vlmad_lib.blocks import Block

WEIGHTS = ROOT / "data" / "weights"
DEMO_CONFIG = Path(__file__).parent / "demo" / "vlmad-demo.json"
DEMO_WEIGHTS = DEMO_CONFIG.with_suffix(".safetensors")
FACTOR = "temperature_factor"  # the one key of a config that open_clip does not know


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP with what is needed to use it; ``fingerprint`` is the SHA-256 of its weights.

    ``key`` is a digest of what decides its features: weights, architecture and the pixels' mean and deviation. Layers
    without weights, such as QuickGELU or the number of heads, are in no fingerprint.
    """

    name: str
    weights: str
    model: torch.nn.Module = field(repr=False)
    fingerprint: str
    precision: str = "fp32"
    key: str = ""

    @property
    def visual(self) -> open_clip.transformer.VisionTransformer:
        """The image tower."""
        return self.model.visual

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.visual.image_size[0]

    @property
    def grid(self) -> int:
        """Patch tokens along one side."""
        return self.visual.grid_size[0]

    @property
    def temperature_factor(self) -> float:
        """What methods' temperatures are multiplied by on it: see the function of this name."""
        return temperature_factor(self.name)

    @property
    def is_random(self) -> bool:
        """Whether the weights are seeded noise, good for tests only."""
        return self.weights.startswith("random:")

    @property
    def label(self) -> str:
        """Name, weights and precision, for tables."""
        return f"{Path(self.name).stem} ({Path(self.weights).name}, {self.precision})"

    def facts(self) -> dict:
        """What a report says of it, ready for JSON."""
        return {
            "name": self.name,
            "weights": self.weights,
            "sha256": self.fingerprint,
            "precision": self.precision,
            "temperature_factor": self.temperature_factor,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "random": self.is_random,
        }

    @cached_property
    def blocks(self) -> list[Block]:
        """The image tower's residual blocks for inference; bf16 is for their matrix products alone."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        return [Block(block, dtype) for block in self.visual.transformer.resblocks]

    def normalise(self, images: np.ndarray) -> Tensor:
        """(N, size, size, 3) uint8 RGB -> (N, 3, size, size) float32 with CLIP's mean and deviation."""
        return self.standardise(torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255)

    def standardise(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in 0..1 less CLIP's mean, by its deviation."""
        mean = torch.tensor(getattr(self.visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN)
        std = torch.tensor(getattr(self.visual, "image_std", None) or open_clip.OPENAI_DATASET_STD)
        return (pixels - mean[:, None, None]) / std[:, None, None]

    @torch.inference_mode()
    def encode_text(self, texts: list[str], batch: int = 128) -> Tensor:
        """Text embeddings (N, D), not normalised; padding beyond the longest text is cut where it cannot matter."""
        tokens = _tokenizer(self.name)(texts)
        return torch.cat([self._text(tokens[start : start + batch]) for start in range(0, len(texts), batch)])

    def unread_words(self, texts: Iterable[str]) -> list[str]:
        """The words of texts that training never showed the text tower, each once, in lower case.

        Some token of theirs has an embedding of zeros, as the demo's training leaves those of words that no caption
        held: such words say nothing, or the same as any other. Large CLIPs have read every token.
        """
        model = getattr(self.model, "text", self.model)
        blank = ~model.token_embedding.weight.any(1)
        if not blank.any():
            return []
        words = dict.fromkeys(word for text in texts for word in re.findall(r"[a-z0-9]+", text.lower()))
        tokens = _tokenizer(self.name)(list(words)) if words else []
        ends = (row[1 : int(row.argmax())] for row in tokens)  # between the tokens of start and end
        return [word for word, row in zip(words, ends, strict=True) if blank[row].any()]

    def _text(self, tokens: Tensor) -> Tensor:
        model = self.model
        causal = isinstance(model, open_clip.CLIP) and model.attn_mask is not None
        if not causal or model.text_pool_type != "argmax":
            return model.encode_text(tokens)
        # A causal mask keeps what stands behind the end token from reaching it.
        tokens = tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]
        length = tokens.shape[1]
        x = model.token_embedding(tokens) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
        x = open_clip.transformer.text_global_pool(x, tokens, "argmax")
        projection = model.text_projection
        return projection(x) if isinstance(projection, torch.nn.Linear) else x @ projection


TEXT = (Backbone.encode_text, Backbone._text)
"""The code whose change makes kept text features stale, whatever the method."""


def _tokenizer(name: str):
    return open_clip.get_tokenizer(name) if name in open_clip.list_models() else open_clip.tokenize


def config_file(name: str) -> Path | None:
    """The JSON file behind ``demo`` or a path; none for the names of open_clip."""
    path = DEMO_CONFIG if name == "demo" else Path(name)
    return path if path.suffix == ".json" else None


def temperature_factor(name: str) -> float:
    """What the temperatures of methods are multiplied by on a backbone: ``temperature_factor`` of its config, above 0.

    Methods were published with temperatures that suit the cosines of large CLIPs, whose factor is 1, as is that of any
    config without this key. A backbone whose cosines spread wider needs a larger one: otherwise probabilities are all
    near 0 or 1. It changes no feature. InputError for a factor that is no number above 0.
    """
    path = config_file(name)
    if not path:
        return 1.0
    config(name)  # refuses a file that is none
    factor = json.loads(path.read_text(encoding="utf-8")).get(FACTOR, 1)
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < float("inf"):
        raise InputError(f"The model config {path} has {FACTOR!r} {factor!r}; write a number above 0, or leave it out.")
    return float(factor)


def config(name: str) -> dict:
    """The open_clip model config of a name, of ``demo``, or of the path of a JSON file."""
    path = config_file(name)
    if path:
        if not path.is_file():
            raise InputError(f"The model config {path} does not exist; give an open_clip name or a JSON file.")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"The model config {path} is no JSON ({error}); correct it.") from None
        if not isinstance(found, dict) or not all(
            isinstance(found.get(key), dict) for key in ("vision_cfg", "text_cfg")
        ):
            raise InputError(f"The model config {path} lacks 'vision_cfg' or 'text_cfg'; write it as open_clip's are.")
        return {key: value for key, value in found.items() if key != FACTOR}
    found = open_clip.get_model_config(name)
    if found is None:
        raise InputError(f"open_clip has no model {name!r}; open_clip.list_models() prints the names it has.")
    return found


def load(name: str, weights: str = "demo", precision: str = "fp32", download: bool = False) -> Backbone:
    """A backbone in evaluation mode.

    ``name``: an open_clip ViT, ``demo``, or the path of a model config. ``weights``: the path of a
    safetensors or torch file, ``random:<seed>``, ``demo`` for the ones shipped for it, or a tag of open_clip,
    looked for in data/weights and in the local hub cache and fetched only with ``download``. Raises InputError
    for an unknown name, missing or unfit weights, and towers that are no ViT with a class token.
    """
    seeded = weights.startswith("random:")
    read = None if seeded else _read(locate(name, weights, download))  # what is missing is said before work begins
    settings = config(name)  # once: its file may change while it is used
    model = _build(name, settings)
    mean, std = model.visual.image_mean, model.visual.image_std = _standard(name, weights)
    state = _convert(random_state(model, _seed(weights)) if seeded else read, model)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"The weights {weights} do not fit {name} ({reason}); name the model they belong to."
        ) from None
    model.eval().requires_grad_(False)
    fingerprint = _fingerprint(model)
    key = hashlib.sha256(json.dumps([fingerprint, settings, mean, std], sort_keys=True).encode()).hexdigest()
    return Backbone(name, weights, model, fingerprint, precision, key)


def _standard(name: str, weights: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of the pixels that weights were trained on: CLIP's own unless open_clip knows others."""
    tag = Path(weights).stem.removeprefix(f"{name}-")  # as a file of data/weights is named
    entry = open_clip.pretrained.get_pretrained_cfg(name, tag)
    usual = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    return tuple(list(entry.get(part) or usual[part]) for part in usual)


def skeleton(name: str) -> Backbone:
    """A backbone without weights, on PyTorch's meta device: it computes nothing but shapes, to count with."""
    with torch.device("meta"):
        return Backbone(name, "", _build(name, config(name)).eval(), "")


def _build(name: str, settings: dict) -> torch.nn.Module:
    """The model of a config, without weights; InputError where it has no tower that the methods can read."""
    settings = copy.deepcopy(settings)
    custom = settings.pop("custom_text", False)
    kind = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    if "multimodal_cfg" in settings or "timm_model_name" in settings["vision_cfg"]:
        raise InputError(f"{name} is not an open_clip ViT; windows need its class token (try ViT-B-16-plus-240).")
    if "hf_model_name" in settings["text_cfg"]:
        raise InputError(f"{name} reads its text tower from a hub; choose a model with open_clip's own text tower.")
    for key in ("pretrained_cfg", "tokenizer"):
        settings.pop(key, None)
    model = kind(**settings)
    visual = model.visual
    plain = isinstance(visual, open_clip.transformer.VisionTransformer) and visual.attn_pool is None
    if not plain or visual.pool_type != "tok":
        raise InputError(f"{name} has no class token; windows need one (try ViT-B-16-plus-240).")
    usual = open_clip.transformer.ResidualAttentionBlock
    if not all(type(block) is usual for block in visual.transformer.resblocks):
        raise InputError(f"{name} has attention blocks with parts of their own, which are not computed here; "
                         "choose a model without them (try ViT-B-16-plus-240).")  # fmt: skip
    return model


def _seed(weights: str) -> int:
    try:
        seed = int(weights.removeprefix("random:"))
    except ValueError:
        seed = -1
    if seed < 0:
        raise InputError(f"Weights {weights!r}: write random:<seed> with a whole number from 0.")
    return seed


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return open_clip.factory.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # an unpickler that meets garbage raises anything
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"The weights {path} cannot be read as plain tensors ({reason}); fetch the file again or save its "
            "state dict as safetensors."
        ) from None


def locate(name: str, weights: str, download: bool = False) -> Path:
    """The file behind weights given as path or tag; InputError says which file to fetch and where to put it."""
    if name == weights == "demo":
        return DEMO_WEIGHTS
    path = Path(weights).expanduser()
    for candidate in (path, ROOT / path):
        if candidate.is_file():
            return candidate
    if path.suffix or len(path.parts) > 1:
        raise InputError(f"The weights file {path} does not exist; correct 'weights' of {name}.")
    for suffix in (".safetensors", ".pt", ".bin", ".pth"):
        if (WEIGHTS / f"{name}-{weights}{suffix}").is_file():
            return WEIGHTS / f"{name}-{weights}{suffix}"
    entry = open_clip.pretrained.get_pretrained_cfg(name, weights)
    if entry and bool(entry.get("quick_gelu")) != bool(config(name).get("quick_gelu")):
        raise InputError(f"The weights {weights} need QuickGELU; name the model {name}-quickgelu.")
    if not entry:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise InputError(f"{name} has no weights {weights!r}; tags: {tags}; or give a file or random:<seed>.")
    # The hub entry of laion400m_e32 holds e31, so this tag takes its release file.
    hub = "" if weights == "laion400m_e32" else entry.get("hf_hub", "").rstrip("/")
    if hub and (cached := _cached(hub)):
        return cached
    source = f"open_clip_model.safetensors of the hub repository {hub}" if hub else Path(entry["url"]).name
    if not download:
        place = WEIGHTS / f"{name}-{weights}{'.safetensors' if hub else '.pt'}"
        raise InputError(
            f"The weights {weights} of {name} are not on this machine; fetch {source} and put it at {place}, "
            "or set 'download: true' in the profile."
        )
    return Path(open_clip.download_pretrained(entry, prefer_hf_hub=bool(hub)))


def _cached(hub: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for file in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        found = try_to_load_from_cache(hub, file)
        if isinstance(found, str):
            return Path(found)
    return None


def _convert(state: dict[str, Tensor], model: torch.nn.Module) -> dict[str, Tensor]:
    """fp32 tensors under the model's own names; OpenAI archives carry three counters more."""
    for key in ("input_resolution", "context_length", "vocab_size"):
        state.pop(key, None)
    if isinstance(model, open_clip.CustomTextCLIP):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 over names and fp32 values, the same for every file format of the same weights."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key}{tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().data if value.ndim else value.numpy().tobytes())
    return digest.hexdigest()


# ---------------------------------------------------------------- seeded random weights

_PROJECTIONS = {
    "attn.in_proj_weight": 1.0,
    "attn.out_proj.weight": 0.5,
    "mlp.c_fc.weight": 1.0,
    "mlp.c_proj.weight": 0.25,
}
_BIASES = {"attn.in_proj_bias": 0.1, "attn.out_proj.bias": 0.05, "mlp.c_fc.bias": 0.05, "mlp.c_proj.bias": 0.05}
_TABLES = {"visual.positional_embedding": 0.5, "token_embedding.weight": 0.02, "positional_embedding": 0.01}


def random_state(model: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights drawn by name, each from its own stream keyed by (seed, name): the same on every machine.

    Values can be held in fp16. Every bias and layer norm is random too, so that a missing or swapped
    layer shows in a parity test.
    """
    state = {}
    for key, value in model.state_dict().items():
        name = key.removeprefix("text.")
        if name.endswith("logit_scale"):
            state[key] = torch.full(value.shape, float(np.log(100.0)))
            continue
        mean, deviation = _moments(name, value)
        stream = np.random.default_rng([seed, zlib.crc32(name.encode())])
        drawn = mean + deviation * stream.standard_normal(tuple(value.shape), dtype=np.float32)
        state[key] = torch.from_numpy(drawn.astype(np.float16).astype(np.float32))
    return state


def _moments(name: str, value: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of one tensor's draw."""
    leaf = ".".join(name.split(".")[-2:])
    if leaf.startswith("ln_") or ".ln_" in name:
        return (1.0, 0.1) if name.endswith("weight") else (0.0, 0.1)
    leaf = name.split("resblocks.")[-1].split(".", 1)[-1]
    if leaf in _BIASES:
        return 0.0, _BIASES[leaf]
    if leaf in _PROJECTIONS:
        # widths are read off the block's own side: rows of c_proj and out_proj, columns of the others
        width = value.shape[0] if leaf in ("attn.out_proj.weight", "mlp.c_proj.weight") else value.shape[1]
        return 0.0, _PROJECTIONS[leaf] * width**-0.5
    if name in _TABLES:
        return 0.0, _TABLES[name]
    if name == "visual.conv1.weight":
        return 0.0, float(np.prod(value.shape[1:])) ** -0.5
    return 0.0, (value.shape[0] if value.ndim else 1) ** -0.5


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosines (..., n, m) between the rows of (..., n, D) and (m, D), in fp32."""
    return F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).mT
