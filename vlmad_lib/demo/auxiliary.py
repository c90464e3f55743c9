"""The auxiliary categories: other objects than the targets, drawn with wide variation, to train a model on."""
# ruff: noqa: D103  (a category's class name, in its decorator, says what its function draws)

from __future__ import annotations

from functools import partial

import numpy as np

from .categories import category as _category
from .categories import fill
from .draw import TAU, Canvas, F, box, cells, frac, length, rgb, seg, smin, step, text

category = partial(_category, subset="auxiliary")


@category("brick wall", "texture", missing_brick="MC part", odd_brick="LE part", crack="SB crack",
          graffiti="FM print", damp="AC stain:damp")  # fmt: skip
def brick_wall(c: Canvas) -> None:
    r = c.rng
    c.pose(5, 40, 0.15)
    bw, bh = r.uniform(50, 64), r.uniform(20, 26)
    row = np.floor(c.v / F(bh)).astype(int)
    q = c.u / F(bw) + F(0.5) * (row & 1)
    n = np.floor(q).astype(int)
    d = box((q - n - F(0.5)) * F(bw), (c.v / F(bh) - row - F(0.5)) * F(bh), bw / 2 - 1.7, bh / 2 - 1.7, 2.5)
    i = (row * 17 + n) % 97
    base = c.any((0.35, 0.65), (0.5, 0.8), (0.0, 0.08)) if r.random() < 0.7 else c.any((0.05, 0.3), (0.6, 0.95))
    tones = base * (1 + 0.16 * r.standard_normal((97, 1))) + r.normal(0, 0.015, (97, 3))
    own = (row == c.f.integers(-3, 4)) & (n == c.f.integers(-1, 2)) if c.fault in ("missing_brick", "odd_brick") else 0
    c.ground(c.any((0.02, 0.15), (0.55, 0.85)), 0.02)
    col = fill(tones, i) * (1 + F(0.06) * c.noise(40, 3))
    if c.hit("odd_brick"):
        other = base + (c.f.uniform(0.3, 0.95, 3) - base) * (0.25, 0.55, 1.0)[c.level]
        col = np.where(own, (other / base).astype(F)[:, None, None] * col, col)
    if c.hit("missing_brick"):
        c.paint(np.where(own, d - F(1), 9), rgb("241c18"), -8, 5, solid=False, gloss=0)
        d = np.where(own, 9, d)
    c.paint(d + F(0.5) * c.noise(50, 2), col, 3.2, 4, gloss=0.02, solid=False)
    c.height += F(0.35) * c.noise(70, 2)


@category("wood plank", "texture", knot_hole="MM hole", gouge="SD gouge", ink="AC stain:ink", split="SB crack",
          warped_grain="SP swirl", combined="MU gouge+stain:ink")  # fmt: skip
def wood_plank(c: Canvas) -> None:
    r = c.rng
    c.pose(90 if r.random() < 0.5 else 6, 40, 0.15)
    w = r.uniform(66, 100)
    board = np.floor(c.v / F(w)).astype(int)
    v = c.v + board * F(37.7)
    for x, y in r.uniform(-120, 120, (3, 2)):
        g = length((c.u - F(x)) / F(2.2), c.v - F(y))
        v = v + F(r.uniform(6, 13)) * np.exp(-np.square(g / F(14))) * np.sign(c.v - F(y))
    warp = c.noise((2, 6), 2) * F(5) + c.u * F(0.03)
    ring = frac((v + warp) / F(r.uniform(6, 11)))
    ring = ring * ring * (1 - step(ring, 0.85, 1.0))
    fine = np.sin((v + warp) * F(3.3) + c.u * F(0.11)) * F(0.5) + c.noise((12, 110), 1) * F(0.5)
    base, dark = c.any((0.3, 0.62), (0.45, 0.95), (0.05, 0.11)), F(r.uniform(0.2, 0.42))
    tone = 1 + F(0.1) * np.cos(board * F(2.3)) - dark * ring + F(0.04) * fine
    c.rgb[:] = base[:, None, None] * tone
    seam = np.abs(frac(c.v / F(w) + F(0.5)) - F(0.5)) * F(w)
    c.rgb *= 1 - F(0.7) * step(-seam, -1.8, -0.5)
    c.height, c.gloss[:] = ring * F(0.5) + np.minimum(seam, 2.5) * F(0.8), F(r.uniform(0.02, 0.2))


@category("mosaic tiles", "texture", missing_tile="MC part", wrong_tile="LE part", scratch="SD scratch",
          grime="FM stain:grease", crack="SB crack")  # fmt: skip
