"""Features kept on disk, a folder per image: what the encoder computed once, for every later question.

Each array is one .npy file (fp16 unless asked) with its checksum (module ``files``), written under a temporary name and
moved into place, so an interrupted run leaves nothing half-written and goes on where it stopped. A damaged one is
encoded again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vlmad_lib import InputError, digests, files
from vlmad_lib.data import image_files
from vlmad_lib.encoders import devices
from vlmad_lib.encoders.backbones import Backbone, Facts
from vlmad_lib.files import replace_file

Encode = Callable[[Backbone, Tensor, Sequence[str]], dict[str, Tensor]]
PIXELS = (Backbone.normalise, Backbone.standardise)
TOKENS_AT_ONCE = 16384  # patch tokens of one batch on a CPU: bounds its memory whatever batch is asked for
DEVICES = "encoded_on.json"
READERS = 4  # threads that read kept arrays for an accelerator
AHEAD = 2  # batches that are read, and that are written, while one is encoded


class Store:
    """The kept features of one encoder on one backbone and one way to fit images to its input."""

    def __init__(
        self, cache: Path, backbone: Backbone | Facts, encode: Encode, version: int,
        size: int, fit: str, channels: str, exact: bool = False, rotation: image_files.Rotation | None = None,
    ):  # fmt: skip
        """``version``: the encoder's; ``size``: the side of the input in pixels; ``exact`` keeps fp32, for training.

        With a ``rotation`` the features are those of the rotated copies of the images.
        """
        self.backbone, self.encode, self.size = backbone, encode, size
        self.fit, self.channels, self.exact, self.cache = fit, channels, exact, cache
        self.rotation = rotation
        self._fitting: int | None = None  # images that the device's memory was found to hold at once
        versions = digests.list_versions(digests.ENCODING_LIBRARIES)
        model = f"{Path(backbone.name).stem}-{backbone.key[:12]}-{backbone.precision}"
        steps = digests.digest(
            version, image_files.views, image_files.boxes, *image_files.LOADING, files.write_array, *PIXELS, versions
        )
        if image_files.read_grid(fit):
            steps = digests.digest(steps, *image_files.CUTTING)
        kind = f"{encode.__module__.split('.')[-1]}-{fit}-{channels}-{size}{'-fp32' if exact else ''}"
        if rotation:
            kind += f"-{rotation.label}"
            steps = digests.digest(steps, image_files.Rotation)
        self.folder = cache / "features" / model / f"{kind}-{steps[:8]}"
        self.folders = (self.folder,)

    @property
    def device(self) -> torch.device:
        """The backbone's."""
        return self.backbone.device

    def _folder(self, path: str) -> Path:
        """The folder of an image's arrays, named by the image's content."""
        return self.folder / digests.digest_file(path, self.cache)[:24]

    def _places(self, path: str, names: Iterable[str]) -> dict[str, Path]:
        """The files of an image's arrays."""
        folder = self._folder(path)
        return {name: folder / f"{name}.npy" for name in names}

    def missing(self, paths: Iterable[str], names: Sequence[str]) -> list[str]:
        """The images that lack one of the arrays."""
        return [path for path in paths if not all(file.is_file() for file in self._places(path, names).values())]

    def images_at_once(self, batch: int | None = None) -> int:
        """Images in a batch: ``batch``, or what the device does best; on a CPU no more than its memory bears."""
        tokens = (self.size // self.backbone.patch_size) ** 2
        if not devices.is_accelerator(self.backbone.device):
            return min(batch or 1, max(1, TOKENS_AT_ONCE // tokens))
        wanted = batch or devices.plan_images(self.backbone.device, self.backbone.width, tokens)
        return min(wanted, self._fitting or wanted)

    def fill(
        self, paths: Sequence[str], names: Sequence[str], batch: int | None = None, progress: bool | tqdm = False
    ) -> int:
        """Encode the images that lack one of the arrays; returns how many there were.

        ``batch`` images at once (``images_at_once``). Threads read the next ones and write the last ones meanwhile. An
        image that another process encodes is left to it, and encoded here only if that process does not finish it.
        ``progress``: whether to show a bar, or one to move on.
        """
        todo = self.missing(dict.fromkeys(paths), names)
        if not todo:
            return 0
        with ExitStack() as stack:
            bar = progress
            if not isinstance(progress, tqdm):
                bar = stack.enter_context(
                    tqdm(total=len(todo), desc="encode", unit="image", disable=not progress, leave=False)
                )
            left = self._fill(todo, names, self.images_at_once(batch), bar, wait=False)
            for path in left:  # one by one: a process that holds one image and waits for another may wait for ever
                self._fill([path], names, self.images_at_once(batch), bar, wait=True)
        self._record_device()
        return len(todo)

    def _record_device(self) -> None:
        """Keep beside the features which devices encoded them."""
        device, before = devices.describe_device(self.backbone.device), self.encoded_on()
        if device not in before:
            files.write_json(self.folder / DEVICES, sorted([*before, device]))

    def encoded_on(self) -> list[str]:
        """The devices that encoded what is kept here, in words; none where that is not known."""
        try:
            return list(map(str, files.read_json(self.folder / DEVICES)))
        except (files.Damaged, TypeError):
            return []

    def _fill(self, todo: Sequence[str], names: Sequence[str], batch: int, bar: tqdm, wait: bool) -> list[str]:
        """Encode images that no other process has claimed; returns those that one has."""
        left: list[str] = []
        frame = self.fit, self.size, self.rotation
        began, waited = perf_counter(), 0.0
        threads = devices.count_readers(self.backbone.device)
        reading: deque[tuple[str, files.Claim, Future]] = deque()
        writing: deque[tuple[list[files.Claim], list[Future]]] = deque()
        coming = iter(todo)
        with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(threads) as writers:
            try:
                while True:
                    while len(reading) < AHEAD * batch and (path := next(coming, None)) is not None:
                        claim = files.Claim(self._folder(path))
                        if not claim.take(wait):
                            left.append(path)
                        elif not self.missing([path], names):  # another process has just done it
                            claim.give_back()
                            bar.update()
                        else:
                            reading.append((path, claim, readers.submit(image_files.cut_image, path, *frame)))
                    if not reading:
                        break
                    batch_read = [reading[place] for place in range(min(batch, len(reading)))]
                    started = perf_counter()
                    tiles = [future.result() for *_, future in batch_read]
                    waited += perf_counter() - started
                    batch = min(batch, self._fitting or batch)
                    arrays = self._encode([path for path, *_ in batch_read], tiles, names, batch)
                    written = [writers.submit(replace_file, file, write) for file, write in arrays]
                    writing.append(([reading.popleft()[1] for _ in batch_read], written))
                    while len(writing) > AHEAD:
                        _finish(*writing.popleft())
                    bar.update(len(batch_read))
                    if waited > (perf_counter() - began) / 2 and threads > 1:
                        bar.set_postfix_str(f"reading pictures by {threads} threads is the limit", refresh=False)
                while writing:
                    _finish(*writing.popleft())
            finally:
                for _, claim, future in reading:
                    future.cancel()
                    claim.give_back()
                for claims, _ in writing:
                    for claim in claims:
                        claim.give_back()
        return left

    def _encode(
        self, paths: Sequence[str], tiles: list[np.ndarray], names: Sequence[str], batch: int
    ) -> list[tuple[Path, Callable]]:
        """The files of some images' arrays, each with what writes it."""
        names = [name for name in names if self.missing(paths, [name])]  # what another method kept is not redone
        pixels = np.concatenate(tiles)
        if self.channels == "bgr":
            pixels = pixels[..., ::-1]
        encoded, fitting = encode_pixels(self.backbone.loaded, self.encode, pixels, names, batch, self.exact)
        if fitting < batch:
            self._fitting = fitting
        edges = np.cumsum([len(views) for views in tiles])[:-1]
        files_of = {path: self._places(path, names) for path in paths}
        arrays = [
            (files_of[path][name], part if self.exact else _half(part))
            for name, values in encoded.items()
            for path, part in zip(paths, np.split(values, edges), strict=True)
        ]
        return [(file, lambda to, part=part: files.write_array(to, part)) for file, part in arrays]

    def each(self, paths: Iterable[str], names: Sequence[str], as_kept: bool = False) -> Iterator[dict[str, Tensor]]:
        """The fp32 arrays by name of one image after the other, a row a tile: only a few images are in memory.

        With ``as_kept`` they have the type they are kept in, fp16 as a rule, for a device that converts them itself.
        Where an accelerator waits for them, threads read ahead.
        """

        def read(path: str) -> dict[str, Tensor]:
            kept = {name: self._read_kept(path, name, file) for name, file in self._places(path, names).items()}
            return {
                name: torch.from_numpy(values.copy() if as_kept else values.astype(np.float32))
                for name, values in kept.items()
            }

        if not devices.is_accelerator(self.backbone.device):
            yield from map(read, paths)
            return
        coming, reading = iter(paths), deque()
        with ThreadPoolExecutor(READERS) as readers:
            while True:
                while len(reading) < 2 * READERS and (path := next(coming, None)) is not None:
                    reading.append(readers.submit(read, path))
                if not reading:
                    return
                yield reading.popleft().result()

    def _read_kept(self, path: str, name: str, file: Path) -> np.ndarray:
        """One kept array; encoded again, which is said, where its file is damaged."""
        try:
            return files.read_array(file)
        except files.Damaged:
            files.warn(f"The kept features {file} were damaged; {path} is encoded again.")
            file.unlink(missing_ok=True)
            self.fill([path], [name])
            return files.read_array(file)

    def load(self, paths: Sequence[str], names: Sequence[str]) -> tuple[dict[str, Tensor], np.ndarray]:
        """Arrays by name of a few images together, with one row per tile, and how many tiles each image has."""
        arrays = list(self.each(paths, names))
        counts = np.array([len(values[names[0]]) for values in arrays])
        return {name: torch.cat([values[name] for values in arrays]) for name in names}, counts


class Joint:
    """Several stores as one: the name of an array begins with that of the store that keeps it; "" keeps the rest."""

    def __init__(self, stores: dict[str, Store]):
        self.stores = dict(sorted(stores.items(), reverse=True))  # "" begins every name, so it is asked last
        self.folder = self.folders = tuple(store.folder for store in self.stores.values())

    @property
    def device(self) -> torch.device:
        """The backbones', which is one."""
        return next(iter(self.stores.values())).device

    def _shared(self, names: Sequence[str]) -> list[tuple[str, Store, list[str]]]:
        """Each store that keeps some of the names, with what they begin with here and what it calls them itself."""
        shares: dict[str, list[str]] = {}
        for name in names:
            prefix = next(start for start in self.stores if name.startswith(start))
            shares.setdefault(prefix, []).append(name.removeprefix(prefix))
        return [(prefix, self.stores[prefix], own_names) for prefix, own_names in shares.items()]

    def missing(self, paths: Iterable[str], names: Sequence[str]) -> list[str]:
        """The images that lack one of the arrays."""
        paths = list(paths)
        lacking = {path for _, store, own_names in self._shared(names) for path in store.missing(paths, own_names)}
        return [path for path in paths if path in lacking]

    def fill(
        self, paths: Sequence[str], names: Sequence[str], batch: int | None = None, progress: bool | tqdm = False
    ) -> int:
        """Encode the images that lack one of the arrays, each store its own; returns how many there were."""
        todo = self.missing(dict.fromkeys(paths), names)
        for _, store, own_names in self._shared(names):
            store.fill(todo, own_names, batch, progress)
        return len(todo)

    def encoded_on(self) -> list[str]:
        """The devices that encoded what is kept here."""
        return sorted({name for store in self.stores.values() for name in store.encoded_on()})

    def each(self, paths: Iterable[str], names: Sequence[str], as_kept: bool = False) -> Iterator[dict[str, Tensor]]:
        """The arrays by name of one image after the other; InputError where stores have other tiles of it."""
        paths, shared = list(paths), self._shared(names)
        for path, *values_of_stores in zip(
            paths, *(store.each(paths, own_names, as_kept) for _, store, own_names in shared), strict=True
        ):
            pairs = zip(shared, values_of_stores, strict=True)
            values = {prefix + name: array for (prefix, *_), arrays in pairs for name, array in arrays.items()}
            if len({len(array) for array in values.values()}) > 1:
                raise InputError(
                    f"{path} is not square, so its tiles are no whole image; set settings {{fit: squash}}."
                )
            yield values

    load = Store.load


AnyStore = Store | Joint


def encode_pixels(
    backbone: Backbone, encode: Encode, pixels: np.ndarray, names: Sequence[str], batch: int, exact: bool = True
) -> tuple[dict[str, np.ndarray], int]:
    """Arrays by name of square pictures (N, side, side, 3) uint8, and how many were encoded at once.

    On an accelerator ``batch`` at a time, the last batch filled up to the same shape; where its memory is too small
    for so many the batch is halved. fp32, or without ``exact`` fp16 where its range holds the values.
    Raises InputError where the memory is too small for one picture.
    """
    device = backbone.device
    if not devices.is_accelerator(device):
        arrays = encode(backbone, backbone.normalise(pixels), names)
        return {name: values.numpy() for name, values in arrays.items()}, batch
    chunks: list[dict[str, np.ndarray]] = []
    place = 0
    while place < len(pixels):
        chunk = pixels[place : place + batch]
        filled = np.concatenate([chunk, np.repeat(chunk[:1], batch - len(chunk), 0)])
        try:
            with devices.multiply_in(backbone.precision, device):
                arrays = encode(backbone, backbone.normalise(filled), names)
            chunks.append({name: _fetch(values[: len(chunk)], exact) for name, values in arrays.items()})
        except RuntimeError as error:
            if not devices.is_out_of_memory(error):
                raise
            if batch == 1:
                raise InputError(
                    f"The memory of {devices.describe_device(device)} is too small for one picture of "
                    f"{pixels.shape[1]} pixels on {backbone.label}; set 'device: cpu', or free some of it."
                ) from None
            batch = max(1, batch // 2)
            devices.release_memory(device)
            continue
        place += len(chunk)
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in names}, batch


def _fetch(values: Tensor, exact: bool) -> np.ndarray:
    """A device's numbers in this machine's memory; halved there where that loses nothing, as half travels faster."""
    if not exact:
        half = values.half()
        values = half if bool(half.isfinite().all()) else values
    return values.cpu().numpy()


def _finish(claims: list[files.Claim], written: list[Future]) -> None:
    """Wait until arrays are on disk, then give back the claims on their images; raises what writing raised."""
    try:
        for future in written:
            future.result()
    finally:
        for claim in claims:
            claim.give_back()


def _half(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.float16:
        return values
    half = values.astype(np.float16)
    return half if np.isfinite(half).all() else values  # a few networks have activations beyond fp16


def load_or_compute(file: Path, compute: Callable[[], Tensor]) -> Tensor:
    """A small tensor from its file, computed and kept where the file is missing or damaged."""
    try:
        return torch.from_numpy(files.read_array(file).copy())
    except files.Damaged:
        values = compute()
        replace_file(file, lambda path: files.write_array(path, values.cpu().numpy()))
        return values
