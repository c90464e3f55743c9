"""One door to every ViT of open_clip and timm: by name and weights, offline unless told, with a fingerprint.

Which activation weights were trained with, QuickGELU or plain GELU, is in no tensor: it follows from where they come
from (``_origin``), and a backbone that computes the other one is refused.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vlmad_lib import PACKAGE, ROOT, InputError, open_clip
from vlmad_lib.encoders import devices, image_towers, weight_files
from vlmad_lib.encoders.image_towers import TIMM
from vlmad_lib.encoders.vit_blocks import Block

WEIGHTS = ROOT / "data" / "weights"
DEMO_CONFIG = PACKAGE / "demo" / "vlmad-demo.json"
DEMO_WEIGHTS = DEMO_CONFIG.with_suffix(".safetensors")
COUNTERS = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's own files, beside the weights
ACTIVATION = {True: "QuickGELU", False: "GELU"}
NEEDS = TEXT, CLASS_TOKEN, CLIP_BLOCKS = "a text tower", "a class token", "the blocks of CLIP's own ViT"
"""What a method may need of a backbone besides patch tokens, in words."""
HAVING_ALL = ("ViT-B-16-plus-240", "ViT-L-14-336-quickgelu", "demo")  # backbones with all of it
PIXELS = "pixels"  # a backbone without a network or weights, for methods that read pictures as they are
FACTOR = "temperature_factor"  # the one key of a config that open_clip does not know


class Described:
    """What a backbone and its facts alone have in common."""

    name: str
    weights: str
    fingerprint: str
    precision: str
    parameters: int
    activation: str
    has_text: bool
    has_class_token: bool
    is_clip_vit: bool

    @property
    def offers(self) -> set[str]:
        """What it has besides patch tokens, in the words of ``TEXT``, ``CLASS_TOKEN`` and ``CLIP_BLOCKS``."""
        has = {TEXT: self.has_text, CLASS_TOKEN: self.has_class_token, CLIP_BLOCKS: self.is_clip_vit}
        return {part for part, there in has.items() if there}

    @property
    def temperature_factor(self) -> float:
        """What methods' temperatures are multiplied by on it: see the function of this name."""
        return temperature_factor(self.name)

    @property
    def is_random(self) -> bool:
        """Whether the weights are seeded noise, good for tests only."""
        return self.weights.startswith("random:")

    @property
    def is_demo(self) -> bool:
        """Whether the weights are the demo's, good for its drawn pictures only, whatever file holds them."""
        return self.fingerprint == _demo_fingerprint()

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
            "parameters": self.parameters,
            "random": self.is_random,
            "activation": self.activation,
        }


@dataclass(frozen=True)
class Facts(Described):
    """What is known of a backbone without its weights in memory: enough to plan a run and to score what it encoded.

    The fields are those of ``Backbone``; ``load`` gives that backbone where something must be encoded.
    """

    name: str
    weights: str
    fingerprint: str
    precision: str
    key: str
    warning: str
    note: str
    image_size: int
    grid: int
    patch_size: int
    width: int
    depth: int
    prefix_tokens: int
    has_class_token: bool
    has_text: bool
    is_clip_vit: bool
    parameters: int
    activation: str
    device: torch.device = devices.CPU
    load: Callable[[], Backbone] | None = field(default=None, repr=False, compare=False)

    @property
    def loaded(self) -> Backbone:
        """The backbone itself."""
        return self.load()

    def as_json(self) -> str:
        """What is the same on every device and in every precision, to be kept."""
        values = asdict(replace(self, load=None))
        return json.dumps({key: value for key, value in values.items() if key not in ("device", "load", "precision")})