def mosaic(c: Canvas) -> None:
    r = c.rng
    c.pose(45 if r.random() < 0.4 else 4, 30, 0.2)
    p = F(r.uniform(19, 30))
    i, j = np.floor(c.u / p).astype(int), np.floor(c.v / p).astype(int)
    x, y = c.u - (i + F(0.5)) * p, c.v - (j + F(0.5)) * p
    style = r.integers(4)
    number = ((i + j) % 2, np.maximum(np.abs(i), np.abs(j)) % 3, (i % 2) * 2 + j % 2, (i + j) % 4)[style]
    cool = r.random()
    tones = np.array([c.any((0.25, 0.75), (0.35, 0.95), (cool, cool + 0.35)) for _ in range(4)])
    own = (i == c.f.integers(-3, 3)) & (j == c.f.integers(-3, 3)) if c.fault in ("missing_tile", "wrong_tile") else 0
    if c.hit("wrong_tile"):
        number = np.where(own, number + 1, number)
    vary = 1 + F(0.07) * r.standard_normal(89).astype(F)[(i * 13 + j * 7) % 89]
    c.ground(c.any((0.0, 0.12), (0.3, 0.9)), 0.02)
    d = box(x, y, p / 2 - 1.3, p / 2 - 1.3, 2)
    if c.hit("missing_tile"):
        d = np.where(own, 9, d)
    c.paint(d, fill(tones, number) * vary, 3, 3.5, gloss=r.uniform(0.15, 0.5), solid=False)
    c.height += c.noise(4, 2) * F(2.5)


@category("roof shingles", "texture", missing_shingle="MC part", moss="FM stain:moss", slipped="GD part",
          faded="AC stain:bleach", crack="SB crack")  # fmt: skip
def roof_shingles(c: Canvas) -> None:
    r = c.rng
    c.pose(6, 40, 0.15)
    w, h = F(r.uniform(28, 40)), F(r.uniform(20, 27))
    base = c.any((0.1, 0.6), (0.35, 0.8))
    tones = base * (1 + 0.13 * r.standard_normal((101, 1)))
    c.rgb[:] = (base * F(0.25))[:, None, None]
    speck = c.noise(90, 1)
    k, m = (c.f.integers(-3, 4), c.f.integers(-2, 3)) if c.fault in ("missing_shingle", "slipped") else (99, 99)
    rows = np.floor(c.v / h).astype(int)
    for back in (0, 1):  # each point lies under two rows: the upper row's tongues cover the lower row
        row = rows - back
        q = c.u / w + F(0.5) * (row & 1)
        n = np.floor(q).astype(int)
        own = (row == k) & (n == m)
        y = c.v - row * h - (own * F(9) if c.hit("slipped") else 0)
        x = (q - n - F(0.5)) * w
        d = np.where(y > h * F(1.15), length(x, y - h * F(1.15)) - w / 2, np.abs(x) - w / 2) + F(1.2)
        if c.hit("missing_shingle"):
            d = np.where(own, 9, d)
        lift = y / h * F(4)
        c.paint(d, fill(tones, row * 29 + n * 7) * (1 + F(0.07) * speck), 2, 3, gloss=0.04, solid=False)
        cov = c.aa(d)
        c.height += cov * (lift - c.height)
        c.rgb *= 1 - cov * F(0.45) * step(-y / h, -0.35, 0.05)


@category("bubble wrap", "texture", flat_bubble="MC part", puncture="MM hole", crease="GD dent", dirt="FM debris",
          print="SP print")  # fmt: skip
def bubble_wrap(c: Canvas) -> None:
    r = c.rng
    c.pose(30, 30, 0.2)
    p = F(r.uniform(25, 34))
    row = np.floor(c.v / (p * F(0.866)))
    y = c.v - (row + F(0.5)) * p * F(0.866)
    q = c.u / p + F(0.5) * (row.astype(int) & 1)
    x = (frac(q) - F(0.5)) * p
    d = length(x, y) - p * F(0.42)
    if c.hit("flat_bubble"):
        d = np.where((row == c.f.integers(-3, 3)) & (np.floor(q) == c.f.integers(-2, 3)), 9, d)
    c.ground(c.any((0.0, 0.4), (0.35, 0.8)), 0.02)
    c.height = c.noise(7, 3) * F(1.1)
    c.gloss[:] = 0.2
    c.paint(d, c.rgb * F(1.08), 7, p * 0.42, gloss=0.8, solid=False)
    c.paint(np.abs(d) - F(0.7), c.rgb * F(0.82), gloss=0.5, solid=False)


@category("battery", "rigid", missing_cap="MC part", dent="GD dent", wrong_polarity="LE part", leak="FM stain:mold",
          scratch="SD scratch", combined="MU scratch+stain:mold")  # fmt: skip
