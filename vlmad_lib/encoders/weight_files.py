"""Files of tensors as people have them, read as plain data: what they are is told by their content, not by their name.

PyTorch's archives hold a pickle. Here it may build tensors and containers alone: whatever else it names becomes an
object that does nothing, so a training checkpoint with settings or NumPy numbers in it can be read, as can a
TorchScript archive (OpenAI's own files are such), and nothing in any of them is executed.
"""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmad_lib import InputError

SUFFIXES = (".safetensors", ".pt", ".bin", ".pth")
AGAIN = "fetch it again"
_NESTED = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")
_KINDS = {b"\x1f\x8b": "a compressed archive; unpack it first", b"\x89HDF": "an HDF5 file of another library"}
_TYPES = {"Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
          "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
          "Bool": torch.bool}  # fmt: skip


def read_tensors(path: Path, noun: str = "weights file") -> dict[str, Any]:
    """What a file holds: tensors by name, in dictionaries within it where it has them.

    Raises InputError with what is in the file's place and the remedy: a folder, a web page, a Git LFS pointer, a file
    that is cut off or damaged, or one of another kind. ``noun`` is what it should be.
    """
    try:
        return _read(path)
    except _Unfit as error:
        reason = str(error)
    except PermissionError:
        reason = "it may not be read by you; change its permissions"
    except OSError as error:
        reason = f"the system cannot read it ({(error.strerror or 'no reason given').lower()}); copy it to another disk"
    raise InputError(f"{path} is no {noun}: {reason}.")


class _Unfit(Exception):
    """Why a file cannot be read, and the remedy."""


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        inside = sorted(file.name for file in path.iterdir() if file.suffix in SUFFIXES)
        raise _Unfit(f"it is a folder; name the file in it{f', such as {inside[0]}' if inside else ''}")
    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(4096)
    if reason := _foreign(head, size):
        raise _Unfit(reason)
    if head.startswith(b"PK"):
        return _archive(path, size)
    if head[8:9] == b"{":
        return _safetensors(path, int.from_bytes(head[:8], "little"), size)
    if head[:1] == b"\x80":  # PyTorch's format before archives
        try:
            with torch.serialization.safe_globals(_numbers()), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's, on pickles that it then refuses
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # an unpickler that meets garbage raises anything
            raise _Unfit(
                f"it is a pickle that is damaged or holds more than plain tensors; {AGAIN}, or save its state dict as "
                "safetensors"
            ) from None
        return content if isinstance(content, dict) else {}
    raise _Unfit(f"it is damaged, or of another kind than safetensors and PyTorch's files; {AGAIN}")


def _foreign(head: bytes, size: int) -> str:
    """What stands in the place of a file of tensors, and the remedy; empty where it may be one."""
    text = b"" if b"\0" in head else head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not size:
        return f"it is empty; {AGAIN}"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, a few lines of text in the file's place; run 'git lfs pull' where it came from"
    if text.startswith(b"<"):
        return "it is a web page saved in the file's place; fetch the file itself, by the link that downloads it"
    if text.startswith((b"{", b"[")):
        return "it is JSON text, as model configs and indexes are; name the file of weights beside it"
    return next((f"it is {kind}" for mark, kind in _KINDS.items() if head.startswith(mark)), "")


def _numbers() -> list:
    """The NumPy numbers that training checkpoints hold beside their tensors, under old and new names."""
    import numpy as np

    core: Any = np._core if hasattr(np, "_core") else np.core
    scalar = core.multiarray.scalar
    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *kinds]


