"""The device that networks compute on. This module alone decides which one, and what its memory and precisions allow.

The CPU is the reference. On an accelerator images are encoded in batches of one shape, so that features do not depend
on which images stood beside each other.
"""

from __future__ import annotations

import contextlib
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import joblib
import torch
from torch import Tensor

from vlmad_lib import InputError

# By precision, the type of an image encoder's matrix products.
TYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU = torch.device("cpu")
CPU_TOKENS = 2048  # tokens in one pass over windows on a CPU: what its caches hold
MOST_TOKENS = 65536  # on an accelerator more tokens at once are no faster
MOST_IMAGES = 32
BYTES = 64  # that a token takes in one block for each number of its width: inputs, projections, hidden layer, outputs
SHARE = 4  # of free memory one part of this many is planned with


def choose_device(name: str = "auto") -> torch.device:
    """The device of a profile's key ``device``; ``auto`` is cuda, then mps, then cpu, whichever is first there.

    Raises InputError for a device that this machine, or this build of PyTorch, does not have.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind in present if present[kind])
    if name not in present:
        raise InputError(f"There is no device {name!r}; write one of auto, {', '.join(present)}.")
    if not present[name]:
        have = ", ".join(kind for kind in present if present[kind])
        raise InputError(
            f"'device: {name}' asks for a device that PyTorch {torch.__version__} does not see on this machine, which "
            f"has {have}; write 'device: auto', or install a PyTorch that is built for it."
        )
    return torch.device(name)


def is_accelerator(device: torch.device) -> bool:
    """Whether a device works best on batches that one process feeds; a CPU works best on one image at a time."""
    return device.type not in ("cpu", "meta")


def refuse_precision(precision: str, device: torch.device) -> None:
    """InputError for a precision that a device does not have."""
    if precision == "tf32" and device.type != "cuda":
        raise InputError(f"'precision: tf32' is for NVIDIA GPUs, and this run uses {device.type}; write fp32 or bf16.")


def describe_device(device: torch.device, with_cores: bool = False) -> str:
    """A device in words: its kind and its maker's name, for times with the cores of a CPU that this process may use."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    if device.type == "mps":
        return f"mps ({platform.processor() or platform.machine()})"
    cores = joblib.cpu_count()
    return f"cpu ({_name_processor()}{f', {cores} core' + 's' * (cores > 1) if with_cores else ''})"


def _name_processor() -> str:
    with contextlib.suppress(OSError, TypeError):
        return re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))[1].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def multiply_in(precision: str, device: torch.device) -> Iterator[None]:
    """Within it fp32 products of an NVIDIA GPU are IEEE's, or for ``tf32`` that GPU's shorter ones; elsewhere nothing.

    Convolutions too, which are tf32 unless PyTorch is told otherwise.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was given, as timing needs."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


# ---------------------------------------------------------------- memory


def plan_tokens(device: torch.device, width: int) -> int:
    """Tokens of a width that one pass takes: on a CPU what its caches hold, elsewhere by free memory.

    A power of two, so that small differences of free memory give the same batches and thus the same numbers.
    """
    if not is_accelerator(device):
        return CPU_TOKENS
    tokens = max(CPU_TOKENS, _free_memory(device) // SHARE // (BYTES * width))
    return min(MOST_TOKENS, 1 << (int(tokens).bit_length() - 1))


def plan_images(device: torch.device, width: int, tokens: int) -> int:
    """Images of so many tokens that are encoded together: 1 on a CPU, where that is fastest."""
    if not is_accelerator(device):
        return 1
    return max(1, min(MOST_IMAGES, plan_tokens(device, width) // tokens))


def _free_memory(device: torch.device) -> int:
    """Bytes that a device has left."""
    if device.type == "cuda" and torch.cuda.is_available():
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps" and torch.backends.mps.is_available():
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return 0


def count_readers(device: torch.device) -> int:
    """Threads that read pictures for a device: one for a CPU, which has no time for more, else as many as cores."""
    return joblib.cpu_count() if is_accelerator(device) else 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory was too small."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "out of memory" in str(error).lower()
    )


def release_memory(device: torch.device) -> None:
    """Give back what PyTorch keeps of a device's memory for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


# ---------------------------------------------------------------- batches of one shape


def split_padded(rows: Tensor, size: int, pad: bool) -> Iterator[tuple[Tensor, int]]:
    """Parts of ``size`` rows, with the number of rows that count; the last is filled with copies of its first row.

    Without ``pad`` the last part is as long as it is. A matrix product of another shape may sum in another order, so
    that the last digits of a row would depend on how many others there are.
    """
    for chunk in rows.split(size):
        count = len(chunk)
        if pad and count < size:
            chunk = torch.cat([chunk, chunk[:1].expand(size - count, *chunk.shape[1:])])
        yield chunk, count