def battery(c: Canvas) -> None:
    r = c.rng
    c.ground()
    c.pose(180, 7, 0.08)
    u, v = c.u, c.v
    half, steel = r.uniform(24, 34), c.tone("c4c6c8")
    if not c.hit("missing_cap"):
        c.paint(box(u - F(86), v, 7, half * 0.36, 2), steel, z=0, gloss=0.5, metal=0.8)
    body, ends = c.any((0.2, 0.9), (0.12, 0.75)), c.any((0.4, 0.9), (0.5, 0.95))
    shell = box(u, v, 83, half, 4)
    split = r.uniform(20, 50)
    ink = np.where(u > split, ends[:, None, None], body[:, None, None])
    c.paint(shell, np.where(np.abs(u) > 79, steel[:, None, None], ink), z=0, gloss=0.35, metal=0.15)
    c.height += half * np.sqrt(np.clip(1 - np.square(v / F(half)), 0.02, 1)) * c.alpha
    light = c.tone("f0f0ea")
    c.paint(text("1.5V", u + F(14), v, half * 0.6), light, gloss=0.3)
    c.paint(text("+", u - F(-64 if c.hit("wrong_polarity") else 64), v, half * 0.6), light, gloss=0.3)
    c.paint(np.abs(u - F(split)) - F(1.5) + 99 * (shell > 0), light, gloss=0.3)


@category("dice", "rigid", missing_pip="MC part", extra_pip="LE part", chipped="MM pit", scratch="SD scratch",
          stain="AC stain:ink")  # fmt: skip
def dice(c: Canvas) -> None:
    r = c.rng
    c.ground()
    c.pose(24, 9, 0.12)
    u, v, side = c.u, c.v - F(4), 66.0
    hue, dark = c.any((0.0, 0.9), (0.5, 0.98)), r.random() < 0.7
    pip = c.tone("1c1c20") if dark else c.tone("f6f4ee")
    hue = hue if not dark else 1 - (1 - hue) * F(0.5)
    hull = np.maximum(np.abs(u) - F(side * 0.866), np.abs(u) * F(0.5) + np.abs(v) * F(0.866) - F(side * 0.866)) - F(1)
    c.paint(hull, hue * F(0.8), 4, 5, 4, 0.4)
    spots = ((0, 0),), ((-1, -1), (1, 1)), ((-1, -1), (0, 0), (1, 1)), ((-1, -1), (-1, 1), (1, -1), (1, 1)), \
        ((-1, -1), (-1, 1), (0, 0), (1, -1), (1, 1)), ((-1, -1), (-1, 0), (-1, 1), (1, -1), (1, 0), (1, 1))  # fmt: skip
    values = r.permutation(6)[:3]
    bad = c.f.integers(3) if c.fault in ("missing_pip", "extra_pip") else -1
    s, h = side * 0.866, side * 0.5
    faces = (((s, -h), (-s, -h), 1.0), ((-s, -h), (0, side), 0.72), ((s, -h), (0, side), 0.52))
    for k, ((ax, ay), (bx, by), tone) in enumerate(faces):
        det = ax * by - ay * bx
        a, b = (u * F(by) - v * F(bx)) / F(det) - F(0.5), (v * F(ax) - u * F(ay)) / F(det) - F(0.5)
        c.paint(box(a, b, 0.485, 0.485, 0.1) * F(side * 0.87), hue * F(tone), gloss=0.45)
        dots = list(spots[values[k]])
        if k == bad and c.hit("missing_pip"):
            dots.pop(c.f.integers(len(dots)))
        elif k == bad:
            free = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if (x, y) not in dots]
            dots.append(free[c.f.integers(len(free))])
        for x, y in dots:
            d = (length(a - F(0.27 * x), b - F(0.27 * y)) - F(0.1)) * F(side * 0.87)
            c.paint(d, pip * F(0.6 + 0.4 * tone), -4, 6, gloss=0.5)


@category("light bulb", "rigid", broken_filament="SB part", no_filament="MC part", bent_base="GD bend:52",
          black_spot="AC stain:soot", crack="SD crack")  # fmt: skip
def light_bulb(c: Canvas) -> None:
    r = c.rng
    c.ground()
    c.pose(180, 6, 0.08)
    u, v = c.u + F(8), c.v
    glass = smin(length(u + F(30), v) - F(50), box(u - F(22), v, 28, 21, 6), 34)
    steel = c.tone("c9b78a") if r.random() < 0.5 else c.tone("bcbfc4")
    c.paint(length(u - F(92), v) - F(8), c.tone("2a2a2c"), 5, 8, 0, 0.3)
    thread = F(21) + F(1.8) * np.cos((u + v * F(0.12)) * F(TAU / 9)) - np.maximum(u - F(80), 0)
    c.paint(np.maximum(np.abs(v) - thread, np.abs(u - F(69)) - F(21)), steel, z=0, gloss=0.4, metal=0.8)
    c.height += (thread - np.abs(v)) * F(0.5) * (u > 47) * c.alpha
    tint = c.any((0.0, 0.35), (0.75, 1.0))
    c.paint(glass, tint, 22, 46, 0, 0.75, alpha=0.42)
    c.paint(np.abs(glass + F(1.2)) - F(1.2), tint * F(0.6), gloss=0.5, alpha=0.6)
    wire = c.tone("4a4038")
    c.paint(seg(u, v, 46, 0, 4, 0, 5), 1 - (1 - tint) * F(0.5), 3, 5, gloss=0.5, alpha=0.5)
    if c.hit("no_filament"):
        return
    for y in (-1, 1):
        c.paint(seg(u, v, 10, 3 * y, -36, 20 * y, 1.3), wire, gloss=0.2)
    coil = np.abs(u + F(38) + F(4) * np.sin(v * F(1.1))) * F(0.35) - F(1.1)
    if c.hit("broken_filament"):
        y0, gap = c.f.uniform(-9, 9), c.f.uniform(4, 9)
        coil = np.where(np.abs(v - F(y0)) < gap, length(u + F(30 + gap), v - F(y0)) - F(2.2), coil)
    c.paint(np.maximum(coil, np.abs(v) - F(20)), c.tone("d97a20"), gloss=0.2)


