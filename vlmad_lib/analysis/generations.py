"""What notebook 20 measures of trained networks: what an autoencoder redraws, and how like pastes defects are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from vlmad_lib import methods
from vlmad_lib.config import FULL, Method
from vlmad_lib.data import datasets, image_files, mask_files
from vlmad_lib.methods import cutpaste, trained_networks
from vlmad_lib.pipeline.results import Results

PASTES = 4  # of each kind that are made of a normal picture


def measure_error_shares(results: Results, rows: pd.DataFrame) -> pd.Series:
    """By image, the mean error inside its defect over the sum of that and the mean error outside, in [0, 1].

    0.5: the network redraws the defect as well as the rest. Images without a mask, or with one that leaves no pixel on
    either side, are left out. ``rows`` are a reconstruction's, one an image, whose maps are its errors.
    """
    rows, shares = rows[rows["mask"] != ""], {}
    for row, (errors, *_) in zip(rows.itertuples(), results.kept(rows), strict=True):
        inside = mask_files.framed_mask(row.mask, row.width, row.height, row.fit, errors.shape[-1])
        if inside.any() and not inside.all():
            means = errors[inside].mean(), errors[~inside].mean()
            shares[row.image] = means[0] / max(sum(means), 1e-12)
    return pd.Series(shares, dtype=float)


@torch.inference_mode()
def measure_paste_distances(results: Results, spec: Method, category: str) -> pd.Series:
    """By defective test image, the distance of its embedding to the nearest paste's, of a CutPaste with all references.

    Pastes are made of the normal pictures that the network learned from, ``PASTES`` of each kind of each. Distances are
    Mahalanobis, by the Gaussian of normal embeddings: 1 is about a standard deviation of normal pictures.
    """
    chosen = methods.choose(spec, results.profile)
    settings: Any = chosen.settings
    rows = results.index[results.index.category == category]
    normal = chosen.references(rows, category, FULL, 0)
    defective = datasets.select_tested(rows)
    defective = defective[defective.label == 1]
    sides = [_read_pixels(list(some.image), settings.image_size) for some in (normal, defective)]
    kept = results.cache / "networks"
    network = trained_networks.train_network(cutpaste.CUTPASTE, sides[0], settings, kept)
    stream = torch.Generator().manual_seed(settings.training_seed)
    images, labels = cutpaste.paste_into_batch((sides[0] / 255).repeat(PASTES, 1, 1, 1), stream)
    scaled = [network.embed_images(some) @ network.images.factor for some in (images[labels > 0], sides[1] / 255)]
    return pd.Series(torch.cdist(scaled[1], scaled[0]).amin(1).numpy(), defective.image.to_list(), dtype=float)


def _read_pixels(paths: list[str], side: int) -> torch.Tensor:
    """Pictures (N, 3, side, side), whole numbers in 0..255, squashed."""
    views = [image_files.views(path, "squash", side) for path in paths]
    pixels = np.concatenate(views) if views else np.zeros((0, side, side, 3))
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
