"""What the panel of ``explorer`` shows: an image by any method from kept features, pictures and scores as HTML."""

from __future__ import annotations

import io
from base64 import b64encode
from html import escape

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from vlmad_lib import methods, tables
from vlmad_lib.analysis import thresholds
from vlmad_lib.config import Method
from vlmad_lib.data import mask_files
from vlmad_lib.evaluation import metrics
from vlmad_lib.pipeline import run, scoring
from vlmad_lib.pipeline.results import Results
from vlmad_lib.reporting import figures


def asked(results: Results, row: pd.Series, spec: Method) -> tuple[float, np.ndarray]:
    """Score and map of a row of the scores table by another method, with the row's references, from kept features.

    The map is (H, W) float32 at the evaluation frame; the score that of the image alone (``methods.alone``). InputError
    for settings the method cannot have.
    """
    profile, shots, spec = results.profile, int(row.shots), methods.alone(spec)
    chosen, seen = methods.choose(spec, profile), run.view(profile, row, spec)
    settings, names = chosen.settings, chosen.module.arrays(chosen.settings, shots)
    drawn = chosen.references(results.index, row.category, shots, int(row.seed)) if shots else None
    store, memory = (chosen.store(results.cache, seen.facts, channels) for channels in ("", "rgb"))
    references = memory.load(list(drawn.image), names) if shots else None
    scorer = scoring.Scorer(chosen, seen.text, seen.grid, references)
    scorer.add(row.image, store.load([row.image], names)[0])
    (score,), maps, _ = scorer.of([row.image])
    size, sigma = profile.evaluation_size, getattr(settings, "sigma", 0)
    return float(score), metrics.framed_map(maps, row.width, row.height, settings.fit, size, sigma)


# ---------------------------------------------------------------- as HTML


def pictures(row: pd.Series, maps: dict[str, np.ndarray], limits: tuple[float, float]) -> str:
    """An image, its mask, its maps by name on one colour scale from ``limits``, and the last of them over the image.

    No figure is drawn: a map changes while one types.
    """
    image = figures.picture(row.image)
    height, width = image.shape[:2]
    found = {"image": image}
    if row["mask"]:
        mask = mask_files.framed_mask(row["mask"], row.width, row.height, "squash", 240)
        found["mask"] = _sized(np.repeat(mask[..., None] * np.uint8(255), 3, 2), width, height)
    elif row.label:
        found["image, which has no mask"] = found.pop("image")
    else:
        found["mask of a good part: empty"] = np.zeros_like(image)
    low, high = limits
    for name, one in maps.items():
        share = np.clip((one - low) / max(high - low, 1e-9), 0, 1)
        found[f"map, {name}"] = _sized(mpl.colormaps[figures.MAP](share, bytes=True)[..., :3], width, height)
    if maps:
        name, last = next(reversed(found.items()))
        found[name.replace("map", "overlay")] = (image // 2 + last // 2).astype(np.uint8)
    what = f"{row.category}, {row.defect}"
    shown = [f"<div>{name}<br>{_jpeg(pixels, f'{what}: {name}')}</div>" for name, pixels in found.items()]
    return f"<div style='display:flex;flex-wrap:wrap;gap:8px'>{''.join(shown)}</div>{_scale(low, high) if maps else ''}"


def _sized(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((width, height)))


def _jpeg(pixels: np.ndarray, alt: str) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "jpeg", quality=85)
    return _tag("jpeg", stream.getvalue(), alt, "width:200px")


def _tag(kind: str, content: bytes, alt: str, style: str = "") -> str:
    return f'<img alt="{escape(alt)}" style="{style}" src="data:image/{kind};base64,{b64encode(content).decode()}">'


def _scale(low: float, high: float) -> str:
    colours = ",".join(mpl.colors.to_hex(one) for one in mpl.colormaps[figures.MAP](np.linspace(0, 1, 9)))
    bar = f"<span style='width:240px;height:12px;background:linear-gradient(90deg,{colours})'></span>"
    return f"<div style='display:flex;gap:6px;align-items:center'>all maps: {low:.3f} {bar} {high:.3f}</div>"


def scores(part: thresholds.CategoryScores, limit: float, own: float) -> str:
    """``strip`` as HTML with its alt text."""
    alt = f"{part.category}: image scores of {part.method}, good and defective, and the threshold {limit:.3f}"
    return _tag(*figures.encoded(strip(part, limit, own)), alt)


def strip(part: thresholds.CategoryScores, limit: float, own: float) -> Figure:
    """The scores of a category, a dot an image, with the threshold; a ring around the score ``own``."""
    lines = {"defective": (part.bad, "#b3261e"), "good": (part.good, "#2a9d6e")}
    lines |= {"normal, training": (part.train, "#6b7785")} if len(part.train) else {}
    figure, axes = plt.subplots(figsize=(7, 0.7 + 0.35 * len(lines)), layout="constrained")
    for place, (values, colour) in enumerate(lines.values()):
        axes.plot(values, np.full(len(values), place), "o", color=colour, ms=6, alpha=0.45, mew=0)
        if own in values:
            axes.plot(own, place, "o", ms=11, mfc="none", mec="#30343b")
    axes.axvline(limit, color="#30343b", lw=1.5)
    axes.set_yticks(range(len(lines)), [f"{name} (n = {len(values)})" for name, (values, _) in lines.items()])
    axes.set(ylim=(-0.6, len(lines) - 0.4), xlabel="image score; line: threshold; ring: this image")
    return figure


def counts(part: thresholds.CategoryScores, limit: float) -> str:
    """What a threshold makes of a category, as an HTML table: counts, and rates with Wilson's 95 % interval."""
    (found,) = thresholds.rated([thresholds.judge(part, "moved", 0, [(limit, part.good)])]).to_dict("records")
    lines = []
    for name, n, hits, mistake in (
        ("good", "n_good", "alarms", "false alarm"),
        ("defective", "n_bad", "escapes", "escape"),
    ):
        rate, wrong, total = mistake.replace(" ", "_"), found[hits], found[n]
        accepted, rejected = (total - wrong, wrong) if name == "good" else (wrong, total - wrong)
        ends = f"{found[rate]:.0%} ({found[f'{rate}_low']:.0%} to {found[f'{rate}_high']:.0%})" if total else "no image"
        lines.append({"images": name, "accepted": accepted, "rejected": rejected, "mistake": f"{mistake}s: {ends}"})
    return tables.show_table(pd.DataFrame(lines), 0).to_html()