@dataclass(frozen=True)
class Backbone(Described):
    """A frozen CLIP or image tower with what is needed to use it; ``fingerprint`` is the SHA-256 of its weights.

    ``key`` is a digest of what decides its features: weights, architecture and the pixels' mean and deviation. Layers
    without weights, such as QuickGELU or the number of heads, are in no fingerprint. ``warning`` and ``note`` are
    sentences on the activation where it contradicts the weights' origin, or where that is not known; else empty.
    ``tokenizer`` names one of a hub, "" for CLIP's own. ``device`` is where its weights are and its features come from.
    """

    name: str
    weights: str
    model: torch.nn.Module = field(repr=False)
    fingerprint: str
    precision: str = "fp32"
    key: str = ""
    warning: str = ""
    note: str = ""
    tokenizer: str = ""
    device: torch.device = devices.CPU

    @property
    def loaded(self) -> Backbone:
        """Itself, as ``Facts`` have it."""
        return self

    @property
    def visual(self) -> Any:
        """The image tower."""
        return self.model.visual

    @cached_property
    def tower(self) -> image_towers.ClipTower | image_towers.TimmTower:
        """How its image tower is read (``image_towers.encode_tokens``)."""
        return image_towers.open_tower(self.visual)

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.tower.image_size

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.tower.patch_size

    @property
    def grid(self) -> int:
        """Patch tokens along one side."""
        return self.tower.grid

    @property
    def width(self) -> int:
        """Numbers of a patch token."""
        return self.tower.width

    @property
    def depth(self) -> int:
        """Blocks of the image tower."""
        return self.tower.depth

    @property
    def prefix_tokens(self) -> int:
        """Tokens before those of the patches: class token and registers."""
        return self.tower.prefix_tokens

    @property
    def has_class_token(self) -> bool:
        """Whether a class token stands for the whole image, and no mean or attention over its patches."""
        return self.tower.has_class_token

    @property
    def has_text(self) -> bool:
        """Whether it has a text tower."""
        return not isinstance(self.model, ImageModel)

    @property
    def is_clip_vit(self) -> bool:
        """Whether its image tower is open_clip's own ViT with a class token, whose blocks methods can take apart."""
        return self.has_class_token and isinstance(self.tower, image_towers.ClipTower)

    @property
    def parameters(self) -> int:
        """Numbers of the model, of both towers where it has two."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def activation(self) -> str:
        """``QuickGELU`` or ``GELU`` as a rule, which its image tower's blocks compute; no tensor tells."""
        return self.tower.activation

    def known(self, load: Callable[[], Backbone] | None = None) -> Facts:
        """Its facts, with what loads it again."""
        names = [name for name in Facts.__dataclass_fields__ if name != "load"]
        return Facts(**{name: getattr(self, name) for name in names}, load=load)

    @cached_property
    def blocks(self) -> list[Block]:
        """The image tower's residual blocks for inference; the precision is that of their matrix products alone."""
        if not isinstance(self.tower, image_towers.ClipTower):
            raise InputError(f"{self.name} has not {CLIP_BLOCKS}; choose one that has, such as {HAVING_ALL[0]}.")
        dtype = devices.TYPES[self.precision]
        return [Block(block, dtype) for block in self.visual.transformer.resblocks]

    def pack(self) -> None:
        """Pack its image tower's weights for inference now, not with the first image."""
        self.tower.pack(self)

    @cached_property
    def window_tokens_at_once(self) -> int:
        """Tokens that one pass over windows takes: see ``devices.plan_tokens``."""
        return devices.plan_tokens(self.device, self.width)

    def normalise(self, images: np.ndarray) -> Tensor:
        """(N, size, size, 3) uint8 RGB -> (N, 3, size, size) float32 by its own mean and deviation, on its device.

        The bytes go there, from pinned memory to a GPU, and become numbers there.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(images))
        if self.device.type == "cuda" and torch.cuda.is_available():
            pixels = pixels.pin_memory()
        pixels = pixels.to(self.device, non_blocking=True)
        return self.standardise(pixels.permute(0, 3, 1, 2).float() / 255)

    def standardise(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) in 0..1 less the mean that its weights were trained with, by their deviation."""
        mean = getattr(self.visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
        std = getattr(self.visual, "image_std", None) or open_clip.OPENAI_DATASET_STD
        mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (mean, std))
        return (pixels - mean) / std

    @torch.inference_mode()
    def encode_text(self, texts: list[str], batch: int = 128) -> Tensor:
        """Text embeddings (N, D) in fp32, not normalised; padding that cannot matter is cut off."""
        if not self.has_text:
            raise InputError(f"{self.name} has not {TEXT}; choose a backbone that has, such as {HAVING_ALL[0]}.")
        tokens = _tokenizer(self)(texts)
        with devices.multiply_in("fp32", self.device):
            return torch.cat([self._text(tokens[start : start + batch]) for start in range(0, len(texts), batch)])

    def unread_words(self, texts: Iterable[str]) -> list[str]:
        """The words of texts that training never showed the text tower, each once, in lower case.

        Some token of theirs has an embedding of zeros, as the demo's training leaves those of words that no caption
        held: such words say nothing, or the same as any other. Large CLIPs have read every token.
        """
        model = getattr(self.model, "text", self.model)
        blank = ~model.token_embedding.weight.any(1).cpu()
        if not blank.any():
            return []
        words = dict.fromkeys(word for text in texts for word in re.findall(r"[a-z0-9]+", text.lower()))
        tokens = _tokenizer(self)(list(words)) if words else []
        ends = (row[1 : int(row.argmax())] for row in tokens)  # between the tokens of start and end
        return [word for word, row in zip(words, ends, strict=True) if blank[row].any()]

    def _text(self, tokens: Tensor) -> Tensor:
        """The embeddings of tokens (N, length) that are on the CPU."""
        tower = text_tower(self.model)
        causal = tower.attn_mask is not None
        if not causal or tower.pool_type != "argmax":
            return self.model.encode_text(tokens.to(self.device))
        # A causal mask keeps what stands behind the end token from reaching it.
        length = int(tokens.argmax(dim=-1).max()) + 1
        tokens = tokens[:, :length].to(self.device)
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        x = tower.ln_final(tower.transformer(x, attn_mask=tower.attn_mask[:length, :length]))
        return tower.project(open_clip.transformer.text_global_pool(x, tokens, "argmax"))


