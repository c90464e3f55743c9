"""Defects: marks laid over a finished picture, warps of an object, and the calibration of their contrast.

A mark is a function of a `Site` returning a `Mark`. All colour work is in CIELAB, so that a defect's difference from
its surroundings can be set: see `tone`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from .draw import TAU, Canvas, F, box, fbm, grid, length, step

LEVELS = {"low": (7.5, 11.0), "medium": (16.0, 23.0), "high": (32.0, 46.0)}  # wanted Delta-E 76
AREA = (0.002, 0.10)  # least and largest mask, as a part of the image

TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(1, keepdims=True)
TO_XYZ, FROM_XYZ = (TO_XYZ / WHITE).astype(F), np.linalg.inv(TO_XYZ / WHITE).astype(F)


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB (3, n) of sRGB values (3, n) in 0..1, white point D65."""
    t = TO_XYZ @ np.where(rgb > 0.04045, ((np.maximum(rgb, 0) + F(0.055)) / F(1.055)) ** F(2.4), rgb / F(12.92))
    x, y, z = np.where(t > 0.008856, np.cbrt(t), t * F(7.787) + F(16 / 116))
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def from_lab(lab: np.ndarray) -> np.ndarray:
    """The sRGB values (3, n), clipped to 0..1, of CIELAB (3, n)."""
    y = (lab[0] + 16) / 116
    t = np.stack([y + lab[1] / 500, y, y - lab[2] / 200])
    lin = np.clip(FROM_XYZ @ np.where(t > 0.2069, t**3, (t - F(16 / 116)) / F(7.787)), 0, 1)
    return np.where(lin > 0.0031308, F(1.055) * lin ** F(1 / 2.4) - F(0.055), lin * F(12.92))


def window(mask: np.ndarray, margin: float) -> tuple[slice, slice]:
    """The slices around a mask's bounding box, widened by margin pixels."""
    m = int(np.ceil(margin))
    ends = []
    for axis in (1, 0):
        at = np.flatnonzero(mask.any(axis))
        ends.append(slice(max(0, at[0] - m), at[-1] + m + 1))
    return tuple(ends)


def around(mask: np.ndarray, ring: tuple[float, float]) -> np.ndarray:
    """The pixels farther than ring[0] and at most ring[1] from a mask."""
    d = ndimage.distance_transform_edt(~mask)
    return (d > ring[0]) & (d <= ring[1])


def grow(mask: np.ndarray, n: int) -> np.ndarray:
    """A mask dilated by a square of n pixels to each side."""
    out = mask
    for _ in range(2):  # rows, then columns
        m, out = out, out.copy()
        for k in range(1, n + 1):
            out[k:] |= m[:-k]
            out[:-k] |= m[k:]
        out = out.T
    return out


def tidy(raw: np.ndarray, close: int = 2) -> np.ndarray:
    """A raw mask as an annotator would draw it: gaps closed, crumbs dropped, one pixel of margin."""
    out = np.zeros_like(raw)
    if raw.any():
        win = window(raw, close + 2)
        mask = ~grow(~np.pad(grow(raw[win], close), close), close)[close:-close, close:-close]
        parts, n = ndimage.label(mask)
        if n > 1:
            area = np.bincount(parts.ravel())
            mask = np.concatenate([[False], area[1:] >= 0.08 * area[1:].max()])[parts]
        out[win] = grow(ndimage.binary_fill_holes(mask), 1)
    return out