@category("padlock", "rigid", no_keyhole="MC part", cut_shackle="SB part", rust="AC stain:rust", scratch="SD scratch",
          wrong_engraving="LE part")  # fmt: skip
def padlock(c: Canvas) -> None:
    r = c.rng
    c.ground()
    c.pose(28, 7, 0.1)
    u, v, a = c.u, c.v, r.uniform(24, 32)
    wide, tall = a + r.uniform(18, 26), r.uniform(36, 44)
    top = F(r.uniform(-48, -36))
    hoop = np.abs(np.where(v < top, length(u, v - top), np.abs(u)) - F(a)) - F(7.5)
    hoop = np.maximum(hoop, v - F(20))
    if c.hit("cut_shackle"):
        x, y, s = c.f.choice([-a, a]), c.f.uniform(-40, -16), c.f.uniform(2.5, 8)
        cut = np.abs(v - F(y) + (u - F(x)) * F(c.f.uniform(-0.6, 0.6))) - F(s) + F(1.5) * np.sin(u * F(1.9))
        hoop = np.maximum(hoop, -np.where(np.abs(u - F(x)) < 14, cut, 9))
    c.paint(hoop, c.tone("c2c5c9", 0.08), 8, 7.5, 2, 0.5, 0.8)
    body = c.any((0.4, 0.7), (0.65, 0.9), (0.08, 0.14)) if r.random() < 0.5 else c.any((0.1, 0.8), (0.25, 0.8))
    c.paint(box(u, v - F(34), wide, tall, 9), body, 7, 8, 8, 0.4, r.choice([0.15, 0.7]))
    c.rgb *= 1 + F(0.04) * c.noise((4, 90), 1) * c.alpha
    c.paint(text("88" if c.hit("wrong_engraving") else "45", u, v - F(34 - tall * 0.58), 13), body * F(0.45), -1, 2)
    if not c.hit("no_keyhole"):
        slot = np.minimum(length(u, v - F(36)) - F(8), box(u, v - F(48), 3.6, 13, 1))
        c.paint(slot - F(2.5), body * F(1.25), 1.5, 2, gloss=0.5, metal=0.5)
        c.paint(slot, rgb("15130f"), -3, 3, gloss=0)


@category("spoon", "rigid", bent="GD bend:10", scratch="SD scratch", tarnish="AC stain:soot", residue="FM debris",
          broken_handle="SB part", combined="MU scratch+debris")  # fmt: skip
def spoon(c: Canvas) -> None:
    r = c.rng
    c.ground()
    c.pose(180, 7, 0.08)
    u, v = c.u, c.v
    bx, by = r.uniform(29, 35), r.uniform(20, 25)
    bowl = (length((u + F(66)) / F(bx), v / F(by)) - 1) * F(by)
    width = F(4) + np.square(np.maximum(u + F(10), 0) / F(106)) * F(r.uniform(4, 9))
    handle = np.maximum(length(np.maximum(u - F(84), 0), v) - width, -u - F(48))
    if c.hit("broken_handle"):
        handle = np.maximum(handle, u - F(c.f.uniform(38, 72)) - F(2) * np.sin(v * F(1.3)) - v * F(0.3))
    metal = c.tone("c6c9cc", 0.06) if r.random() < 0.7 else c.tone("cfae62")
    c.paint(smin(bowl, handle, 16), metal, 5, 4.5, 3, 0.5, 0.8)
    c.paint(bowl + F(3.5), metal * F(0.93), -11, 18, gloss=0.6, metal=0.8)


@category("pencil", "rigid", broken_tip="SB part", no_eraser="MC part", bite_marks="SD gouge", bent="GD bend:0",
          misprint="SP print")  # fmt: skip