class ImageModel(torch.nn.Module):
    """A model of an image tower alone."""

    def __init__(self, visual: torch.nn.Module):
        super().__init__()
        self.visual = visual


@dataclass(frozen=True)
class TextTower:
    """The parts of a text tower, wherever open_clip's model keeps them."""

    token_embedding: torch.nn.Module
    positional_embedding: Tensor
    transformer: torch.nn.Module
    ln_final: torch.nn.Module
    text_projection: torch.nn.Module | Tensor | None
    attn_mask: Tensor | None
    pool_type: str
    context_length: int

    def project(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., D), with bias where the model has one."""
        if self.text_projection is None:
            return x
        linear = isinstance(self.text_projection, torch.nn.Linear)
        return self.text_projection(x) if linear else x @ self.text_projection


def text_tower(model: torch.nn.Module) -> TextTower:
    """The text tower of an open_clip model, of either of its classes."""
    own = getattr(model, "text", model)  # CustomTextCLIP keeps it apart
    shared = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection", "attn_mask")
    pool = own.text_pool_type if own is model else own.pool_type
    return TextTower(*(getattr(own, name) for name in shared), pool, own.context_length)


def _tokenizer(backbone: Backbone):
    if backbone.name in open_clip.list_models():
        return open_clip.get_tokenizer(backbone.name)
    return partial(open_clip.tokenize, context_length=text_tower(backbone.model).context_length)


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
    read_config(name)  # refuses a file that is none
    factor = json.loads(path.read_text(encoding="utf-8")).get(FACTOR, 1)
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < float("inf"):
        raise InputError(f"The model config {path} has {FACTOR!r} {factor!r}; write a number above 0, or leave it out.")
    return float(factor)


def read_config(name: str) -> dict:
    """The open_clip model config of a name, of ``demo``, or of the path of a JSON file; of timm's models the name."""
    if name.startswith(TIMM):
        return {"timm_model_name": image_towers.split_name(name)[0]}
    if name == PIXELS:
        return {}
    path = config_file(name)
    if path:
        if not path.is_file():
            raise InputError(f"The model config {path} does not exist; give an open_clip name or a JSON file.")
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"The model config {path} is no JSON ({error}); correct it.") from None
        if not isinstance(settings, dict) or not all(
            isinstance(settings.get(key), dict) for key in ("vision_cfg", "text_cfg")
        ):
            raise InputError(f"The model config {path} lacks 'vision_cfg' or 'text_cfg'; write it as open_clip's are.")
        return {key: value for key, value in settings.items() if key != FACTOR}
    settings = open_clip.get_model_config(name)
    if settings is None:
        raise InputError(f"open_clip has no model {name!r}; open_clip.list_models() prints the names it has.")
    return settings