@dataclass
class Site:
    """Where a mark goes: coordinates x, y (units, turned at random) about its centre, radius r, light and stream."""

    rng: np.random.Generator
    canvas: Canvas
    spot: tuple[float, float, float]
    x: np.ndarray = field(init=False)
    y: np.ndarray = field(init=False)

    def __post_init__(self):
        """Turn the frame."""
        a, (x, y) = self.rng.uniform(0, TAU), grid(self.canvas.size)
        x, y = x - F(self.spot[0]), y - F(self.spot[1])
        self.r = float(self.spot[2])
        self.x, self.y = x * F(np.cos(a)) + y * F(np.sin(a)), y * F(np.cos(a)) - x * F(np.sin(a))
        lx, ly = self.canvas.light[:2]
        self.lx, self.ly = F(lx * np.cos(a) + ly * np.sin(a)), F(ly * np.cos(a) - lx * np.sin(a))

    def blob(self, rough: float = 0.35, stretch: float = 1.5) -> np.ndarray:
        """Distance to an irregular patch of about the site's area."""
        s = self.rng.uniform(1, stretch)
        d = length(self.x / F(s), self.y * F(s)) - F(self.r)
        return d + F(rough * self.r) * fbm(self.rng, self.canvas.size, max(2, 120 / self.r), 3)

    def line(self, rough: float, count: int = 24) -> tuple[np.ndarray, float, float]:
        """Distance across a wandering line, with the line's length and half width for the site's area."""
        area = np.pi * self.r**2
        span = min(self.rng.uniform(50, 150), area / 1.6)
        path = np.cumsum(
            self.rng.standard_normal(count) * rough * span / count + self.rng.normal(0, 0.12 * span / count)
        )
        fine = np.interp(np.linspace(0, count - 1, 512), np.arange(count), path - path.mean()).astype(F)
        at = np.clip((self.x / F(span) + F(0.5)) * 511, 0, 511).astype(np.intp)
        return self.y - fine[at], span, max(0.75, area / span / 2)

    def slope(self, height: np.ndarray) -> np.ndarray:
        """How much a relief (units) turns towards the light."""
        gy, gx = np.gradient(height)
        return -(gx * self.canvas.light[0] + gy * self.canvas.light[1]) * self.canvas.k


@dataclass
class Mark:
    """alpha (H, W) 0..1; direction of its colour shift in CIELAB; flat: how far it hides what lies below (0..1).

    relief (H, W) is light and dark within the mark, in multiples of its contrast; free marks may leave the object.
    """

    alpha: np.ndarray
    direction: tuple[float, float, float]
    flat: float = 0.0
    relief: np.ndarray | None = None
    free: bool = False


STAINS = {  # direction in CIELAB
    "coffee": (-0.8, 0.25, 0.5), "rust": (-0.5, 0.5, 0.7), "ink": (-0.75, 0.1, -0.6), "grease": (-0.95, 0.02, 0.2),
    "bleach": (0.95, -0.05, -0.2), "verdigris": (0.1, -0.75, 0.1), "brown": (-0.35, 0.6, 0.25),
    "moss": (-0.4, -0.6, 0.5), "damp": (-0.9, 0.0, 0.1), "mold": (0.6, -0.3, 0.5), "soot": (-1.0, 0.0, 0.0),
    "blood": (-0.5, 0.8, 0.3),
}  # fmt: skip


def stain(s: Site, kind: str) -> Mark:
    """A soft patch of another colour with a denser rim, the surface showing through."""
    d = s.blob(0.4)
    soft = s.r * s.rng.uniform(0.1, 0.35)
    body = step(-d, -0.5, soft + 1)
    mottle = F(0.82) + F(0.18) * fbm(s.rng, s.canvas.size, 22, 2)
    rim = F(0.25) * np.exp(-np.square((d + F(soft + 1)) / F(2.2)))
    return Mark(np.clip(body * mottle + rim * body, 0, 1.2), STAINS[kind], 0.15)