def pencil(c: Canvas) -> None:
    r = c.rng
    c.ground()
    c.pose(180, 6, 0.06)
    u, v, a = c.u, c.v, r.uniform(10, 15)
    paint_, taper = c.any((0.5, 0.95), (0.35, 0.95)), (F(104) - u) / F(104 - 68)
    if not c.hit("no_eraser"):
        c.paint(box(u + F(97), v, 9, a * 0.92, 3), c.tone("d98886", 0.08), 7, 9, 2, 0.05)
    tip = F(104) if not c.hit("broken_tip") else F(c.f.uniform(76, 94)) + F(1.5) * np.sin(v * F(1.4)) + v * F(0.2)
    cone = np.maximum(np.maximum(np.abs(v) - F(a) * np.minimum(taper, 1), -u + F(60)), u - tip)
    c.paint(cone, c.tone("dcb98a"), 8, 10, 2, 0.05)
    c.paint(np.maximum(cone, F(93) - u), c.tone("35353a"), gloss=0.3)
    scallop = u - F(66) - F(5) * np.abs(np.cos(v * F(TAU / 2 / (a * 0.68))))
    face = np.where(np.abs(v) < a * 0.36, 1.0, np.where(v < 0, 1.14, 0.74)).astype(F)
    c.paint(np.maximum(np.maximum(np.abs(v) - F(a), -u - F(80)), scallop), paint_[:, None, None] * face, 3, 3, 5, 0.4)
    c.paint(text("HB 2", u + F(40), v, a * 0.42), c.tone("e8d9a0"), gloss=0.5)
    rib = np.cos(u * F(1.1))
    c.paint(box(u + F(80), v, 12, a + 0.5, 1), c.tone("c8ccce", 0.05) * F(1), 6, a, 3, 0.5, 0.75)
    c.height += rib * F(0.8) * (np.abs(u + F(80)) < 11) * c.alpha


@category("glass bottle", "rigid", missing_lid="MC part", chipped="MM pit", wrong_label="LE part", crack="SB crack",
          scratch="SD scratch")  # fmt: skip
def bottle(c: Canvas) -> None:
    r = c.rng
    c.ground()
    c.pose(35, 6, 0.08)
    u, v = c.u, c.v
    a, neck = r.uniform(27, 38), r.uniform(-22, 0)
    shape = smin(box(u, v - F(40), a, 54, 9), box(u, v - F(neck - 10), r.uniform(9, 12), 70, 3), 26)
    shape = np.maximum(shape, F(neck - 62) - v)
    tint = c.any((0.3, 0.85), (0.3, 0.8), (0.06, 0.6))
    c.paint(shape, tint, 16, a * 0.9, 0, 0.7, alpha=0.72)
    c.paint(np.abs(shape + F(2)) - F(1.6), tint * F(0.55), gloss=0.4, alpha=0.6)
    paper, ink = c.tone("efe8d8", 0.06), c.any((0.5, 0.9), (0.2, 0.7))
    label = np.maximum(np.abs(v - F(44)) - F(24), shape + F(1))
    c.paint(label, paper, gloss=0.05)
    c.paint(np.maximum(np.abs(np.abs(v - F(44)) - F(20)) - F(1.5), label), ink, gloss=0.05)
    turn = -1 if c.hit("wrong_label") else 1
    c.paint(text("SODA", turn * u, turn * (v - F(44)), a * 0.38), ink, gloss=0.05)
    if not c.hit("missing_lid"):
        c.paint(box(u, v - F(neck - 64), 13.5, 9, 3), ink * F(0.9), 6, 9, 6, 0.3, 0.3)


@category("coil spring", "flexible", bent="GD bend:40", broken_coil="SB part", rust="AC stain:rust", lint="FM fibre",
          scratch="SD scratch")  # fmt: skip
def coil_spring(c: Canvas) -> None:
    r = c.rng
    c.ground()
    c.pose(180, 7, 0.08)
    v = c.v - F(r.uniform(-0.004, 0.004)) * np.square(c.u)
    a, p, w = r.uniform(20, 36), r.uniform(13, 20), r.uniform(2.6, 4.2)
    n = np.clip(np.floor(c.u / F(p)), -5, 4)
    x = c.u - n * F(p)
    steel = c.tone("c3c6ca", 0.08) if r.random() < 0.6 else c.any((0.3, 0.8), (0.35, 0.8))
    front = seg(x, v, 0, -a, p / 2, a, w)
    back = np.minimum(seg(x, v, p / 2, a, p, -a, w), seg(x, v, -p / 2, a, 0, -a, w))
    if c.hit("broken_coil"):
        gap = np.where(n == c.f.integers(-4, 4), np.abs(v - F(c.f.uniform(-0.5, 0.5) * a)) - F(c.f.uniform(5, 15)), 9)
        front = np.maximum(front, -gap)
    c.paint(back, steel * F(0.5), 3, w, 0, 0.1, 0.6)
    c.paint(front, steel, 4.5, w, 6, 0.5, 0.75)
    c.height += F(8) * np.sqrt(np.clip(1 - np.square(v / F(a + w)), 0, 1)) * c.alpha


