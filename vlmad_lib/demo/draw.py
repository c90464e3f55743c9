"""Drawing: a canvas of albedo, height and gloss over a ground, lit and shaded into an image.

Lengths are in units of 1/240 of the image side, x to the right, y down, (0, 0) in the middle. Shapes are
signed distances (negative inside), so that every edge is anti-aliased without supersampling.
"""

from __future__ import annotations

import colorsys
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from scipy.spatial import cKDTree

F = np.float32
TAU = 2 * np.pi
# Freeing one large block makes glibc keep freed memory instead of returning it after every picture: drawing is then
# two to three times as fast, as its temporary arrays no longer fault in fresh pages.
_block = np.empty(30 << 20, np.uint8)
del _block


@lru_cache(maxsize=4)
def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres (x, y) in units, each (size, size) float32."""
    a = (np.arange(size, dtype=F) + F(0.5)) * F(240 / size) - F(120)
    x, y = np.meshgrid(a, a)
    x.flags.writeable = y.flags.writeable = False
    return x, y


@lru_cache(maxsize=256)
def _basis(n: int, size: int) -> np.ndarray:
    """Matrix (size, n) that resamples n samples bicubically to `size`."""
    return np.asarray(Image.fromarray(np.eye(n, dtype=F)).resize((n, size), Image.Resampling.BICUBIC))


def resize(a: np.ndarray, size: int) -> np.ndarray:
    """A float32 image resampled bicubically to (size, size)."""
    return _basis(a.shape[0], size) @ a @ _basis(a.shape[1], size).T


def length(x, y) -> np.ndarray:
    """Euclidean length (much faster than np.hypot)."""
    return np.sqrt(x * x + y * y)


def frac(a) -> np.ndarray:
    """Fractional part in [0, 1) (much faster than a % 1)."""
    return a - np.floor(a)


def fbm(rng: np.random.Generator, size: int, cells: float | tuple[float, float], octaves: int = 3) -> np.ndarray:
    """Smooth noise (size, size), about zero mean and unit deviation, with `cells` (x, y) bumps per side."""
    cx, cy = cells if isinstance(cells, tuple) else (cells, cells)
    out = np.zeros((size, size), F)
    for o in range(octaves):
        n = [min(size, max(2, round(c * 2**o))) for c in (cy, cx)]
        out += F(0.6**o) * resize(rng.standard_normal(n, dtype=F), size)
    return out * F(1.35 / np.sqrt(sum(0.36**o for o in range(octaves))))


def box(x, y, a: float, b: float, r: float = 0.0) -> np.ndarray:
    """Distance to a rectangle of half sides a, b with corners rounded by r."""
    qx, qy = np.abs(x) - F(a - r), np.abs(y) - F(b - r)
    return length(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - F(r)


def seg(x, y, x0: float, y0: float, x1: float, y1: float, r: float = 0.0) -> np.ndarray:
    """Distance to a thick segment (a capsule of radius r)."""
    dx, dy = x1 - x0, y1 - y0
    t = np.clip(((x - F(x0)) * F(dx) + (y - F(y0)) * F(dy)) / F(dx * dx + dy * dy + 1e-9), 0, 1)
    return length(x - F(x0) - t * F(dx), y - F(y0) - t * F(dy)) - F(r)


def smin(a, b, k: float) -> np.ndarray:
    """Smooth union of two distances, blended over k units."""
    h = np.maximum(F(k) - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h * F(0.25 / k)


def step(a, lo: float, hi: float) -> np.ndarray:
    """Smooth step of `a` from 0 at lo to 1 at hi."""
    t = np.clip((a - F(lo)) / F(hi - lo), 0, 1)
    return t * t * (3 - 2 * t)


@lru_cache(maxsize=64)
def _glyphs(text: str) -> np.ndarray:
    """Signed distance image of a text in pixels at a letter height of 48."""
    font = ImageFont.load_default(66)
    x0, y0, x1, y1 = font.getbbox(text)
    im = Image.new("L", (int(x1 - x0) + 24, int(y1 - y0) + 24))
    ImageDraw.Draw(im).text((12 - x0, 12 - y0), text, fill=255, font=font)
    on = np.asarray(im) > 127
    return (ndimage.distance_transform_edt(~on) - ndimage.distance_transform_edt(on)).astype(F)


def text(s: str, x, y, height: float) -> np.ndarray:
    """Distance to the letters of s, centred on the origin, capitals `height` units tall."""
    t, k = _glyphs(s), F(48 / height)
    i = np.clip(y * k + F(t.shape[0] / 2), 0, t.shape[0] - 1).astype(np.intp)
    j = np.clip(x * k + F(t.shape[1] / 2), 0, t.shape[1] - 1).astype(np.intp)
    return t[i, j] / k


@lru_cache(maxsize=4)
def _cells(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.Generator(np.random.PCG64(count))
    tree = cKDTree(rng.uniform(0, 512, (count, 2)), boxsize=512)
    d, i = tree.query(np.stack(np.mgrid[:512, :512], -1).reshape(-1, 2), k=2)
    return ((d[:, 1] - d[:, 0]) / 4).astype(F).reshape(512, 512), i[:, 0].reshape(512, 512)


def cells(x, y, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Irregular cells, `count` per 256 x 256 units: distance to the cell's border in units, and cell number.

    The pattern is one cached periodic tile; callers vary pose and colours.
    """
    edge, number = _cells(count)
    i, j = (y * 2).astype(np.intp) & 511, (x * 2).astype(np.intp) & 511
    return edge[i, j], number[i, j]