def _safetensors(path: Path, length: int, size: int) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if 8 + length > size:
        raise _Unfit(f"it is cut off or damaged: its header claims {length:,} bytes, the file has {size:,}; {AGAIN}")
    try:
        with path.open("rb") as stream:
            header = json.loads(stream.read(8 + length)[8:])
        whole = 8 + length + max(entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__")
        if size < whole:
            raise _Unfit(f"it is cut off: {size:,} of {whole:,} bytes are there; {AGAIN}")
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise _Unfit(f"it is damaged: its header is not that of safetensors; {AGAIN}") from None


# ---------------------------------------------------------------- PyTorch's archives


def _archive(path: Path, size: int) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
            pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(pickles) != 1:
                raise _Unfit("it is a zip archive of other things; unpack it and name the file of weights in it")
            if sum(member.file_size for member in file.infolist()) > size:  # PyTorch never compresses
                raise _Unfit("it is compressed as PyTorch's files never are; unpack it or fetch it again")
            folder = pickles[0].removesuffix("data.pkl")
            order = file.read(f"{folder}byteorder") if f"{folder}byteorder" in names else b"little"
            if order.strip() != b"little":
                raise _Unfit("it was written on a machine of another byte order; save it as safetensors there")
            content = _Plain(file, folder).load()
    except zipfile.BadZipFile as error:
        reason = "a part of it is not what was written" if "CRC" in str(error) else "its end is missing"
        raise _Unfit(f"it is cut off or damaged: {reason}; {AGAIN}") from None
    except (_Unfit, OSError):
        raise
    except Exception:  # an unpickler that meets garbage raises anything
        raise _Unfit(f"it is damaged, or its content is not tensors by name; {AGAIN}") from None
    if isinstance(content, _Inert):  # a module: of TorchScript, or one saved whole
        content = dict(_named(content, ""))
    return content if isinstance(content, dict) else {}


class _Inert:
    """Stands for any object of a pickle that is neither tensor nor container: it keeps its state and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        made = object.__new__(cls)
        made.state = {}
        return made

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return _Inert()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """What a pickle adds to a list of an unknown kind is dropped."""

    def extend(self, values: Any) -> None:
        """As ``append``."""


def _named(module: _Inert, prefix: str):
    """The tensors of a module by name, those of modules within it included."""
    state = module.state if isinstance(module.state, dict) else {}
    dictionaries = [
        value_by_name
        for key in ("_parameters", "_buffers", "_modules")
        if isinstance(value_by_name := state.get(key), dict)
    ]
    for name, value in [pair for entries in dictionaries or [state] for pair in entries.items()]:
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, _Inert):
            yield from _named(value, f"{prefix}{name}.")


def _strided(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)  # refuses what lies outside the storage


_BUILT = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): lambda *_: {},
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _strided,
    ("torch._utils", "_rebuild_tensor_v2"): _strided,
    ("torch._utils", "_rebuild_parameter"): lambda value, *_: value,
    ("torch._utils", "_rebuild_parameter_with_state"): lambda value, *_: value,
}
# All that a pickle may name; anything else is inert.
_BUILT |= {("torch", f"{name}Storage"): kind for name, kind in _TYPES.items()}


class _Plain(pickle.Unpickler):
    """Reads the pickle of an archive; tensors are views of the archive's own bytes."""

    def __init__(self, file: zipfile.ZipFile, folder: str):
        super().__init__(io.BytesIO(file.read(f"{folder}data.pkl")))
        self._file, self._folder, self._kept = file, folder, {}

    def find_class(self, module: str, name: str) -> Any:
        return _BUILT.get((module, name), _Inert)

    def persistent_load(self, pid: tuple) -> Tensor:
        _, kind, key, *_ = pid
        if (key, kind) not in self._kept:
            content = bytearray(self._file.read(f"{self._folder}data/{key}"))
            self._kept[key, kind] = torch.frombuffer(content, dtype=kind) if content else torch.empty(0, dtype=kind)
        return self._kept[key, kind]


# ---------------------------------------------------------------- state dicts


def select_tensors(content: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors by name of a file's content: of the state dict in it, without what wrappers put before names."""
    for key in _NESTED:
        if isinstance(inside := content.get(key), _Inert):
            inside = dict(_named(inside, ""))
        if isinstance(inside, dict) and any(isinstance(value, Tensor) for value in inside.values()):
            content = inside
            break
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    for prefix in _WRAPPERS * 2:  # one may wrap the other
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors
