"""One reading of every image tower: patch tokens, the residual stream after any block, the whole image's embedding.

Towers are open_clip's own ViT and timm's, alone or within open_clip. What they differ in stands here: positions at
other sizes than the native one, class tokens and registers, pooling, and which of them ``vit_blocks.Block`` computes.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmad_lib import InputError, Later, open_clip
from vlmad_lib.encoders import devices
from vlmad_lib.encoders.vit_blocks import Block

if TYPE_CHECKING:
    from vlmad_lib.encoders.backbones import Backbone

timm = Later("timm")  # it takes as long as open_clip, which imports it
TIMM = "timm/"  # what the names of timm's models begin with here
EXAMPLE = "timm/vit_small_patch14_dinov2.lvd142m"
OFFSET = 0.1  # that DINOv2 adds to a grid before it divides by its table's (its interpolate_offset)
ACTIVATIONS = {"QuickGELU": "QuickGELU", "SiLU": "SwiGLU", "SwiGLU": "SwiGLU"}


@dataclass(frozen=True)
class Tokens:
    """What a tower makes of images, fp32, none of it brought to length one.

    ``patches`` (N, P, width) of the last block after the final layer norm, row by row; where a tower has none for its
    tokens, as they are. ``blocks``: by number, from 1, (N, P, width) of the raw residual stream after that block.
    ``image`` (N, D): the class token after norm and projection, or what the tower's own pooling makes of its tokens.
    ``class_token`` (N, width) after the norm; None where no class token stands for the image.
    """

    patches: Tensor
    blocks: dict[int, Tensor]
    image: Tensor
    class_token: Tensor | None


@torch.inference_mode()
def encode_tokens(backbone: Backbone, images: Tensor, blocks: Collection[int] = (), resize: str = "bicubic") -> Tokens:
    """The tokens of normalised images (N, 3, H, W), sides whole multiples of the patch, with those after some blocks.

    ``resize``: how open_clip's positions are brought to another grid than their own, ``bicubic`` as open_clip does or
    ``bilinear``; timm's towers have one way each. Raises InputError for a block that the backbone does not have, and
    for sides that it cannot read.
    """
    tower = backbone.tower
    if wrong := [number for number in blocks if not 1 <= number <= tower.depth]:
        raise InputError(f"There is no block {wrong[0]}; {backbone.name} has blocks 1 to {tower.depth}.")
    height, width = images.shape[-2:]
    if (height, width) != (tower.image_size,) * 2:
        if tower.fixed:
            raise InputError(
                f"{backbone.name} reads pictures of {tower.image_size} pixels only, not {width}x{height}; leave the "
                "size of the input out, or choose another backbone."
            )
        if height % tower.patch_size or width % tower.patch_size:
            raise InputError(
                f"{width}x{height} pixels are no whole patches of {tower.patch_size} pixels, as {backbone.name} has."
            )
    return tower.encode(backbone, images, blocks, resize)


def open_tower(visual: nn.Module) -> ClipTower | TimmTower | Pixels:
    """How to read a tower that ``refuse_tower`` lets pass."""
    if isinstance(visual, Pixels):
        return visual
    return TimmTower(visual) if hasattr(visual, "trunk") else ClipTower(visual)


def refuse_tower(visual: nn.Module, name: str) -> None:
    """InputError for towers without patch tokens, or with parts that are not computed here."""
    trunk = getattr(visual, "trunk", None)
    if trunk is None and isinstance(visual, open_clip.transformer.VisionTransformer):
        usual = open_clip.transformer.ResidualAttentionBlock
        if not all(type(block) is usual for block in visual.transformer.resblocks):
            raise InputError(f"{name} has attention blocks with parts of their own, which are not computed here; "
                             "choose a model without them (try ViT-B-16-plus-240).")  # fmt: skip
    elif not all(hasattr(trunk, part) for part in ("blocks", "patch_embed", "num_prefix_tokens", "embed_dim")):
        raise InputError(f"{name} is no ViT and has no patch tokens; choose one that is (try ViT-B-16-plus-240).")


# ---------------------------------------------------------------- open_clip's own ViT


class ClipTower:
    """open_clip's VisionTransformer: the class token first, blocks by ``vit_blocks.Block``."""

    fixed = False  # whether it reads pictures of its own size only
    prefix_tokens = 1

    def __init__(self, visual: nn.Module):
        self.visual = visual
        self.image_size, self.patch_size = visual.image_size[0], visual.patch_size[0]
        self.grid, self.depth = visual.grid_size[0], len(visual.transformer.resblocks)
        self.width = visual.class_embedding.shape[0]
        self.has_class_token = visual.attn_pool is None and visual.pool_type == "tok"

    @property
    def activation(self) -> str:
        """``QuickGELU`` or ``GELU``, which its blocks compute; no tensor tells."""
        return _name_activation(self.visual.transformer.resblocks[0].mlp.gelu)

    def pack(self, backbone: Backbone) -> None:
        """Pack the weights of its blocks."""
        _ = backbone.blocks

    def encode(self, backbone: Backbone, images: Tensor, numbers: Collection[int], resize: str) -> Tokens:
        """See ``encode_tokens``."""
        visual, kept = self.visual, {}
        patches = visual.conv1(images)
        tokens = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches.flatten(2).mT], 1)
        tokens = visual.ln_pre(tokens + resize_positions(visual, patches.shape[-2:], resize))
        for number, block in enumerate(backbone.blocks, 1):
            tokens = block(tokens)
            if number in numbers:
                kept[number] = tokens[:, 1:].float()
        image, _ = visual._pool(tokens)
        image = image if visual.proj is None else image @ visual.proj
        normed = tokens if visual.attn_pool is not None else visual.ln_post(tokens)  # that norms what is pooled
        first = normed[:, 0].float() if self.has_class_token else None
        return Tokens(normed[:, 1:].float(), kept, image.float(), first)