@category("adhesive bandage", "flexible", no_pad="MC part", shifted_pad="LE part", stain="AC stain:blood",
          hole="MM hole", misprint="SP print", tear="SD gouge")  # fmt: skip
def bandage(c: Canvas) -> None:
    r = c.rng
    c.ground()
    c.pose(180, 8, 0.1)
    u, v = c.u, c.v - F(r.uniform(-0.002, 0.002)) * np.square(c.u)
    a = r.uniform(24, 32)
    skin = c.tone("d9a679", 0.12) if r.random() < 0.6 else c.any((0.2, 0.7), (0.6, 0.95))
    strip = box(u, v, 92, a, a * 0.9)
    c.paint(strip, skin[:, None, None] * (1 + F(0.03) * c.noise(80, 2)), 4, 5, 2, 0.08)
    holes = length((frac(u / F(8.5)) - F(0.5)) * F(8.5), (frac(v / F(8.5)) - F(0.5)) * F(8.5)) - F(1.4)
    c.paint(np.maximum(np.maximum(holes, F(36) - np.abs(u)), strip + F(6)), skin * F(0.55), -1, 1.4, gloss=0)
    if c.hit("no_pad"):
        return
    dx, dy = c.f.uniform(6, 13, 2) * c.f.choice([-1, 1], 2) * (1, 0.45) if c.hit("shifted_pad") else (0, 0)
    pad = box(u - F(dx), v - F(dy), 29, a * 0.74, 4)
    c.paint(pad, c.tone("f2eee2", 0.03), 3, 4, gloss=0.03)
    c.height += F(0.7) * np.cos(u * F(0.9)) * np.cos(v * F(0.9)) * (pad < -2)


@category("rubber glove", "flexible", cut_finger="MM part", hole="SB hole", stain="AC stain:ink", debris="FM debris",
          swollen="GD bulge")  # fmt: skip
def glove(c: Canvas) -> None:
    r = c.rng
    c.ground()
    c.pose(30, 6, 0.08)
    u, v = c.u * F(r.choice([-1, 1])), c.v
    w = r.uniform(8.5, 10.5)
    d = box(u - F(2), v - F(36), 33, 34, 16)
    k = c.f.integers(1, 4) if c.hit("cut_finger") else -1
    for i, (x0, x1, top) in enumerate(((-24, -40, -62), (-7, -11, -84), (12, 17, -82), (29, 42, -58))):
        top = top + r.uniform(-6, 6)
        t = 1.0 if i != k else c.f.uniform(0.45, 0.75)
        d = smin(d, seg(u, v, x0, 16, x0 + (x1 - x0) * t, 16 + (top - 16) * t, w), 7)
    d = smin(d, seg(u, v, 26, 54, 66, 8 + r.uniform(-8, 8), w + 1.5), 12)
    rubber = c.any((0.3, 0.85), (0.5, 0.95))
    c.paint(smin(d, box(u - F(2), v - F(80), 30, 24, 6), 8), rubber, 9, 12, 2, 0.25)
    c.height += c.noise(9, 3) * F(1.3) * c.alpha
    c.paint(box(u - F(2), v - F(101), 33, 5, 4), rubber * F(0.9), 3, 4, gloss=0.25)


@category("satin ribbon", "flexible", cut="SB part", wrong_stripe="SP print", stain="AC stain:coffee",
          pulled="SD gouge", twisted="GD bulge", combined="MU gouge+stain:coffee")  # fmt: skip
def ribbon(c: Canvas) -> None:
    r = c.rng
    c.ground()
    c.pose(60, 8, 0.1)
    s, t = c.along(r.uniform(18, 30), r.uniform(150, 220))
    a, color, trim = r.uniform(19, 30), c.any((0.4, 0.95), (0.35, 0.9)), c.any((0.0, 0.6), (0.6, 0.98))
    end = np.abs(s) - F(r.uniform(98, 112)) + np.abs(t) * F(0.75)
    d = np.maximum(np.abs(t) - F(a), end * F(0.8))
    if c.hit("cut"):
        m, depth, side = c.f.uniform(-55, 55), c.f.uniform(0.5, 1.3) * a, c.f.choice([-1, 1])
        vee = np.abs(s - F(m)) * F(2.4) - (t * F(side) - F(a - depth))
        d = np.maximum(d, -vee * F(0.4))
    sheen = np.cos(s * F(r.uniform(0.045, 0.07)) + F(r.uniform(0, 6))) * F(0.17)
    c.paint(d, color[:, None, None] * (1 + sheen + F(0.05) * np.cos(s * F(2.2))), 2, 4, 2, 0.3)
    c.height += sheen * F(14) * c.alpha
    c.paint(np.maximum(np.abs(np.abs(t) - F(a * 0.74)) - F(a * 0.09), d), trim, gloss=0.25)