def load_backbone(
    name: str, weights: str = "demo", precision: str = "fp32", download: bool = False, plain_gelu: bool = False,
    device: str = "cpu",
) -> Backbone:  # fmt: skip
    """A backbone in evaluation mode, its weights read and fingerprinted on the CPU and then moved to a device.

    ``name``: an open_clip model whose image tower is a ViT, timm's as ``timm/NAME`` or ``timm/NAME.TAG``, ``demo``, or
    the path of a model config. ``weights``: the path of a file of them (``weight_files``; CLIPModel of Hugging Face
    and Meta's own DINO files too), ``random:<seed>``, ``demo`` for the ones shipped, or a tag of open_clip or timm,
    looked for in data/weights and in the local hub cache and fetched only with ``download``.
    ``plain_gelu``: weights that need QuickGELU are read by plain GELU on purpose, as a method's official code does.
    ``device``: as a profile names it. Raises InputError for an unknown name, missing or unfit weights, those that need
    the other activation, towers without patch tokens, and a device or precision that is not there.
    """
    place = devices.choose_device(device)
    devices.refuse_precision(precision, place)
    settings = read_config(name)  # once: its file may change while it is used
    warning = note = ""
    if weights.startswith("random:"):
        model = _build(name, settings)
        state = random_state(model, _seed(weights))
    elif name == PIXELS:
        locate_weights(name, weights)
        model, state = _build(name, settings), {}
    else:
        path = locate_weights(name, weights, download, plain_gelu)  # what is missing is said before work begins
        state = weight_files.select_tensors(weight_files.read_tensors(path))
        warning, note = _judge(name, weights, settings, *_origin(name, weights, path, state), plain_gelu)
        model = _build(name, settings)
        state = _convert(state, model, path)
    mean, std = model.visual.image_mean, model.visual.image_std = _standard(name, weights)
    if name != PIXELS and (misfit := _misfit(state, model.state_dict())):
        raise InputError(f"The weights {weights} do not fit {name}: {misfit}; name the model they belong to.")
    model.load_state_dict(state)
    model.eval().requires_grad_(False)
    fingerprint = _fingerprint(model)
    if fingerprint == _demo_fingerprint() and settings != read_config("demo"):
        raise InputError(
            f"The weights {weights} are the demo's, and {name} computes them otherwise than they were trained; "
            "name 'backbone: demo'."
        )
    key = hashlib.sha256(json.dumps([fingerprint, settings, mean, std], sort_keys=True).encode()).hexdigest()
    tokenizer = settings.get("text_cfg", {}).get("hf_tokenizer_name") or ""
    return Backbone(name, weights, model.to(place), fingerprint, precision, key, warning, note, tokenizer, place)