def rgb(code: str) -> np.ndarray:
    """Colour (3,) float32 in 0..1 of a hex code."""
    return np.array([int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)], F)


class Canvas:
    """The scene of one image while it is drawn.

    rng is the scene's stream; a defect of structure arrives as `fault` (its name) with its own stream `f`, its
    level 0..2 and a place `spot` (x, y, radius in units), none of which touches rng: drawing the same stream with
    and without a fault gives the same scene. `warp` may bend the object's coordinates.
    """

    def __init__(self, size, rng, wide=False, fault=None, f=None, level=0, spot=(0, 0, 20), warp=None):
        self.size, self.rng, self.wide, self.k = size, rng, wide, F(size / 240)
        self.fault, self.f, self.level, self.spot, self.warp = fault, f, level, spot, warp
        self.x, self.y = grid(size)
        self.u, self.v = self.x, self.y
        self.rgb = np.ones((3, size, size), F)
        self.height, self.gloss, self.metal, self.alpha = np.zeros((4, size, size), F)
        w = 1.0 if wide else 0.5
        a = rng.uniform(0, TAU) if wide else rng.uniform(-2.9, -1.3)
        e = rng.uniform(0.85, 1.15) if not wide else rng.uniform(0.65, 1.25)
        self.light = np.array([np.cos(a) * np.cos(e), np.sin(a) * np.cos(e), np.sin(e)], F)
        self.ambient = F(rng.uniform(0.35, 0.5))
        self.exposure = F(1 + w * rng.uniform(-0.16, 0.1))
        self.tint = (1 + w * rng.uniform(-0.05, 0.05, 3)).astype(F)
        self.falloff = F(w * rng.uniform(0.05, 0.25))

    def hit(self, name: str) -> bool:
        """Whether the scene is drawn with this fault."""
        return self.fault == name

    def pose(self, turn: float = 10, shift: float = 6, scale: float = 0.05) -> None:
        """Draw the object's pose: rotation (degrees), shift (units) and relative scale, each plus or minus."""
        w = 1.6 if self.wide else 1.0
        a = np.deg2rad(self.rng.uniform(-turn, turn))
        dx, dy = self.rng.uniform(-shift * w, shift * w, 2)
        s = 1 + self.rng.uniform(-scale * w, scale * w)
        x, y = (self.x - F(dx)) / F(s), (self.y - F(dy)) / F(s)
        self.u, self.v = x * F(np.cos(a)) + y * F(np.sin(a)), y * F(np.cos(a)) - x * F(np.sin(a))
        if self.warp is not None:
            self.u, self.v = self.warp(self)

    def along(self, amp: float, length: float) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates (along, across) of a wavy centre line of the given amplitude and wave length."""
        p = self.rng.uniform(0, TAU)
        w = F(TAU / length)
        q = np.sqrt(1 + np.square(F(amp) * w * np.cos(w * self.u + F(p))))
        return self.u * F(1 + 0.25 * (amp * w) ** 2), (self.v - F(amp) * np.sin(w * self.u + F(p))) / q

    def tone(self, code: str, jitter: float = 0.04) -> np.ndarray:
        """A colour near a hex code."""
        c = rgb(code) * (1 + self.rng.uniform(-jitter, jitter)) + self.rng.uniform(-jitter, jitter, 3) * 0.4
        return np.clip(c, 0, 1).astype(F)

    def any(self, s=(0.3, 0.8), v=(0.4, 0.9), h=(0.0, 1.0)) -> np.ndarray:
        """A colour of random hue, saturation and value."""
        return np.array(colorsys.hsv_to_rgb(*(self.rng.uniform(*r) for r in (h, s, v))), F)

    def noise(self, cells: float | tuple[float, float], octaves: int = 3) -> np.ndarray:
        """Smooth noise from the scene's stream."""
        return fbm(self.rng, self.size, cells, octaves)

    def blob(self, rough: float = 0.3) -> np.ndarray:
        """Distance to an irregular patch at the fault's spot, in the image's frame."""
        x0, y0, r = self.spot
        d = length(self.x - F(x0), self.y - F(y0)) - F(r)
        return d + F(rough * r) * fbm(self.f, self.size, max(2, 130 / r), 2)

    def aa(self, d: np.ndarray) -> np.ndarray:
        """Coverage 0..1 of a distance."""
        return np.clip(F(0.5) - d * self.k, 0, 1)

    def ground(self, color: np.ndarray | None = None, grain: float = 0.012) -> None:
        """Fill the frame with a plain, faintly uneven surface (a drawn colour when none is given)."""
        if color is None:
            color = self.any((0.02, 0.45), (0.2, 0.95))
        self.rgb[:] = color[:, None, None] * (1 + F(grain) * self.noise(5, 4))
        self.gloss[:] = 0.04

    def paint(self, d, color, h=0.0, w=6.0, z=None, gloss=0.15, metal=0.0, alpha=1.0, solid=True) -> None:
        """Lay a shape over the canvas.

        h and w are height and width of its rounded border, z its base level (None: on what lies there already),
        gloss and metal 0..1, alpha its opacity; solid shapes belong to the object and cast a shadow.
        """
        cov = self.aa(d) * F(alpha)
        rows, cols = (np.flatnonzero(cov.any(axis)) for axis in (1, 0))
        if not len(rows):
            return
        win = np.s_[..., rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        cov, d, color = cov[win], d[win], np.asarray(color, F)
        color = color[:, None, None] if color.ndim == 1 else color[win]
        top = self.height[win] if z is None else F(z)
        if h:
            t = np.clip(d * F(-1 / w), 0, 1)
            top = top + F(h) * np.sqrt(t * (2 - t))
        for layer, value in ((self.rgb, color), (self.height, top), (self.gloss, F(gloss)), (self.metal, F(metal))):
            layer[win] += cov * (value - layer[win])
        if solid:
            self.alpha[win] = np.maximum(self.alpha[win], cov)

    def _soft(self, a: np.ndarray, sigma: float, dx: float = 0.0, dy: float = 0.0) -> np.ndarray:
        """`a` shifted and blurred (units), worked at quarter resolution."""
        s = ndimage.gaussian_filter(a[2::4, 2::4], sigma * self.k / 4, mode="nearest", truncate=2.5)
        if dx or dy:
            s = ndimage.shift(s, (dy * self.k / 4, dx * self.k / 4), order=1, mode="nearest", prefilter=False)
        return resize(s, self.size)

    def shade(self) -> np.ndarray:
        """Light the canvas: image (3, size, size) float32 in 0..1, before the camera's blur and noise."""
        h, k = self.height, self.k
        gx, gy = np.zeros_like(h), np.zeros_like(h)
        gx[:, 1:-1] = (h[:, 2:] - h[:, :-2]) * (k / 2)
        gy[1:-1] = (h[2:] - h[:-2]) * (k / 2)
        inv = 1 / np.sqrt(1 + gx * gx + gy * gy)
        lx, ly, lz = self.light
        half = np.array([lx, ly, lz + 1], F) / F(np.sqrt(2 + 2 * lz))
        lit = np.maximum((lz - gx * lx - gy * ly) * inv, 0) / lz
        shade = self.ambient + (1 - self.ambient) * lit
        if self.metal.any():  # a metal mirrors its surroundings: bands of light over the slope
            e = (gx * F(0.8 * lx - 0.5) + gy * F(0.8 * ly + 0.4)) * inv
            shade += self.metal * (F(0.93) - F(0.55) * np.sin(F(3.2) * e) - F(0.35) * np.square(e) - shade)
        shade *= 1 + F(0.05) * np.clip(h - self._soft(h, 7), -6, 4)
        spec = np.maximum((half[2] - gx * half[0] - gy * half[1]) * inv, 0)
        for _ in range(5):
            spec *= spec
        spec *= self.gloss
        if self.alpha.any():
            dx, dy = -16 * lx, -16 * ly
            dark = F(0.32) * self._soft(self.alpha, 7, dx, dy) + F(0.3) * self._soft(self.alpha, 2.5, dx / 4, dy / 4)
            shade *= 1 - dark * (1 - self.alpha)
        shade *= self.exposure * (1 + self.falloff / 120 * (self.x * lx + self.y * ly))
        return np.clip(self.rgb * shade * self.tint[:, None, None] + spec * F(0.75), 0, 1)