def _random_shape(c: Canvas, u, v, reach: float) -> np.ndarray:
    """Distance to a random union of boxes, discs and bars within `reach` units, with random cut-outs."""
    r = c.rng
    d = box(u, v, *r.uniform(0.3, 0.75, 2) * reach, r.uniform(2, 14))
    for _ in range(r.integers(1, 5)):
        x, y = r.uniform(-0.7, 0.7, 2) * reach
        kind = r.integers(3)
        if kind == 0:
            part = length(u - F(x), v - F(y)) - F(r.uniform(0.15, 0.45) * reach)
        elif kind == 1:
            part = box(u - F(x), v - F(y), *r.uniform(0.12, 0.45, 2) * reach, r.uniform(1, 8))
        else:
            part = seg(u, v, x, y, *r.uniform(-0.8, 0.8, 2) * reach, r.uniform(0.06, 0.2) * reach)
        d = smin(d, part, r.uniform(1, 14))
    for _ in range(r.integers(0, 4)):
        x, y = r.uniform(-0.55, 0.55, 2) * reach
        cut = length(u - F(x), v - F(y)) if r.random() < 0.6 else box(u - F(x), v - F(y), *r.uniform(3, 12, 2), 2)
        d = np.maximum(d, F(r.uniform(0.05, 0.16) * reach) - cut)
    return d


@category("cast part", "rigid", swollen="GD bulge", scratch="SD scratch", crack="SB crack", pit="MM pit",
          stain="AC stain:rust", debris="FM debris")  # fmt: skip
def cast_part(c: Canvas) -> None:
    """No object in particular: shape, relief, material and marks are all drawn, so that nothing is learned by heart."""
    r = c.rng
    c.ground()
    c.pose(180, 8, 0.12)
    u = np.abs(c.u) if r.random() < 0.5 else c.u
    v = np.abs(c.v) if r.random() < 0.25 else c.v
    d = _random_shape(c, u, v, r.uniform(80, 112))
    color, metal = c.any((0.0, 0.8), (0.3, 0.95)), r.choice([0.0, 0.0, 0.8])
    c.paint(d, color[:, None, None] * (1 + F(r.uniform(0, 0.08)) * c.noise(r.uniform(8, 90), 2)),
            r.uniform(2, 10), r.uniform(3, 16), 3, r.uniform(0.05, 0.6), metal)  # fmt: skip
    for _ in range(r.integers(1, 7)):
        x, y, a = *r.uniform(-60, 60, 2), r.uniform(4, 13)
        x, y = u - F(x), v - F(y)
        shape = length(x, y) - F(a) if r.random() < 0.5 else box(x, y, a, r.uniform(2, 9), 2)
        other, rise = (color * F(r.uniform(0.5, 1.4)) if r.random() < 0.6 else c.any()), r.uniform(-4, 5)
        c.paint(np.maximum(shape, d + F(4)), np.clip(other, 0, 1), rise, r.uniform(1, 5), gloss=0.3, metal=metal)
    if r.random() < 0.5:
        period, depth = r.uniform(5, 16), r.uniform(0.3, 1.5)
        inside = np.maximum(d + F(6), box(u, v, *r.uniform(20, 70, 2)))
        c.height += F(depth) * np.cos(u * F(TAU / period)) * c.aa(inside)
    if r.random() < 0.4:
        word = "".join(r.choice(list("ABEHKNPRSTUXZ0234689"), r.integers(1, 5)))
        size = r.uniform(10, 30)
        c.paint(np.maximum(text(word, u, v - F(r.uniform(-30, 30)), size), d + F(3)), c.any(), r.uniform(-1, 1), 1.5)


