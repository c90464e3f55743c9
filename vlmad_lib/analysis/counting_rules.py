"""The same anomaly maps under other rules of counting: how far a rule alone moves a figure.

Public codes differ in how they resize masks, enlarge and smooth maps, which images they count and how they integrate
AUPRO. None of these says anything of a method.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from PIL import Image

from vlmad_lib import open_clip
from vlmad_lib.data import image_files, mask_files
from vlmad_lib.encoders import feature_store
from vlmad_lib.encoders.backbones import Backbone
from vlmad_lib.evaluation import metrics
from vlmad_lib.methods import ChosenMethod
from vlmad_lib.pipeline.scoring import Scorer

MEASURES = ["pixel_auroc", "pixel_f1_max", "aupro"]


@dataclass(frozen=True)
class Rule:
    """How maps and masks become pixel metrics.

    Attributes:
        size: The shorter side of the frame in pixels to which maps are enlarged and masks shrunk.
        fpr_limit: The false positive rate up to which AUPRO is integrated, in (0, 1].
        mask: What makes a pixel of a shrunk mask defective: more than ``half`` of it; ``any`` trace that smooth
            shrinking leaves in it, as for codes that ask for values above 0; or its ``nearest`` pixel in the mask.
        stretched: Whether the map of each image is stretched to 0..1 by itself.
        sigma: The Gaussian over maps in pixels of a frame of 518; None for the method's own.
        normal_images: Whether normal images are counted; otherwise all normal pixels lie in defective images.
        thresholds: AUPRO from 200 thresholds, as some official codes take it, in the place of the exact one.
    """

    size: int = 240
    fpr_limit: float = 0.3
    mask: Literal["half", "any", "nearest"] = "half"
    stretched: bool = False
    sigma: float | None = None
    normal_images: bool = True
    thresholds: bool = False


def measure_under_rules(rows: pd.DataFrame, kept: Sequence[np.ndarray], rules: dict[str, Rule]) -> pd.DataFrame:
    """The pixel metrics of one method's maps under each rule.

    Args:
        rows: Rows of a scores table, of one method and one draw of references; defective images without a mask are
            left out.
        kept: The maps of each row, as ``Results.kept`` gives them.
        rules: The rules by their names.

    Returns:
        One row a rule and category, with the columns rule, category and ``MEASURES``, in [0, 1]; nan where a category
        has no normal or no defective pixels.
    """
    rows, measured = rows.assign(tiles_of_map=list(kept)), []
    rows = rows[(rows.label == 0) | (rows["mask"] != "")]
    for category, images in rows.groupby("category", sort=False):
        for name, rule in rules.items():
            counted = images if rule.normal_images else images[images.label == 1]
            pairs = [(_frame_map(row, rule), _frame_mask(row, rule)) for row in counted.itertuples()]
            values = metrics.pixel_metrics(pairs, rule.fpr_limit, coarse=rule.thresholds)
            values["aupro"] = values["aupro_200"] if rule.thresholds else values["aupro"]
            measured.append({"rule": name, "category": category} | {measure: values[measure] for measure in MEASURES})
    return pd.DataFrame(measured, columns=["rule", "category", *MEASURES])


def score_on(chosen: ChosenMethod, backbone: Backbone, rows: pd.DataFrame) -> tuple[np.ndarray, list[np.ndarray]]:
    """Scores (N,) and maps of index rows by a zero-shot method on a backbone of which nothing is kept."""
    method, settings, maps, scores = chosen.method, chosen.settings, [], []
    names, side = method.array_names(settings), method.image_side(settings, backbone)
    checkpoint = chosen.prompts.path if chosen.prompts else None
    for _, images in rows.groupby("category", sort=False):
        wording = method.prompt_wording(settings, images.iloc[0])
        scorer = Scorer(chosen, method.encode_text(backbone, wording, checkpoint), side // backbone.patch_size)
        for image in images.image:
            pixels = image_files.cut_image(image, chosen.fit, side)
            arrays, _ = feature_store.encode_pixels(backbone, method.encode, pixels, names, len(pixels))
            scorer.add(image, {name: torch.from_numpy(values) for name, values in arrays.items()})
        of_category, kept, tiles = scorer.of(images.image)
        scores.append(pd.Series(of_category, images.index))
        maps.append(pd.Series(np.split(kept, np.cumsum(tiles)[:-1]), images.index))
    return pd.concat(scores).loc[rows.index].to_numpy(), list(pd.concat(maps).loc[rows.index])


def _frame_map(row, rule: Rule) -> np.ndarray:
    """The map of an image at the rule's frame."""
    sigma = row.sigma if rule.sigma is None else rule.sigma
    values = metrics.framed_map(row.tiles_of_map, row.width, row.height, row.fit, rule.size, sigma)
    if not rule.stretched:
        return values
    low, high = values.min(), values.max()
    return (values - low) / max(high - low, np.finfo(np.float32).tiny)


def _frame_mask(row, rule: Rule) -> np.ndarray:
    """The mask of an image at the rule's frame, bool."""
    if rule.mask == "half" or not row.mask:
        return mask_files.framed_mask(row.mask, row.width, row.height, row.fit, rule.size)
    whole = Image.fromarray(mask_files.load_mask(row.mask).astype(np.uint8) * 255)
    how = Image.Resampling.NEAREST if rule.mask == "nearest" else Image.Resampling.BILINEAR
    return np.asarray(whole.resize(image_files.frame(row.width, row.height, row.fit, rule.size), how)) > 0


def swap_activation(backbone: Backbone) -> Backbone:
    """A copy of a CLIP that computes QuickGELU where it has GELU, and GELU where it has QuickGELU, in both towers.

    No tensor of a weights file says which of the two it was trained with, so codes that build the model themselves
    easily take the other one.
    """
    model = copy.deepcopy(backbone.model)
    quick = backbone.activation == "QuickGELU"
    for module in model.modules():
        if isinstance(getattr(module, "gelu", None), torch.nn.Module):
            module.gelu = torch.nn.GELU() if quick else open_clip.transformer.QuickGELU()
    return replace(backbone, model=model, key=f"{backbone.key}-swapped")