def scratch(s: Site, _: str) -> Mark:
    """One to three fine, nearly straight, tapering lines with a lit and a dark flank."""
    n = int(s.rng.integers(1, 4))
    y, span, w = s.line(0.25, 8)
    w = w / n
    near = np.full_like(y, 99)
    side = np.zeros_like(y)
    for i in range(n):
        gap = 0 if i == 0 else s.rng.uniform(-9, 9)
        off = y - F(gap) - F(s.rng.uniform(-0.05, 0.05)) * s.x
        x = s.x - F(s.rng.uniform(-0.2, 0.2) * span * (i > 0))
        taper = np.sqrt(np.clip(F(1.05) - np.square(x / F(span / 2)), 0, 1))
        d = np.where(taper > 0, np.abs(off) - F(w + 0.2) * taper, 99)
        side = np.where(d < near, off, side)
        near = np.minimum(near, d)
    return Mark(s.canvas.aa(near), (s.rng.choice([-1, 1, 1]), 0, 0.05), 0.5, np.clip(side / F(w + 1), -1, 1) * F(0.3))


def gouge(s: Site, _: str) -> Mark:
    """An abraded patch of many short parallel strokes."""
    d = s.blob(0.3, 1.9)
    hair = fbm(s.rng, s.canvas.size, 60, 1)
    strokes = np.sin(s.y * F(2.1) + F(1.5) * hair) + hair * F(0.6)
    alpha = step(-d, -0.5, 3) * (F(0.55) + F(0.45) * step(strokes, -0.6, 0.7))
    return Mark(alpha, (s.rng.choice([-1, 1, 1]), 0, 0.1), 0.35, F(0.3) * strokes)


def crack(s: Site, _: str) -> Mark:
    """A jagged dark line with one branch."""
    y, span, w = s.line(1.1, 26)
    taper = np.clip(F(1.1) - np.abs(s.x) / F(span / 2), 0, 1)
    d = np.where(taper > 0, np.abs(y) - F(w) * np.sqrt(taper), 99)
    fork = s.x * F(s.rng.choice([-1, 1])) - F(s.rng.uniform(-0.1, 0.15) * span)
    branch = np.abs(y + fork * F(s.rng.choice([-0.8, 0.8]))) - F(w * 0.8)
    d = np.minimum(d, np.where((fork > 0) & (fork < 0.3 * span), branch, 99))
    return Mark(s.canvas.aa(d), (-1, 0, 0), 0.6, np.clip(s.ly * y / F(w + 1), -1, 1) * F(0.15))


def hole(s: Site, _: str) -> Mark:
    """A ragged opening with the shadow of its edge inside."""
    d = s.blob(0.22, 1.4) + F(0.7) * fbm(s.rng, s.canvas.size, 75, 1)
    inner = np.clip(F(0.5) + (s.x * s.lx + s.y * s.ly) / F(1.4 * s.r), 0, 1)
    return Mark(s.canvas.aa(d), (-1, 0.03, 0.08), 0.92, F(0.25) - F(0.5) * inner - F(0.25) * step(d, -4, -0.5))


def pit(s: Site, _: str) -> Mark:
    """A chipped-out hollow, lit on its far side."""
    d = s.blob(0.3, 1.3)
    light = np.clip(-(s.x * s.lx + s.y * s.ly) / F(s.r), -1.2, 1.2)
    return Mark(s.canvas.aa(d), (s.rng.choice([-1, 1]), 0.05, 0.15), 0.85, F(0.55) * light)


def debris(s: Site, _: str) -> Mark:
    """Crumbs lying on the surface, each shaded as a small lump."""
    n = int(s.rng.integers(3, 9))
    d, lump = np.full_like(s.x, 99), np.zeros_like(s.x)
    for q in s.rng.dirichlet(np.full(n, 2.0)):
        x0, y0 = s.rng.normal(0, 0.9 * s.r, 2)
        x, y, r = s.x - F(x0), s.y - F(y0), F(np.sqrt(q) * s.r + 0.8)
        one = np.maximum(box(x, y, r, r * 0.8, r * 0.3), np.abs(x + y * F(0.7)) - r)
        lump = np.where(one < d, (x * s.lx + y * s.ly) / r, lump)
        d = np.minimum(d, one)
    a = s.rng.uniform(0, TAU)
    direction = (s.rng.choice([-1, 1]), 0.35 * np.cos(a), 0.35 * np.sin(a))
    return Mark(s.canvas.aa(d), direction, 0.85, F(0.4) * np.clip(lump, -1, 1), True)