def _random_pattern(c: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """A pattern of a kind, scale and direction drawn at random: an amount in 0..1 and cell numbers, (H, W) each."""
    r, scale, warp = c.rng, np.exp(c.rng.uniform(np.log(5), np.log(42))), c.rng.uniform(0, 0.5)
    a = r.uniform(0, TAU)
    x, y = c.u * F(np.cos(a)) + c.v * F(np.sin(a)), c.v * F(np.cos(a)) - c.u * F(np.sin(a))
    if r.random() < 0.6:
        bumps = r.uniform(2, 9)
        x, y = x + F(warp * scale) * c.noise(bumps, 2), y + F(warp * scale) * c.noise(bumps, 2)
    p, q = x / F(scale), y / F(scale * r.uniform(0.4, 1.6))
    i, j = np.floor(p).astype(int), np.floor(q).astype(int)
    number, kind = i * 31 + j * 17, r.integers(9)
    if kind == 0:  # smooth noise, often drawn out along one direction
        n = 240 / scale
        amount = 0.5 + 0.33 * c.noise((n * r.uniform(0.1, 1), n) if r.random() < 0.5 else (n, n * r.uniform(0.1, 1)), 3)
    elif kind == 1:  # specks: noise cut at a level
        amount = step(c.noise(240 / scale * 1.5, int(r.integers(1, 4))), r.uniform(-0.2, 1), r.uniform(1.05, 1.8))
    elif kind == 2:  # irregular cells with seams
        grain = F(r.uniform(0.4, 1.6))
        edge, number = cells(c.u * grain, c.v * grain, int(r.choice([60, 140, 320])))
        amount = step(edge / grain, 0.2, r.uniform(0.6, 3))
    elif kind == 3:  # stripes
        amount = 0.5 + 0.5 * np.cos(p * F(TAU))
        number = i
    elif kind == 4:  # courses of blocks
        shift = p + F(r.uniform(0.2, 0.8)) * j
        number = np.floor(shift).astype(int) * 31 + j * 17
        amount = step(np.minimum(0.5 - np.abs(frac(shift) - F(0.5)), 0.5 - np.abs(frac(q) - F(0.5))), 0.01, 0.12)
    elif kind == 5:  # dots or rings on a lattice
        d = length(frac(p + F(0.5) * (j & 1)) - F(0.5), frac(q) - F(0.5))
        amount = step(-d, -r.uniform(0.25, 0.48), -0.15) if r.random() < 0.6 else step(np.abs(d - F(0.3)), 0.15, 0.05)
    elif kind == 6:  # a weave
        over = (i + j) % 2 == 0
        amount = np.where(over, np.sqrt(np.abs(np.sin(q * F(np.pi)))), np.sqrt(np.abs(np.sin(p * F(np.pi)))))
    elif kind == 7:  # ridges that wander, as grain and veins do
        bend = F(r.uniform(0.3, 2.5)) * c.noise((r.uniform(1, 4), 120 / scale), 2)
        amount = np.square(np.sin(q * F(np.pi) + bend))
    else:  # scales, each over the next
        d = length(frac(p + F(0.5) * (j & 1)) - F(0.5), frac(q) * F(r.uniform(0.5, 1)))
        amount = step(d, 0.7, 0.1)
    return np.clip(amount, 0, 1).astype(F), number


def _random_surface(c: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Colours (3, H, W) and relief (H, W) of one or two random patterns laid over one another."""
    r = c.rng
    color = np.broadcast_to(c.any((0.0, 0.8), (0.2, 0.95))[:, None, None], c.rgb.shape) * (1 + F(0.02) * c.noise(4, 3))
    relief = F(r.uniform(0, 0.5)) * c.noise(r.uniform(20, 110), 2)
    for _ in range(r.integers(1, 4)):
        amount, number = _random_pattern(c)
        other = c.any((0.0, 0.8), (0.15, 0.95))[:, None, None]
        if r.random() < 0.4:  # every cell its own tone
            spread = r.uniform(0.03, 0.3)
            other = other * (1 + F(spread) * np.clip(r.standard_normal(61), -2, 2).astype(F)[number % 61])
        cover = amount * F(r.uniform(0.1, 1) if r.random() < 0.75 else 0)
        color = color + cover * (other - color)
        relief = relief + F(r.uniform(-3, 3)) * amount
    grain = F(r.uniform(0, 0.06)) * c.noise(r.uniform(30, 110), 2)
    return np.clip(color * (1 + grain), 0, 1), relief


@category("patterned surface", "texture", scratch="SD scratch", crack="SB crack", hole="MM hole",
          stain="AC stain:grease", debris="FM debris", combined="MU gouge+drop")  # fmt: skip
def surface(c: Canvas) -> None:
    """No surface in particular, so that a mark is known from any ground."""
    c.pose(180, 40, 0.15)
    c.rgb[:], c.height[:] = _random_surface(c)
    c.gloss[:] = F(c.rng.uniform(0, 0.5))


@category("coated panel", "texture", pit="MM pit", paint="FM drop", thread="FM fibre", misprint="SP print",
          dent="GD dent", damp="AC stain:damp")  # fmt: skip
def panel(c: Canvas) -> None:
    """The same, with the other marks."""
    surface(c)


@category("moulded pad", "flexible", hole="MM hole", abrasion="SD gouge", thread="FM fibre", misprint="SP print",
          faded="AC stain:bleach", dent="GD dent")  # fmt: skip
def pad(c: Canvas) -> None:
    """A soft outline filled with any surface, on any ground."""
    r = c.rng
    c.ground()
    if r.random() < 0.4:
        c.rgb[:] = c.rgb * (1 - F(0.25)) + F(0.25) * _random_surface(c)[0]
    c.pose(180, 10, 0.12)
    bent = c.u + F(r.uniform(-14, 14)) * np.sin(c.v * F(r.uniform(0.01, 0.03)) + F(r.uniform(0, TAU)))
    d = _random_shape(c, bent, c.v, r.uniform(80, 112))
    color, relief = _random_surface(c)
    c.paint(d, color, r.uniform(2, 12), r.uniform(4, 26), 2, r.uniform(0.05, 0.5))
    c.height += relief * c.alpha