def _standard(name: str, weights: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of the pixels that weights were trained on: those of timm's list for its models, else CLIP's.

    Some weights of open_clip have others, as its list says.
    """
    if name.startswith(TIMM):
        return image_towers.read_moments(name, weights)
    if name == PIXELS:
        return [0.0] * 3, [1.0] * 3
    entry = _entry(name, weights) or {}
    usual = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    return tuple(list(entry.get(moment) or usual[moment]) for moment in usual)


# ---------------------------------------------------------------- where weights come from


@lru_cache(maxsize=1)
def _published() -> dict[str, dict]:
    """open_clip's entries by the names that their files have, and by the folders that a hub's cache keeps them in."""
    entries = {}
    for model, tag in open_clip.list_pretrained():
        entry = open_clip.pretrained.get_pretrained_cfg(model, tag)
        url, hub = entry.get("url", ""), entry.get("hf_hub", "").strip("/")
        names = [f"{model}-{tag}", f"models--{hub.replace('/', '--')}" if hub else ""]
        # OpenAI's are published as ViT-B-32.pt, as others' files are called too: their counters tell
        names += [] if "openai" in url else [Path(url).stem]
        entries |= {name.casefold(): entry for name in names if name}
    return entries


def _entry(name: str, weights: str | Path) -> dict | None:
    """open_clip's entry of a tag, or of the file that a path names; None where it has none."""
    pieces = Path(weights).parts or ("",)
    end = next((end for end in weight_files.SUFFIXES if pieces[-1].endswith(end)), "")
    places = [pieces[-1].removesuffix(end), *pieces[:-1]]
    entries = [entry for place in places if (entry := _published().get(place.casefold()))]
    return open_clip.pretrained.get_pretrained_cfg(name, str(weights)) or (entries[0] if entries else None)


def _origin(name: str, weights: str, path: Path, state: dict[str, Tensor]) -> tuple[str, bool | None]:
    """What tells where weights come from, and whether they need QuickGELU: None where nothing tells.

    The one place that decides it, for tags and files alike: by what is in the file, by the config beside one of the
    library transformers, by open_clip's entry of the tag or the file's name, and by OpenAI's name in the file's.
    """
    if path == DEMO_WEIGHTS:
        return "the demo's card", False
    if all(key in state for key in COUNTERS):
        return "the counters that OpenAI's own files carry", True
    if _is_transformers(state) and (act := _hidden_act(path.with_name("config.json"))):
        return "'hidden_act' in the config.json beside them", act == "quick_gelu"
    entry = _entry(name, weights) or _entry(name, path)
    if entry is not None:
        return "open_clip's list of weights", bool(entry.get("quick_gelu"))
    return ("OpenAI's name in that of the file", True) if "openai" in path.name.casefold() else ("", None)


def _hidden_act(beside: Path) -> str:
    """The activation that a config of the library transformers names, "" where there is none."""
    try:
        settings = json.loads(beside.read_text(encoding="utf-8"))
        # the library's own default, which its configs leave out
        return (settings.get("vision_config") or settings.get("vision_config_dict") or {}).get(
            "hidden_act", "quick_gelu"
        )
    except (OSError, ValueError, AttributeError):
        return ""


def _judge(
    name: str, weights: str, settings: dict, origin: str, needed: bool | None, plain_gelu: bool
) -> tuple[str, str]:
    """A warning and a note on the activation; InputError where a named model computes another one than weights need."""
    quick = bool(settings.get("quick_gelu"))
    if "timm_model_name" in settings.get("vision_cfg", settings):  # timm's architectures have theirs
        return "", ""
    if needed is None:
        return "", (
            f"Where the weights {Path(weights).name} of {Path(name).name} come from is not known, nor the activation "
            f"they were trained with; {ACTIVATION[quick]} is what was computed."
        )
    if needed == quick or (needed and plain_gelu):
        return "", ""
    base, own_config = name.removesuffix("-quickgelu"), Path(name).suffix == ".json"
    remedy = f"set 'quick_gelu' in {name} to {str(needed).lower()}" if own_config else (
        f"name the model {base}-quickgelu" if needed else f"name the model {base}"
    )  # fmt: skip
    sentence = f"The weights {weights} need {ACTIVATION[needed]}, as {origin} tells, and {name} computes "
    sentence += f"{ACTIVATION[quick]}; {remedy}."
    if own_config and origin != "the demo's card":  # whoever writes a config may know better
        return sentence, ""
    raise InputError(sentence)


def build_skeleton(name: str) -> Backbone:
    """A backbone without weights, on PyTorch's meta device: it computes nothing but shapes, to count with."""
    with torch.device("meta"):
        return Backbone(name, "", _build(name, read_config(name)).eval().requires_grad_(False), "")


def _build(name: str, settings: dict) -> torch.nn.Module:
    """The model of a config, without weights; InputError where its image tower has no patch tokens.

    Where its text tower is one of a hub, or part of a decoder, it is the image tower alone.
    """
    if name.startswith(TIMM):
        return ImageModel(image_towers.build_timm(name))
    if name == PIXELS:
        return ImageModel(image_towers.Pixels())
    settings = copy.deepcopy(settings)
    custom = settings.pop("custom_text", False)
    for key in ("pretrained_cfg", "tokenizer"):
        settings.pop(key, None)
    if "multimodal_cfg" in settings or "hf_model_name" in settings["text_cfg"]:
        parts = settings["embed_dim"], settings["vision_cfg"], bool(settings.get("quick_gelu"))
        model = ImageModel(open_clip.model._build_vision_tower(*parts))
    else:
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**settings)
    image_towers.refuse_tower(model.visual, name)
    return model


def _seed(weights: str) -> int:
    try:
        seed = int(weights.removeprefix("random:"))
    except ValueError:
        seed = -1
    if seed < 0:
        raise InputError(f"Weights {weights!r}: write random:<seed> with a whole number from 0.")
    return seed


def locate_weights(name: str, weights: str, download: bool = False, plain_gelu: bool = False) -> Path | None:
    """The file behind weights given as path or tag; InputError says which file to fetch and where to put it.

    None for ``pixels``, which has none.

    A tag is a tag even where a file of this name lies about; one that needs the other activation is refused
    before anything is fetched (``plain_gelu`` as in ``load_backbone``).
    """
    if name == PIXELS:
        if weights != "none":
            raise InputError(f"The backbone {PIXELS} has no weights {weights!r}; write 'weights: none' beside it.")
        return None
    if weights == "demo":
        if name == "demo":
            return DEMO_WEIGHTS
        raise InputError(f"The weights demo belong to 'backbone: demo' alone; name weights of {name}.")
    path = Path(weights).expanduser()
    of_timm = name.startswith(TIMM) and image_towers.read_entry(name, weights)
    entry = of_timm or ({} if name.startswith(TIMM) else open_clip.pretrained.get_pretrained_cfg(name, weights))
    if entry and not of_timm:
        _judge(
            name, weights, read_config(name), "open_clip's list of weights", bool(entry.get("quick_gelu")), plain_gelu
        )
    elif not entry:
        for candidate in (path, ROOT / path):
            if candidate.is_file() or (candidate.is_dir() and (path.suffix or len(path.parts) > 1)):
                return candidate  # of a folder the reader says what is in it
        if path.suffix or len(path.parts) > 1:
            raise InputError(f"The weights file {path} does not exist; correct 'weights' of {name}.")
    base = name.removesuffix("-quickgelu")
    stems = [f"{model}-{weights}" for model in dict.fromkeys([name, base, f"{base}-quickgelu"])]  # one file serves both
    stems = of_timm["stems"] if of_timm else stems
    for stem in stems:
        for suffix in weight_files.SUFFIXES:
            if (WEIGHTS / f"{stem}{suffix}").is_file():
                return WEIGHTS / f"{stem}{suffix}"
    if not entry:
        if name == "demo":
            raise InputError(f"The backbone demo has no weights {weights!r}; write 'weights: demo' beside it.")
        own_tags = (
            image_towers.list_tags(name) if name.startswith(TIMM) else open_clip.list_pretrained_tags_by_model(name)
        )
        tags = ", ".join(own_tags) or "none"
        raise InputError(f"{name} has no weights {weights!r}; tags: {tags}; or give a file or random:<seed>.")
    # The hub entry of laion400m_e32 holds e31, so this tag takes its release file.
    hub = "" if weights == "laion400m_e32" else entry.get("hf_hub", "").rstrip("/")
    if hub and (cached := _cached(hub)):
        return cached
    file = "model.safetensors" if of_timm else "open_clip_model.safetensors"
    source = f"{file} of the hub repository {hub}" if hub else Path(entry["url"]).name
    place = WEIGHTS / f"{stems[0]}{'.safetensors' if hub else '.pt'}"
    if not download:
        raise InputError(
            f"The weights {weights} of {name} are not on this machine; fetch {source} and put it at {place}, "
            "or set 'download: true' in the profile."
        )
    fetch = partial(open_clip.download_pretrained, entry, prefer_hf_hub=bool(hub))
    if of_timm:
        fetch = partial(_download, hub, file)
    return _fetched(fetch, f"The weights {weights} of {name}", f"fetch {source}", place)