def fibre(s: Site, _: str) -> Mark:
    """A curled thread lying on the surface."""
    area = np.pi * s.r**2
    w = float(np.clip(s.r / 9, 0.8, 2.2))
    span, amp = float(np.clip(area / w / 3, 30, 150)), s.rng.uniform(4, 14)
    k, p, bow = F(TAU / s.rng.uniform(35, 80)), F(s.rng.uniform(0, TAU)), F(s.rng.uniform(-0.006, 0.006))
    f = s.y - F(amp) * np.sin(s.x * k + p) - bow * np.square(s.x)
    slope = np.sqrt(1 + np.square(F(amp) * k * np.cos(s.x * k + p) + 2 * bow * s.x))
    d = np.maximum(np.abs(f) / slope - F(w), np.abs(s.x) - F(span / 2))
    a = s.rng.uniform(0, TAU)
    direction = (s.rng.choice([-0.8, 0.8]), 0.6 * np.cos(a), 0.6 * np.sin(a))
    return Mark(s.canvas.aa(d), direction, 0.85, np.clip(s.ly * f / F(w + 1), -1, 1) * F(0.4), True)


def drop(s: Site, _: str) -> Mark:
    """A splash of paint: an opaque drop with satellites and a lit edge."""
    d = s.blob(0.12, 1.25)
    for _ in range(int(s.rng.integers(1, 5))):
        a, far = s.rng.uniform(0, TAU), s.r * s.rng.uniform(1.3, 1.8)
        d = np.minimum(
            d, length(s.x - F(far * np.cos(a)), s.y - F(far * np.sin(a))) - F(s.r * s.rng.uniform(0.1, 0.25))
        )
    edge = step(d, -4, 0) * (s.x * s.lx + s.y * s.ly) / F(s.r)
    a = s.rng.uniform(0, TAU)
    return Mark(
        s.canvas.aa(d), (s.rng.choice([-0.7, 0.7]), 0.7 * np.cos(a), 0.7 * np.sin(a)), 0.95, F(0.5) * edge, True
    )


def dent(s: Site, _: str) -> Mark:
    """A shallow hollow or bump: one flank lit, the other dark."""
    w = s.rng.uniform(1, 1.7)
    q = (np.square(s.x / F(w)) + np.square(s.y * F(w))) / F(s.r**2)
    lump = np.exp(F(-1.8) * q * q) * F(s.r * s.rng.choice([-1, 1]))
    lump = lump * (1 + F(0.15) * fbm(s.rng, s.canvas.size, 10, 2))
    lit = s.slope(lump)
    flank = np.exp(F(-1.5) * q * q) * (F(0.45) + F(0.55) * step(lit * F(s.rng.choice([-1, 1])), -0.3, 0.5))
    sign = 1 if float((flank * lit).sum()) > 0 else -1
    return Mark(flank, (sign, 0, 0), 0.0, F(1.3) * lit)


def print_(s: Site, _: str) -> Mark:
    """A patch of stripes, dots or checks that does not belong there."""
    d = box(s.x, s.y, s.r * 1.15, s.r * 0.7, s.r * 0.2) + F(0.8) * fbm(s.rng, s.canvas.size, 30, 2)
    k = F(s.rng.uniform(0.8, 1.5))
    a, b = np.cos(s.x * k), np.cos(s.y * k)
    ink = (a, a + b, a * b * F(1.6))[s.rng.integers(3)]
    a = s.rng.uniform(0, TAU)
    direction = (s.rng.choice([-0.8, 0.8]), 0.6 * np.cos(a), 0.6 * np.sin(a))
    return Mark(s.canvas.aa(d) * (F(0.3) + F(0.7) * step(ink, -0.3, 0.3)), direction, 0.2)


MARKS = {f.__name__.rstrip("_"): f for f in
         (stain, scratch, gouge, crack, hole, pit, debris, fibre, drop, dent, print_)}  # fmt: skip
SPAN = {  # area of a mark as a part of the image; thin ones stay small
    "scratch": (0.003, 0.018), "crack": (0.004, 0.022), "fibre": (0.004, 0.02), "gouge": (0.008, 0.06),
    "debris": (0.005, 0.045), "hole": (0.006, 0.06), "pit": (0.005, 0.045), "drop": (0.006, 0.06),
}  # fmt: skip


def bend(c: Canvas, at: str):
    """Bend all of the object beyond `at` (units along its length) to one side."""
    t = np.maximum(c.u - F(at), 0)
    k = c.f.choice([-1, 1]) * c.f.uniform(0.14, 0.34)
    return c.u + t * F(k * k / 2), c.v - F(k) * t * t / (t + F(18))


def swirl(c: Canvas, _: str):
    """Turn the pattern within a patch."""
    i, j = (int((q + 120) * c.k) for q in (c.spot[1], c.spot[0]))
    du, dv = c.u - c.u[i, j], c.v - c.v[i, j]
    a = c.f.choice([-1, 1]) * c.f.uniform(0.9, 1.6)
    inside = c.blob(0.15) < 0
    return (np.where(inside, c.u[i, j] + du * F(np.cos(a)) + dv * F(np.sin(a)), c.u),
            np.where(inside, c.v[i, j] + dv * F(np.cos(a)) - du * F(np.sin(a)), c.v))  # fmt: skip


def bulge(c: Canvas, _: str):
    """Swell the shape within a patch."""
    i, j = (int((q + 120) * c.k) for q in (c.spot[1], c.spot[0]))
    du, dv = c.u - c.u[i, j], c.v - c.v[i, j]
    g = 1 - F(0.6) * np.exp(-(du * du + dv * dv) / F(c.spot[2] ** 2))
    return c.u[i, j] + du * g, c.v[i, j] + dv * g


WARPS = {"bend": bend, "swirl": swirl, "bulge": bulge}


def place(canvas: Canvas, rng: np.random.Generator, span: tuple[float, float]) -> tuple[float, float, float]:
    """A centre on the object (or anywhere on a texture) and a radius of log-uniform area, all in units."""
    lo, hi = span
    if canvas.alpha.any():  # no mark much wider than the object
        deep = ndimage.distance_transform_edt(np.pad(canvas.alpha[::4, ::4] > 0.9, 1))[1:-1, 1:-1]
        hi = max(1.1 * lo, min(hi, np.pi * (1.1 * deep.max() * 4 / canvas.size) ** 2))
    r = np.sqrt(np.exp(rng.uniform(np.log(lo), np.log(hi))) / np.pi) * 240
    if not canvas.alpha.any():
        x, y = rng.uniform(-112 + min(r, 40), 112 - min(r, 40), 2)
        return float(x), float(y), float(r)
    weight = np.minimum(deep, min(r / canvas.size * 60, 0.7 * deep.max())) ** 3
    i, j = np.unravel_index(rng.choice(weight.size, p=weight.ravel() / weight.sum()), weight.shape)
    y, x = ((np.array([i, j]) * 4 + rng.uniform(0, 4, 2)) / canvas.k) - 120
    return float(np.clip(x, -116, 116)), float(np.clip(y, -116, 116)), float(r)


def tone(image, alpha, mask, direction, target, bounds, sign=0.0) -> tuple[np.ndarray, float]:
    """Shift a defect's colour in CIELAB until its mean differs from its surroundings by `target` (Delta-E 76).

    image (3, H, W) has the defect in it and its surroundings; alpha weights the shift; direction is a vector (its
    lightness turned to `sign` if that is not 0) or None for the difference that is there already; bounds of the
    shift's length. Returns the image and the difference reached.
    """
    ring, on = around(mask, (1.5, 8)), (alpha > 0.005) | mask
    if not ring.any():
        return image, 0.0
    lab, a, inside = to_lab(image[:, on]), alpha[on], mask[on]
    ground, own, weight = to_lab(image[:, ring]).mean(1), lab[:, inside].mean(1), max(0.25, a[inside].mean())
    shift = float(target) if direction is not None else 0.0
    if direction is None:  # less: back towards the surroundings; more: as if in shadow (or lit, on dark ground)
        there = float(np.linalg.norm(own - ground))
        direction = own - ground if there > target else (np.sign(own[0] - ground[0] - 7), 0, 0)
    direction = np.array(direction, F) / F(np.linalg.norm(direction))
    if sign * direction[0] < 0 or not 6 < own[0] + direction[0] * target < 97:
        direction[0] *= -1
    core, steer = lab[:, inside], a[inside] * direction[:, None]
    for turn in range(3):
        reached = float(np.linalg.norm(to_lab(from_lab(core + steer * F(shift))).mean(1) - ground))
        if turn == 2 or abs(reached - target) < 0.06 * target:
            break
        shift = float(np.clip(shift + (target - reached) / weight, *bounds))
    out = image.copy()
    out[:, on] = from_lab(lab + a * direction[:, None] * F(shift))
    return out, reached


def apply(recipe: str, name: str, canvas: Canvas, clean: np.ndarray, redraw, rng, contrast: str):
    """Put one defect into the shaded image `clean` (3, H, W) of a canvas.

    recipe as in `categories`; redraw(**fault) shades the same scene with a fault. Returns the image, the mask
    (H, W) bool and how near its marks came to the wanted Delta-E (1: met), or None if this draw left no mask.
    """
    image, total, wanted = clean.copy(), np.zeros(clean.shape[1:], bool), rng.uniform(*LEVELS[contrast])
    parts, reached, sign = recipe.split("+"), [], 0.0
    for part in parts:
        kind, _, option = part.partition(":")
        lo, hi = SPAN.get(kind, (0.007, 0.08))
        spot = place(canvas, rng, (lo, hi / len(parts)))
        if kind in MARKS:
            mark = MARKS[kind](Site(rng, canvas, spot), option)
            alpha = mark.alpha if mark.free or not canvas.alpha.any() else mark.alpha * step(canvas.alpha, 0.5, 1)
            mask = tidy(alpha > 0.3)
        else:
            warp = (lambda c, w=WARPS[kind], o=option: w(c, o)) if kind in WARPS else None
            drawn = redraw(fault=name, f=rng, level=list(LEVELS).index(contrast), spot=spot, warp=warp)
            mask = tidy(np.abs(drawn - clean).max(0) > 0.06, 3)
            alpha = np.ones_like(canvas.alpha)
        if not mask.any():
            return None
        win = window(mask, 9)
        crop, inside = image[:, *win], mask[win]
        a = alpha[win] * ndimage.uniform_filter(grow(inside, 2).astype(F), 5, mode="nearest")  # and nothing beyond
        if kind in MARKS:
            crop = crop + np.minimum(a, 1) * F(mark.flat) * (crop[:, inside].mean(1)[:, None, None] - crop)
            if mark.relief is not None:
                light = mark.relief[win]
                crop += a * (light - light[inside].mean()) * F(wanted / 100)
            way, bounds = mark.direction, (0.6 * wanted, 2.5 * wanted)
        else:
            crop, way, bounds = crop + a * (drawn[:, *win] - crop), None, (-9, 22)
        image[:, *win], e = tone(np.clip(crop, 0, 1), a, inside, way, wanted, bounds, sign)
        sign = float(np.sign((image[1][win] - clean[1][win])[inside].mean()))
        total |= mask
        reached.append(e / wanted if kind in MARKS else 1.0)  # another draw would not change a fault's much
    return image, total, float(np.mean(reached))