def resize_positions(visual: nn.Module, grid: Iterable[int], resize: str = "bilinear") -> Tensor:
    """(1 + rows columns, width) position embedding of open_clip's ViT for a grid, its patches resized.

    ``bicubic`` as open_clip does, with antialias; ``cubic`` likewise without it, as MuSc's official code does.
    """
    table, grid = visual.positional_embedding, tuple(grid)
    patches = table[1:].unflatten(0, visual.grid_size).permute(2, 0, 1)[None]
    patches = patches.cpu() if table.device.type == "mps" else patches  # which has no bicubic one with antialias
    if grid != tuple(visual.grid_size):
        mode = "bicubic" if resize == "cubic" else resize
        patches = F.interpolate(patches, grid, mode=mode, align_corners=False, antialias=resize == "bicubic")
    return torch.cat([table[:1], patches[0].flatten(1).T.to(table.device)])


class Pixels(nn.Module):
    """No network but the picture itself, in 0..1, whose patches are its pixels; it stands for a tower and reads itself.

    Methods that train a network of their own read it; it has no weights, no class token and no blocks.
    """

    fixed = has_class_token = False
    patch_size, prefix_tokens, depth, width = 1, 0, 0, 3
    image_size = grid = 128
    activation = "none"

    def pack(self, backbone: Backbone) -> None:
        """There is nothing to pack."""

    def encode(self, backbone: Backbone, images: Tensor, numbers: Collection[int], resize: str) -> Tokens:
        """See ``encode_tokens``: the colours of the pixels, and their mean for the whole image."""
        colours = images.flatten(2).mT
        return Tokens(colours, {}, colours.mean(1), None)


# ---------------------------------------------------------------- timm's


class TimmImage(nn.Module):
    """A timm ViT as an image tower of its own, with open_clip's names for its parts."""

    def __init__(self, trunk: nn.Module):
        super().__init__()
        self.trunk, self.head = trunk, nn.Identity()


def split_name(name: str) -> tuple[str, str]:
    """The architecture and the tag, "" for none, of ``timm/NAME`` or ``timm/NAME.TAG``; InputError for unknown ones."""
    architecture, _, tag = name.removeprefix(TIMM).partition(".")
    if not timm.is_model(architecture):
        raise InputError(f"timm has no model {architecture!r}; timm.list_models('vit_*') prints the names it has.")
    if tag and tag not in (tags := list_tags(name)):
        raise InputError(f"timm has no {architecture} with the tag {tag!r}; tags: {', '.join(tags) or 'none'}.")
    return architecture, tag


@cache
def list_tags(name: str) -> list[str]:
    """The tags of timm's published weights of an architecture."""
    architecture, _, _ = name.removeprefix(TIMM).partition(".")
    return [known.partition(".")[2] for known in timm.list_models(f"{architecture}.*", pretrained=True)]


def read_moments(name: str, weights: str) -> tuple[list[float], list[float]]:
    """Mean and deviation of pixels for timm's weights, by the tag in their own or their file's name, or the model's."""
    architecture, tag = split_name(name)
    tag = max((known for known in list_tags(name) if known in Path(weights).name), key=len, default=tag)
    known = timm.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
    return list(known.mean), list(known.std)


