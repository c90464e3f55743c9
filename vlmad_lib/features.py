"""Features kept on disk, a folder per image: what the encoder computed once, for every later question.

Each array is one .npy file (fp16 unless asked) with its checksum (module ``files``), written under a temporary name and
moved into place, so an interrupted run leaves nothing half-written and goes on where it stopped. A damaged one is
encoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vlmad_lib import InputError, contents, data, files
from vlmad_lib.backbones import Backbone
from vlmad_lib.files import replace

Encode = Callable[[Backbone, Tensor, Sequence[str]], dict[str, Tensor]]
PIXELS = (Backbone.normalise, Backbone.standardise)
TOKENS_AT_ONCE = 16384  # patch tokens of one batch: bounds the memory of a forward pass whatever batch is asked for


class Store:
    """The kept features of one encoder on one backbone and one way to fit images to its input."""

    def __init__(
        self, cache: Path, backbone: Backbone, encode: Encode, code: Iterable,
        size: int, fit: str, channels: str, exact: bool = False,
    ):  # fmt: skip
        """``size`` is the side of the input in pixels; ``exact`` keeps fp32, for training."""
        self.backbone, self.encode, self.size = backbone, encode, size
        self.fit, self.channels, self.exact, self.cache = fit, channels, exact, cache
        versions = contents.list_versions(contents.ENCODING_LIBRARIES)
        model = f"{Path(backbone.name).stem}-{backbone.key[:12]}-{backbone.precision}"
        steps = contents.digest(*code, data.views, data.boxes, *data.LOADING, files.write_array, *PIXELS, versions)
        kind = f"{encode.__module__.split('.')[-1]}-{fit}-{channels}-{size}{'-fp32' if exact else ''}"
        self.folder = cache / "features" / model / f"{kind}-{steps[:8]}"

    def _places(self, path: str, names: Iterable[str]) -> dict[str, Path]:
        """The files of an image's arrays, which lie under the image's content."""
        folder = self.folder / contents.digest_file(path, self.cache)[:24]
        return {name: folder / f"{name}.npy" for name in names}

    def missing(self, paths: Iterable[str], names: Sequence[str]) -> list[str]:
        """The images that lack one of the arrays."""
        return [path for path in paths if not all(file.is_file() for file in self._places(path, names).values())]

    def fill(self, paths: Sequence[str], names: Sequence[str], batch: int = 8, progress: bool = False) -> int:
        """Encode the images that lack one of the arrays; returns how many there were.

        ``batch`` images at once, or as many as have ``TOKENS_AT_ONCE`` patches if they are one tile each and that is
        less. The next ones are read while the encoder works.
        """
        todo = self.missing(dict.fromkeys(paths), names)
        side = self.size // self.backbone.visual.patch_size[0]
        batch = min(batch, max(1, TOKENS_AT_ONCE // side**2))
        parts = [todo[start : start + batch] for start in range(0, len(todo), batch)]
        bar = tqdm(total=len(todo), desc="encode", unit="image", disable=not progress, leave=False)
        with ThreadPoolExecutor(1) as reader, bar:
            coming = [reader.submit(self._read, part) for part in parts[:1]]
            for number, part in enumerate(parts):
                tiles = coming.pop().result()
                coming += [reader.submit(self._read, following) for following in parts[number + 1 : number + 2]]
                self._encode(part, tiles, names)
                bar.update(len(part))
        return len(todo)

    def _read(self, paths: Sequence[str]) -> list[np.ndarray]:
        return [data.views(path, self.fit, self.size) for path in paths]

    def _encode(self, paths: Sequence[str], tiles: list[np.ndarray], names: Sequence[str]) -> None:
        names = [name for name in names if self.missing(paths, [name])]  # what another method kept is not redone
        pixels = np.concatenate(tiles)
        if self.channels == "bgr":
            pixels = pixels[..., ::-1]
        found = self.encode(self.backbone, self.backbone.normalise(pixels), names)
        edges = np.cumsum([len(one) for one in tiles])[:-1]
        for name, values in found.items():
            for path, part in zip(paths, np.split(values.numpy(), edges), strict=True):
                part = part if self.exact else _half(part)
                replace(self._places(path, [name])[name], lambda file, part=part: files.write_array(file, part))

    def each(self, paths: Iterable[str], names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """The fp32 arrays by name of one image after the other, a row a tile: only one image is in memory."""
        for path in paths:
            places = self._places(path, names)
            kept = {name: self._read_kept(path, name, file) for name, file in places.items()}
            yield {name: torch.from_numpy(values.astype(np.float32)) for name, values in kept.items()}

    def _read_kept(self, path: str, name: str, file: Path) -> np.ndarray:
        """One kept array; encoded again, which is said, where its file is damaged."""
        try:
            return files.read_array(file)
        except files.Damaged:
            files.say(f"The kept features {file} were damaged; {path} is encoded again.")
            file.unlink(missing_ok=True)
            self.fill([path], [name])
            return files.read_array(file)

    def load(self, paths: Sequence[str], names: Sequence[str]) -> tuple[dict[str, Tensor], np.ndarray]:
        """Arrays by name of a few images together, with one row per tile, and how many tiles each image has."""
        found = list(self.each(paths, names))
        counts = np.array([len(one[names[0]]) for one in found])
        return {name: torch.cat([one[name] for one in found]) for name in names}, counts


class Joint:
    """Several stores as one: the name of an array begins with that of the store that keeps it; "" keeps the rest."""

    def __init__(self, stores: dict[str, Store]):
        self.stores = dict(sorted(stores.items(), reverse=True))  # "" begins every name, so it is asked last
        self.folder = tuple(store.folder for store in self.stores.values())

    def _shared(self, names: Sequence[str]) -> list[tuple[str, Store, list[str]]]:
        """Each store that keeps some of the names, with what they begin with here and what it calls them itself."""
        found: dict[str, list[str]] = {}
        for name in names:
            prefix = next(one for one in self.stores if name.startswith(one))
            found.setdefault(prefix, []).append(name.removeprefix(prefix))
        return [(prefix, self.stores[prefix], own) for prefix, own in found.items()]

    def missing(self, paths: Iterable[str], names: Sequence[str]) -> list[str]:
        """The images that lack one of the arrays."""
        paths = list(paths)
        lacking = {path for _, store, own in self._shared(names) for path in store.missing(paths, own)}
        return [path for path in paths if path in lacking]

    def fill(self, paths: Sequence[str], names: Sequence[str], batch: int = 8, progress: bool = False) -> int:
        """Encode the images that lack one of the arrays, each store its own; returns how many there were."""
        todo = self.missing(dict.fromkeys(paths), names)
        for _, store, own in self._shared(names):
            store.fill(todo, own, batch, progress)
        return len(todo)

    def each(self, paths: Iterable[str], names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """The fp32 arrays by name of one image after the other; InputError where stores have other tiles of it."""
        paths, shared = list(paths), self._shared(names)
        for path, *found in zip(paths, *(store.each(paths, own) for _, store, own in shared), strict=True):
            pairs = zip(shared, found, strict=True)
            values = {prefix + name: array for (prefix, *_), one in pairs for name, array in one.items()}
            if len({len(array) for array in values.values()}) > 1:
                raise InputError(
                    f"{path} is not square, so its tiles are no whole image; set settings {{fit: squash}}."
                )
            yield values

    load = Store.load


Kept = Store | Joint


def _half(values: np.ndarray) -> np.ndarray:
    half = values.astype(np.float16)
    return half if np.isfinite(half).all() else values  # a few networks have activations beyond fp16


def kept(file: Path, compute: Callable[[], Tensor]) -> Tensor:
    """A small tensor from its file, computed and kept where the file is missing or damaged."""
    try:
        return torch.from_numpy(files.read_array(file).copy())
    except files.Damaged:
        values = compute()
        replace(file, lambda path: files.write_array(path, values.numpy()))
        return values
