"""Devices that this machine does not have: fake tensors know their shape, type and device, and no values.

An operation on tensors of two devices raises, as it would there, so that a forgotten move shows without the device.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode

slice_rows, index_rows = torch.ops.aten.slice.Tensor, torch.ops.aten.index.Tensor


@contextlib.contextmanager
def pretend(device: str) -> Iterator[None]:
    """Within it tensors that are made on ``cuda`` or ``mps`` are fake ones."""
    with FakeTensorMode(), LikeMPS() if device == "mps" else contextlib.nullcontext():
        yield


def move_to_fake(module: nn.Module, device: str) -> nn.Module:
    """A copy of a module whose parameters and buffers are fake tensors on a device; within ``pretend``."""
    with unset_fake_temporarily():
        moved = copy.deepcopy(module)
    for part in moved.modules():
        for name, value in part._parameters.items():
            if value is not None:
                fake = torch.empty(value.shape, dtype=value.dtype, device=device)
                part._parameters[name] = nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = torch.empty(value.shape, dtype=value.dtype, device=device)
    return moved


class LikeMPS(TorchFunctionMode):
    """What a PyTorch without MPS cannot do on fake tensors there, by other operations; and MPS has no float64."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is Tensor.__getitem__:
            found = _index(*args)
        elif function is Tensor.__setitem__:
            values, key, new = args
            found = _index(values, key) + new  # which raises where the new ones are elsewhere or of another shape
        elif function is Tensor.contiguous:
            found = args[0].clone(memory_format=torch.contiguous_format)
        elif function is Tensor.to:
            device, dtype, *_ = torch._C._nn._parse_to(*args[1:], **(kwargs or {}))
            found = torch.ops.aten._to_copy(args[0], dtype=dtype, device=device)
        elif function is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            found = (query @ key.mT).softmax(-1) @ value
        elif function is F.multi_head_attention_forward:
            found = _attend(*args, **(kwargs or {})), None
        else:
            found = function(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.device.type == "mps" and found.dtype == torch.float64:
            raise TypeError("MPS has no float64")
        return found


def _attend(query: Tensor, *more: Any, attn_mask: Tensor, **_: Any) -> Tensor:
    """(L, N, width): one head of attention by all the weights and the mask that several heads read."""
    weight, bias, outside, outside_bias = *more[4:6], *more[10:12]
    query, key, value = (part.transpose(0, 1) for part in F.linear(query, weight, bias).chunk(3, -1))
    mixed = (query @ key.mT + attn_mask).softmax(-1) @ value
    return F.linear(mixed.transpose(0, 1), outside, outside_bias)


def _index(values: Tensor, key: Any) -> Tensor:
    """``values[key]`` by operations that need no guard of the device."""
    parts = key if isinstance(key, tuple) else (key,)
    if any(part is Ellipsis for part in parts):
        place = next(place for place, part in enumerate(parts) if part is Ellipsis)
        used = sum(part is not None for part in parts) - 1
        parts = (*parts[:place], *[slice(None)] * (values.ndim - used), *parts[place + 1 :])
    dimension, picked = 0, {}
    for part in parts:
        if part is None:
            values, dimension = values.unsqueeze(dimension), dimension + 1
        elif isinstance(part, int):
            values = values.select(dimension, part)
        elif isinstance(part, slice):
            values = slice_rows(values, dimension, part.start, part.stop, part.step or 1)
            dimension += 1
        else:
            picked[dimension] = part if isinstance(part, Tensor) else torch.tensor(part, device=values.device)
            dimension += 1
    if picked:
        values = index_rows(values, [picked.get(place) for place in range(max(picked) + 1)])
    return values