def _fetched(fetch: Callable[[], str], what: str, remedy: str, place: Path) -> Path:
    """The file that was downloaded; InputError says whether the network or the disk was to blame."""
    try:
        return Path(fetch())
    except Exception as error:  # the hub's client and urllib raise many kinds
        chain, cause = [error], error
        while (cause := cause.__cause__ or cause.__context__) and cause not in chain:
            chain.append(cause)
    disk = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EROFS: "it is read-only",
            errno.EACCES: "you may not write there"}  # fmt: skip
    reasons = [disk[link.errno] for link in chain if isinstance(link, OSError) and link.errno in disk]
    if reasons:
        raise InputError(f"{what} were fetched but could not be kept in your download cache: {reasons[0]}.")
    raise InputError(
        f"{what} could not be fetched: there is no connection to their server, or it refuses; try again with a "
        f"network, or elsewhere {remedy} and put it at {place}."
    )


def _download(hub: str, file: str) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(hub, file)


def _cached(hub: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    names = ("model.safetensors", "pytorch_model.bin")
    for file in (f"{start}{name}" for start in ("open_clip_", "") for name in names):
        place = try_to_load_from_cache(hub, file)
        if isinstance(place, str):
            return Path(place)
    return None


def _convert(state: dict[str, Tensor], model: torch.nn.Module, path: Path) -> dict[str, Tensor]:
    """fp32 tensors under the model's own names, without the counters and the mask that OpenAI's files carry.

    Of a file with two towers an ``ImageModel`` takes those of its own.
    """
    if isinstance(model.visual, image_towers.TimmImage):
        return image_towers.convert_timm(state, model.visual.trunk, path)
    if _is_transformers(state):
        state = _from_transformers(state, path)
    state = {key: value for key, value in state.items() if key not in COUNTERS and not key.endswith("attn_mask")}
    if isinstance(model, open_clip.CustomTextCLIP) and any(key.startswith("transformer.") for key in state):
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    if isinstance(model, ImageModel):
        state = {key: value for key, value in state.items() if key.startswith("visual.")}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _is_transformers(state: dict[str, Tensor]) -> bool:
    return any(key.startswith(("text_model.", "vision_model.", "clip.text_model.")) for key in state)


_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_OUTER = {
    "logit_scale": "logit_scale",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
}
_NORMS = {
    "vision_model.pre_layrnorm": "visual.ln_pre",  # the library's own spelling
    "vision_model.post_layernorm": "visual.ln_post",
    "text_model.final_layer_norm": "ln_final",
}
_TOWERS = {"vision_model.encoder.layers.": "visual.transformer.resblocks.",
           "text_model.encoder.layers.": "transformer.resblocks."}  # fmt: skip


def _from_transformers(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """open_clip's names for the tensors of a CLIPModel of the library transformers; InputError for other models."""
    tensors, left = {}, []
    for key, value in state.items():
        tower = next((start for start in _TOWERS if key.startswith(start)), "")
        layer, _, rest = key.removeprefix(tower).partition(".") if tower else ("", "", key)
        module, _, leaf = rest.rpartition(".")
        if key.endswith("position_ids"):
            continue
        if key in _OUTER:
            tensors[_OUTER[key]] = value.T if key.endswith("projection.weight") else value
        elif not tower and module in _NORMS:
            tensors[f"{_NORMS[module]}.{leaf}"] = value
        elif tower and module in _BLOCK:
            tensors[f"{_TOWERS[tower]}{layer}.{_BLOCK[module]}.{leaf}"] = value
        elif tower and module == "self_attn.q_proj":  # of query, key and value open_clip makes one matrix
            matrices = [state.get(f"{tower}{layer}.self_attn.{letter}_proj.{leaf}") for letter in "qkv"]
            if all(letter is not None for letter in matrices):
                tensors[f"{_TOWERS[tower]}{layer}.attn.in_proj_{leaf}"] = torch.cat(matrices)
        elif not (tower and module in ("self_attn.k_proj", "self_attn.v_proj")):
            left.append(key)
    lacking = [key for key in _OUTER if _OUTER[key] not in tensors]
    if left or lacking:
        why = f"it lacks {lacking[0]}" if lacking else f"it holds {left[0]}"
        raise InputError(
            f"{path} is a file of the library transformers, but of no whole CLIPModel ({why}); fetch one with both "
            "towers, or open_clip's own file of these weights."
        )
    return tensors


def _misfit(state: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """How weights differ from those of a model in names and shapes; empty where they fit."""
    shape = lambda value: " x ".join(map(str, value.shape)) or "a number"  # noqa: E731
    lacking, more = [key for key in expected if key not in state], [key for key in state if key not in expected]
    other = [key for key in expected if key in state and expected[key].shape != state[key].shape]
    differences = [f"{verb} {keys[0]}" + (f" and {len(keys) - 1} more tensors" if len(keys) > 1 else "")
            for verb, keys in (("they lack", lacking), ("they hold besides", more)) if keys]  # fmt: skip
    differences += [f"{key} is {shape(state[key])}, it needs {shape(expected[key])}" for key in other[:1]]
    if not state:
        return "there are no tensors by name in them"
    return ", ".join(differences)


@lru_cache(maxsize=1)
def _demo_fingerprint() -> str:
    """The fingerprint of the demo's weights, without a model."""
    return _digest(weight_files.read_tensors(DEMO_WEIGHTS))


def _fingerprint(model: torch.nn.Module) -> str:
    """SHA-256 over names and fp32 values, the same for every file format of the same weights."""
    return _digest(model.state_dict())


def _digest(state: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        value = value.float() if value.is_floating_point() else value
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

_TIMM_TABLES = {"pos_embed": 0.2, "cls_token": 0.5, "reg_token": 0.5, "latent": 0.5}


def random_state(model: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights drawn by name, each from its own stream keyed by (seed, name): the same on every machine.

    Values can be held in fp16. Every bias and layer norm is random too, so that a missing or swapped
    layer shows in a parity test. Buffers, of batch norms for instance, stay as they are.
    """
    state, parameters = {}, dict(model.named_parameters())
    for key, value in model.state_dict().items():
        if key not in parameters:
            state[key] = value
            continue
        name = key.removeprefix("text.").removeprefix("visual.trunk.")
        if name.endswith("logit_scale"):
            state[key] = torch.full(value.shape, float(np.log(100.0)))
            continue
        mean, deviation = (_timm_moments if key.startswith("visual.trunk.") else _moments)(name, value)
        state[key] = draw_named(seed, name, tuple(value.shape), mean, deviation)
    return state


def draw_named(seed: int, name: str, shape: tuple[int, ...], mean: float, deviation: float) -> Tensor:
    """fp32 normal numbers from a stream keyed by (seed, name), rounded to what fp16 holds."""
    stream = np.random.default_rng([seed, zlib.crc32(name.encode())])
    drawn = mean + deviation * stream.standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(np.asarray(drawn, np.float16).astype(np.float32))  # of a single number too


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


def _timm_moments(name: str, value: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the draw of one of timm's tensors, such that activations stay near 1."""
    parent, leaf = ["", *name.split(".")][-2:]
    if "gamma" in leaf:  # of layer scale
        return 0.8, 0.2
    if leaf.endswith("bias"):
        return 0.0, 0.05
    if leaf in _TIMM_TABLES:
        return 0.0, _TIMM_TABLES[leaf]
    if value.ndim == 1:  # of norms
        return 1.0, 0.1
    return 0.0, (0.5 if parent in ("proj", "fc2") else 1.0) * float(np.prod(value.shape[1:])) ** -0.5


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosines (..., n, m) between the rows of (..., n, D) and (m, D), in fp32."""
    return F.normalize(first.float(), dim=-1) @ F.normalize(second.float(), dim=-1).mT