def read_entry(name: str, tag: str) -> dict[str, Any] | None:
    """Where published weights of timm lie: their repository in the hub, and what files of them are called.

    The first name is timm's, the second that of the authors' own file, where they have one. None for no known tag.
    """
    architecture, _ = split_name(name)
    if tag not in list_tags(name):
        return None
    known = timm.get_pretrained_cfg(f"{architecture}.{tag}")
    own = Path(known.url or "").stem
    return {
        "hf_hub": known.hf_hub_id or "",
        "url": known.url or "",
        "stems": [f"{architecture}.{tag}", *filter(None, [own])],
    }


def convert_timm(state: dict[str, Tensor], trunk: nn.Module, path: Path) -> dict[str, Tensor]:
    """fp32 tensors of a weights file, under timm's names or the authors' own, as those of a ``TimmImage``.

    InputError where positions or patches have another size: timm would resample them, which moves every feature.
    """
    for name in ("pos_embed", "patch_embed.proj.weight"):
        own, held = dict(trunk.named_parameters()).get(name), state.get(name)
        if own is None or held is None or held.ndim != own.ndim:
            continue
        lengths = (held.shape[-1],) if held.ndim == 4 else (held.shape[1], held.shape[1] - 1)  # the class token's too
        if (own.shape[-1] if own.ndim == 4 else own.shape[1]) not in lengths:
            raise InputError(
                f"{path} is of another input size: its {name} is {' x '.join(map(str, held.shape))}, the model's "
                f"{' x '.join(map(str, own.shape))}; name the model that these weights belong to."
            )
    biases = {key: value for key, value in state.items() if key.endswith("qkv.bias")}
    if "storage_tokens" in state and getattr(trunk.blocks[0].attn, "q_bias", None) is None:
        biased = any(part.any() for bias in biases.values() for part in bias.chunk(3)[::2])
        if biased:
            raise InputError(f"{path} has biases of queries and values; name the model that ends with _qkvb.")
    kind = timm.models.eva if isinstance(trunk, timm.models.eva.Eva) else timm.models.vision_transformer
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it tries
        state = kind.checkpoint_filter_fn(dict(state), trunk)
    expected = trunk.state_dict()
    surplus = ("head.", "mask_token")  # a classifier, and what only training needed
    return {
        f"visual.trunk.{key}": value.float() if value.is_floating_point() else value
        for key, value in state.items()
        if key in expected or not key.startswith(surplus)
    }


def build_timm(name: str, **overrides: Any) -> TimmImage:
    """A ViT of timm without weights, for pictures of any whole number of patches; InputError for other networks.

    ``overrides``: of the architecture's own parameters, for small ones in tests.
    """
    architecture, _ = split_name(name)
    kinds = (timm.models.vision_transformer.VisionTransformer, timm.models.eva.Eva)
    if "dinov3" in architecture:
        overrides = {"global_pool": "token"} | overrides  # which its authors read; timm's mean is of its own
    try:
        trunk = timm.create_model(architecture, num_classes=0, dynamic_img_size=True, **overrides)
    except TypeError:  # it takes no such parameter
        trunk = None
    if not isinstance(trunk, kinds):
        raise InputError(f"{name} is no ViT and has no patch tokens; choose one that is, such as {EXAMPLE}.")
    if hasattr(rope := getattr(trunk, "rope", None), "periods"):  # published weights hold them rounded so
        rope.periods = rope.periods.to(torch.bfloat16).to(rope.periods.dtype)
    return TimmImage(trunk)


class TimmTower:
    """timm's ViTs by their own forward pass, with ``vit_blocks.Block`` in the place of blocks that it computes."""

    def __init__(self, visual: nn.Module):
        self.visual, trunk = visual, visual.trunk
        self.image_size, self.grid = trunk.patch_embed.img_size[0], trunk.patch_embed.grid_size[0]
        self.patch_size = self.image_size // self.grid
        self.depth, self.width = len(trunk.blocks), trunk.embed_dim
        self.prefix_tokens = trunk.num_prefix_tokens
        self.has_class_token = trunk.global_pool == "token" and self.prefix_tokens > 0
        self.fixed = not getattr(trunk, "dynamic_img_size", False)
        self._inside = cache(self._replace_blocks)

    @property
    def activation(self) -> str:
        """What its blocks compute between the layers of their MLPs."""
        mlp = self.visual.trunk.blocks[0].mlp
        return _name_activation(getattr(mlp, "act", mlp))

    def pack(self, backbone: Backbone) -> None:
        """Pack the weights of its blocks, where ``vit_blocks`` computes them."""
        self._inside(devices.TYPES[backbone.precision])

    def encode(self, backbone: Backbone, images: Tensor, numbers: Collection[int], resize: str) -> Tokens:
        """See ``encode_tokens``."""
        dtype = devices.TYPES[backbone.precision]
        trunk, fits = self._inside(dtype)
        shortened = contextlib.nullcontext()
        if dtype != torch.float32 and not fits:
            shortened = torch.autocast(images.device.type, dtype)
        with shortened:
            places = sorted(number - 1 for number in {*numbers} or {self.depth})
            last, kept = trunk.forward_intermediates(images, indices=places, output_fmt="NLC")
            image = self.visual.head(trunk.forward_head(last))
        blocks = {place + 1: values.float() for place, values in zip(places, kept, strict=True) if place + 1 in numbers}
        first = last[:, 0].float() if self.has_class_token else None
        return Tokens(last[:, self.prefix_tokens :].float(), blocks, image.float(), first)

    def _replace_blocks(self, dtype: torch.dtype) -> tuple[nn.Module, bool]:
        """The trunk, sharing its weights, for inference in a type, and whether ``vit_blocks`` computes its blocks."""
        trunk = copy.copy(self.visual.trunk)
        if is_plain_dinov2(trunk):
            trunk._pos_embed = lambda patches: add_dinov2_positions(trunk, patches)
        fits = all(map(_is_usual, trunk.blocks))
        if fits:
            trunk._modules = dict(trunk._modules)  # those of the trunk itself stay
            trunk.blocks = nn.Sequential(*(_Fast(block, dtype) for block in trunk.blocks))
        return trunk, fits


class _Fast(nn.Module):
    """A timm block computed by ``vit_blocks.Block``."""

    def __init__(self, block: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.compute = Block(_rename(block), dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, L, width) after the block."""
        return self.compute(tokens)


def _is_usual(block: nn.Module) -> bool:
    """Whether a timm block is one of plain attention and a plain MLP, each behind a layer norm."""
    usual, attn, mlp = timm.models.vision_transformer.Block, getattr(block, "attn", None), getattr(block, "mlp", None)
    if type(block) is not usual or type(attn) is not timm.layers.Attention or type(mlp) is not timm.layers.Mlp:
        return False
    norms = isinstance(block.norm1, nn.LayerNorm) and isinstance(block.norm2, nn.LayerNorm)
    nothing = [attn.q_norm, attn.k_norm, getattr(attn, "norm", nn.Identity()), mlp.norm]
    linear = [attn.proj, mlp.fc1, mlp.fc2]
    width = attn.proj.weight.shape[0]
    return (
        norms
        and all(isinstance(part, nn.Identity) for part in nothing)
        and all(isinstance(part, nn.Linear) and part.bias is not None for part in linear)
        and attn.qkv.weight.shape == (3 * width, width)
        and getattr(attn, "gate", None) is None
    )


def _rename(block: nn.Module) -> Any:
    """A usual timm block under the names of open_clip's."""
    attn, mlp, qkv = block.attn, block.mlp, block.attn.qkv
    bias = qkv.weight.new_zeros(len(qkv.weight)) if qkv.bias is None else qkv.bias
    return SimpleNamespace(
        attn=SimpleNamespace(
            num_heads=attn.num_heads, in_proj_weight=qkv.weight, in_proj_bias=bias, out_proj=attn.proj
        ),
        mlp=SimpleNamespace(c_fc=mlp.fc1, gelu=mlp.act, c_proj=mlp.fc2),
        ln_1=block.norm1, ln_2=block.norm2, ls_1=block.ls1, ls_2=block.ls2,
    )  # fmt: skip


def is_plain_dinov2(trunk: nn.Module) -> bool:
    """Whether a trunk is a DINOv2 without registers, whose positions are resized by a rule of their own."""
    architecture = (getattr(trunk, "pretrained_cfg", None) or {}).get("architecture", "")
    return "dinov2" in architecture and trunk.reg_token is None


def add_dinov2_positions(trunk: nn.Module, patches: Tensor) -> Tensor:
    """(N, 1 + rows columns, width) tokens of patches (N, rows, columns, width), the class token first.

    The original resizes its table by a factor a little above that of the grids, and without antialias; timm does not.
    """
    table, native = trunk.pos_embed, trunk.patch_embed.grid_size
    grid = patches.shape[1:3]
    if tuple(grid) != tuple(native):
        square = table[:, 1:].unflatten(1, native).permute(0, 3, 1, 2)
        factors = tuple((new + OFFSET) / old for new, old in zip(grid, native, strict=True))
        resized = F.interpolate(square, scale_factor=factors, mode="bicubic", antialias=False)
        table = torch.cat([table[:, :1], resized.flatten(2).mT], 1)
    return torch.cat([trunk.cls_token.expand(len(patches), -1, -1), patches.flatten(1, 2)], 1) + table


def _name_activation(module: nn.Module) -> str:
    name = type(module).__name__
    return ACTIVATIONS.get(name, "GELU" if "GELU" in name else name)
