"""A ViT's residual blocks for inference: open_clip's function, in the parts the methods need, near a CPU's matrix peak.

With AVX-512, PyTorch's own linears reach less than half of what oneDNN's prepacked ones do in fp32; with AVX2 they are
a tenth faster. The prepacked ones are private operators, so they are left alone where they are missing or wrong.
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmad_lib import open_clip

ROWS = 128  # queries whose attention to all keys is held at once: it stays in the cache
FEW = 64  # tokens up to which plain products beat the fused kernel
QUICK = 1.702  # QuickGELU is x sigmoid(QUICK x)


def packs(dtype: torch.dtype) -> bool:
    """Whether prepacked linears are what to use here for a type: they work and measured faster on such CPUs."""
    return works(dtype) and (dtype != torch.float32 or "512" in torch.backends.cpu.get_cpu_capability())


@lru_cache
def works(dtype: torch.dtype) -> bool:
    """Whether prepacked linears exist here for a type and give what plain ones do, activations included."""
    stream = torch.Generator().manual_seed(0)
    x, weight, plus = (torch.randn(64, 64, generator=stream) for _ in range(3))
    tolerance = {"atol": 1e-4} if dtype == torch.float32 else {"atol": 0.1, "rtol": 0.05}
    if dtype == torch.bfloat16 and not _bf16():
        return False
    try:
        fast, plain = (Linear(weight / 8, plus[0], dtype, packed) for packed in (True, False))
        pairs = [(fast(x, then), plain(x, then)) for then in THEN]
        pairs.append((fast(x, plus=plus), plain(x, plus=plus)))
    except (AttributeError, RuntimeError):
        return False
    return all(torch.allclose(one.float(), other.float(), **tolerance) for one, other in pairs)


def _bf16() -> bool:
    try:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        return False


# What may follow a linear in the same pass, by its name in oneDNN, and the same in place.
THEN = {"none": (lambda x: x,) * 2, "gelu": (F.gelu, torch.ops.aten.gelu_), "swish": (F.silu, torch.ops.aten.silu_)}


class Linear:
    """``x @ weight.T + bias`` in a type, then an activation, or plus a residual in fp32; prepacked if asked."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype = torch.float32, packed: bool = True):
        self.weight, self.bias, self.packed = weight.to(dtype), bias.to(dtype), packed
        if packed:
            weight = self.weight.detach().contiguous()
            self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight, 1024), self.bias.detach()

    def __call__(self, x: Tensor, then: str = "none", plus: Tensor | None = None) -> Tensor:
        """(..., in) -> (..., out)."""
        x = x.to(self.weight.dtype)
        if not self.packed:
            values = F.linear(x, self.weight, self.bias)
            values = THEN[then][not values.requires_grad](values)  # in place where no gradient asks for what came in
            return values if plus is None else values.add_(plus) if values.dtype == plus.dtype else plus + values
        linear, more = torch.ops.mkldnn._linear_pointwise, ([], "none" if then == "gelu" else "")
        if plus is None:
            return linear(x, self.weight, self.bias, then, *more)
        if x.dtype == plus.dtype:
            return linear.binary(x, plus.contiguous(), self.weight, self.bias, "add")
        return plus + linear(x, self.weight, self.bias, "none", *more)


class Block:
    """One residual block under open_clip's names: attention and MLP, each added to what came in.

    Tokens are (N, L, width) in fp32; matrix products run in ``dtype``, layer norms and sums in fp32. Without
    ``packed`` the block stays differentiable.
    """

    def __init__(self, block: nn.Module, dtype: torch.dtype = torch.float32, packed: bool = True):
        attn, mlp = block.attn, block.mlp
        packed = packed and attn.in_proj_weight.device.type == "cpu" and packs(dtype)
        self.number, self.kind = attn.num_heads, (dtype, packed)
        self.ln_1, self.ln_2, self.act = block.ln_1, block.ln_2, mlp.gelu
        self.weight, self.bias = attn.in_proj_weight, attn.in_proj_bias
        self.inside = Linear(self.weight, self.bias, *self.kind)
        self.outside = Linear(*_scaled(attn.out_proj, block.ls_1), *self.kind)
        first, bias, last = mlp.c_fc.weight, mlp.c_fc.bias, _scaled(mlp.c_proj, block.ls_2)
        self.then = "gelu" if isinstance(self.act, nn.GELU) and self.act.approximate == "none" else ""
        if isinstance(self.act, open_clip.transformer.QuickGELU):  # x sigmoid(a x) = swish(a x) / a
            self.then, first, bias, last = "swish", first * QUICK, bias * QUICK, (last[0] / QUICK, last[1])
        self.widen, self.narrow = Linear(first, bias, *self.kind), Linear(*last, *self.kind)

    def project(self, tokens: Tensor) -> Tensor:
        """(..., 3 width) queries, keys and values of normed tokens, side by side; each token's are its own alone."""
        return self.inside(self.ln_1(tokens))

    def heads(self, projected: Tensor) -> list[Tensor]:
        """(N, heads, L, width of a head) each of a projection (N, L, width times their number)."""
        parts = projected.split(self.weight.shape[1], -1)
        return [part.unflatten(-1, (self.number, -1)).transpose(1, 2) for part in parts]

    def add(self, tokens: Tensor, mixed: Tensor) -> Tensor:
        """Tokens plus the output projection of what attention mixed, (N, L, width)."""
        return self.outside(mixed, plus=tokens)

    def finish(self, tokens: Tensor, mixed: Tensor) -> Tensor:
        """The block's output: attention added, then the MLP."""
        tokens = self.add(tokens, mixed)
        normed = self.ln_2(tokens)
        hidden = self.widen(normed, self.then) if self.then else self.act(self.widen(normed))
        return self.narrow(hidden, plus=tokens)

    def __call__(self, tokens: Tensor, projected: Tensor | None = None) -> Tensor:
        """(N, L, width) after the block; ``projected`` is their projection where it is known."""
        return self.finish(tokens, attend(*self.heads(self.project(tokens) if projected is None else projected)))

    def class_token(self, tokens: Tensor) -> Tensor:
        """(N, width): the first token after the block; the outputs of the others, which nobody reads, stay out."""
        asking, answering = self._apart
        normed = self.ln_1(tokens)
        (query,) = self.heads(asking(normed[:, :1].contiguous()))
        key, value = self.heads(answering(normed))
        return self.finish(tokens[:, :1].contiguous(), attend(query, key, value))[:, 0]

    @cached_property
    def _apart(self) -> tuple[Linear, Linear]:
        width = self.weight.shape[1]
        return (
            Linear(self.weight[:width], self.bias[:width], *self.kind),
            Linear(self.weight[width:], self.bias[width:], *self.kind),
        )


def _scaled(linear: nn.Linear, scale: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear with the layer scale that follows it, if one does."""
    if not hasattr(scale, "gamma"):
        return linear.weight, linear.bias
    return linear.weight * scale.gamma[:, None], linear.bias * scale.gamma


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V of (N, heads, L, d) each, heads side by side again: (N, L, heads d).

    By the kernel that measured fastest: PyTorch's fused one on an accelerator, and for many tokens in fp32 on a CPU,
    otherwise plain products.
    """
    on_cpu = query.device.type in ("cpu", "meta")  # the meta device counts what a CPU would compute
    if not on_cpu or (query.dtype == torch.float32 and key.shape[-2] > FEW):
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    query, keys, value = (query * query.shape[-1] ** -0.5).contiguous(), key.mT.contiguous(), value.contiguous()
    mixed = [(part @ keys).softmax(-1) @ value for part in query.split(ROWS, -2)]
    return torch.cat(mixed, -2).transpose(1, 2).flatten(2)
