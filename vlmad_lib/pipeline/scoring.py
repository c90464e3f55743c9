"""Images scored from kept features: one by one, or all of a category together where the method compares them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vlmad_lib.encoders import devices, feature_store

if TYPE_CHECKING:
    from vlmad_lib.methods import ChosenMethod


class Scorer:
    """Scores and maps of images by one method with some draws of references, image by image.

    A picture that is not square is cut into tiles, and any with a grid (``config.Tiles``). Each tile is compared with
    the same tile of the references, the first with the first ones and so on, whatever the picture's shape. The score of
    a picture is the mean over its tiles, of a grid what ``combine_tiles`` makes of them. Images are scored one by one,
    so that memory does not grow with their number, and a score is the same to the last digit whatever other images are
    scored in the same run.

    Args:
        chosen: The method with its settings.
        text: (2, D) text features, normal first; none where the method reads no words.
        grid: Cells of a map along one side.
        references: The arrays of the reference images, a row a tile, and the number of tiles of each image; none
            without references.
        draws: The places of the images of each draw among ``references``; one draw of all images where left out.
        device: Where scores are computed; the inputs may be on any device.
        cache: Where networks are kept that a method trains on its references; none are without it.
    """

    def __init__(
        self, chosen: ChosenMethod, text: torch.Tensor | None, grid: int, references: tuple | None = None,
        draws: list[list[int]] | None = None, device: torch.device = devices.CPU, cache: Path | None = None,
    ):  # fmt: skip
        self.chosen, self.grid, self.device, self.cache = chosen, grid, device, cache
        self.text = None if text is None else text.to(device)
        self.references = references
        self.draws = [list(range(len(references[1])))] if references and draws is None else draws
        self.memories: dict[int, list[tuple]] = {}
        self.scored: dict[str, tuple] = {}

    def add(self, image: str, values: dict[str, torch.Tensor], inside: np.ndarray | None = None) -> None:
        """Score an image by its arrays, a row a tile.

        ``inside``: the cells of each tile's map that lie in the region of interest (tiles, grid, grid) bool, without
        one all. A tile without such cells does not count for the image's score; of the others scores that are made
        from maps rest on these cells alone.
        """
        scored_tiles = []
        counted = np.ones(len(next(iter(values.values()))), bool) if inside is None else inside.any((1, 2))
        values = {name: array.to(self.device).float() for name, array in values.items()}
        for place in range(len(next(iter(values.values())))):
            tile = {name: array[place : place + 1] for name, array in values.items()}
            fixed = tile, self.text, self.chosen.settings, self.grid
            with devices.multiply_in("fp32", self.device):
                more = {}
                if inside is not None and counted[place] and self._rests_on_map:
                    more["inside"] = torch.from_numpy(inside[place]).to(self.device)
                results = [self.chosen.score(*fixed, *memory, **more) for memory in self._memories(place)]
            scores, maps = zip(*results, strict=True)
            maps = None if maps[0] is None else torch.cat(maps).cpu().numpy()
            scored_tiles.append((torch.cat(scores).cpu().numpy(), maps))
        scores, maps = zip(*scored_tiles, strict=True)
        self.scored[image] = np.stack(scores), None if maps[0] is None else np.stack(maps), counted

    @property
    def _rests_on_map(self) -> bool:
        shots = len(self.references[1]) if self.references else 0
        return self.chosen.method.rests_on_map(self.chosen.settings, shots)

    def _memories(self, place: int) -> list[tuple]:
        """What ``score`` compares tile ``place`` with: for all draws at once, or draw by draw."""
        if not self.references:
            return [(None,)]
        if place not in self.memories:
            arrays, tiles = self.references
            draws = [_of_tile(tiles, draw, place) for draw in self.draws]
            if self.chosen.method.scores_draws_together:
                rows = np.unique(np.concatenate(draws))
                draws = [torch.from_numpy(np.searchsorted(rows, draw)) for draw in draws]
                self.memories[place] = [(self._remembered(arrays, rows), draws)]
            else:
                self.memories[place] = [(self._remembered(arrays, rows),) for rows in draws]
        return self.memories[place]

    def _remembered(self, arrays: dict[str, torch.Tensor], rows: np.ndarray) -> Any:
        chosen_rows = {name: array[torch.from_numpy(rows)].to(self.device).float() for name, array in arrays.items()}
        method, more = self.chosen.method, {}
        if method.keeps_networks and self.cache:
            more = {"kept": self.cache / "networks"}
        return method.remember(chosen_rows, self.chosen.settings, self.grid, **more)

    def of(self, images: Iterable[str], draw: int = 0) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Scores (N,) of a category's images by a draw, kept maps (tiles, ...), and how many tiles each image has.

        Maps are None where the method has none.
        """
        scored = [self.scored[image] for image in images]
        rule = self.chosen.spec.tiles.score if self.chosen.spec.tiles else "mean"
        scores = np.array([combine_tiles(values[counted][:, draw], rule) for values, _, counted in scored])
        scores = self.chosen.method.score_category(scores) if scores.ndim > 1 else scores
        maps = None if scored[0][1] is None else np.concatenate([maps[:, draw] for _, maps, _ in scored])
        return scores, maps, np.array([len(values) for values, *_ in scored])


class CategoryFeatures(Mapping[str, torch.Tensor]):
    """The kept arrays of all images of a category, a row an image, each read when it is asked for and not held here.

    They are on the backbone's device in the type they are kept in, fp16 as a rule. Pictures are squashed: one row each.
    """

    def __init__(self, store: feature_store.AnyStore, images: Sequence[str], names: Sequence[str]):
        self.store, self.images, self.names = store, images, names

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.names:
            raise KeyError(name)
        values: torch.Tensor | None = None
        for place, arrays in enumerate(self.store.each(self.images, [name], as_kept=True)):
            (array,) = arrays[name]
            if values is None:
                values = torch.empty(len(self.images), *array.shape, dtype=array.dtype, device=self.store.device)
            elif array.dtype == torch.float32 != values.dtype:  # of a few images fp16 cannot hold the numbers
                values = values.float()
            values[place] = array
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def score_together(
    chosen: ChosenMethod, features: Mapping[str, torch.Tensor], grid: int, side: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """As ``Scorer.of``, by a method that scores a category as a whole (``Method.scores_whole_category``)."""
    with devices.multiply_in("fp32", device):
        scores, maps = chosen.score(features, None, chosen.settings, grid, side=side)
    return (
        scores.cpu().numpy().astype(np.float64),
        None if maps is None else maps.cpu().numpy(),
        np.ones(len(scores), int),
    )


def combine_tiles(scores: np.ndarray, rule: str | float) -> np.ndarray:
    """The score of a picture from those of its tiles (T, ...): their mean, ``max``, or a quantile in (0, 1)."""
    if rule == "mean":
        return scores.mean(0, dtype=np.float64)
    return np.quantile(scores.astype(np.float64), 1.0 if rule == "max" else float(rule), axis=0)


def _of_tile(tiles: np.ndarray, draw: list[int], place: int) -> np.ndarray:
    """The rows of a draw's images that are tile ``place``; all where none has so many, being of another shape."""
    owner = np.repeat(np.arange(len(tiles)), tiles)
    number = np.concatenate([np.arange(count) for count in tiles])
    # in the order of the draw: what a method makes of its references may depend on it
    rows = np.concatenate([np.flatnonzero(owner == image) for image in draw])
    same = number[rows] == place
    return rows[same] if same.any() else rows
