"""The registry of demo categories, and the twelve target categories.

A category is a function that draws one scene on a canvas. Its defects are written `name="CODE recipe"`: CODE stands
for the study's defect class; a recipe is `part` (the function itself draws the fault), or kinds of `defects.py` joined
by `+`, each with an option after a colon.
"""
# ruff: noqa: D103  (a category's class name, in its decorator, says what its function draws)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .draw import TAU, Canvas, F, box, cells, frac, length, rgb, seg, smin, step, text

CLASSES = {
    "MC": "Missing Component", "LE": "Logical Error", "GD": "Geometric Deformation", "SP": "Surface Pattern",
    "MU": "Multiple", "SD": "Surface Damage", "FM": "Foreign Material", "AC": "Appearance Change",
    "SB": "Structural Break", "MM": "Missing Material",
}  # fmt: skip


@dataclass(frozen=True)
class Category:
    """A demo category: names, group (texture, rigid, flexible), subset (target, auxiliary), defect -> defect class."""

    name: str
    class_name: str
    group: str
    subset: str
    defects: dict[str, str]


CATEGORIES: dict[str, Category] = {}
SCENES: dict[str, Callable[[Canvas], None]] = {}
RECIPES: dict[tuple[str, str], str] = {}


def category(class_name: str, group: str, subset: str = "target", **defects: str):
    """Register the decorated drawing function as a category with these defects."""

    def register(scene):
        name = scene.__name__
        split = {d: s.split(" ", 1) for d, s in defects.items()}
        classes = {d: CLASSES[code] for d, (code, _) in split.items()}
        CATEGORIES[name] = Category(name, class_name, group, subset, classes)
        RECIPES.update({(name, d): recipe for d, (_, recipe) in split.items()})
        SCENES[name] = scene
        return scene

    return register


def fill(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Colours (3, H, W) of a table (n, 3) at an integer index image, wrapped."""
    return np.take(table.T.astype(F), index % len(table), axis=1)


@category("linen fabric", "texture", misweave="SP part", hole="MM hole", stain="AC stain:coffee",
          combined="MU hole+fibre")  # fmt: skip
def linen(c: Canvas) -> None:
    r, p = c.rng, c.rng.uniform(6.2, 7.2)
    c.pose(7, 20, 0)
    slub = c.noise((3, 40), 2), c.noise((40, 3), 2)
    u, v = c.u / F(p) + F(0.12) * slub[1], c.v / F(p) + F(0.12) * slub[0]
    i, j = np.floor(u).astype(int), np.floor(v).astype(int)
    a, b = u - i - F(0.5), v - j - F(0.5)
    over = (i + j) % 2 == 0
    if c.hit("misweave"):
        over = np.where(c.blob() < 0, (i // 2 + j) % 2 == 0, over)
    width = 0.86 + 0.1 * r.standard_normal((2, 64))
    pa = np.sqrt(np.clip(1 - np.square(2 * a / width[0].astype(F)[i % 64]), 0, 1))
    pb = np.sqrt(np.clip(1 - np.square(2 * b / width[1].astype(F)[j % 64]), 0, 1))
    warp, weft = pa * (F(0.75) + F(0.5) * np.cos(np.pi * b)), pb * (F(0.75) + F(0.5) * np.cos(np.pi * a))
    lift = np.where(over, np.maximum(warp, F(0.5) * weft * (pa == 0)), np.maximum(weft, F(0.5) * warp * (pb == 0)))
    yarn = c.tone("cdbb98", 0.05) * (1 + 0.07 * r.standard_normal((128, 1)))
    c.rgb = np.where(over, fill(yarn[:64], i), fill(yarn[64:], j)) * (F(0.42) + F(0.62) * np.minimum(lift, 1))
    c.rgb *= 1 + F(0.04) * c.noise((90, 90), 1)
    c.height, c.gloss[:] = lift * F(1.3), 0.02


@category("terrazzo floor", "texture", scratch="SD scratch", crack="SB crack", paint_drop="FM drop",
          pit="MM pit")  # fmt: skip
def terrazzo(c: Canvas) -> None:
    r = c.rng
    c.pose(180, 120, 0.08)
    c.ground(c.tone("dcd5c8", 0.03), 0.008)
    c.rgb *= 1 + F(0.03) * c.noise(110, 1)
    palette = np.array([rgb(h) for h in ("b5583f", "e9c48f", "4d5a5e", "f6f1e6", "8a9a80", "2f3335", "cf8d76")])
    for count, part, gap in ((700, 0.55, 0.7), (150, 0.5, 1.5)):
        edge, n = cells(c.u, c.v, count)
        stone = palette[r.integers(0, 7, 701)] * (1 + 0.08 * r.standard_normal((701, 1)))
        on = (r.random(701) < part)[n]
        chip = fill(stone, n) * (1 + F(0.05) * c.noise(60, 2))
        c.paint(np.where(on, F(gap) - edge, 9), chip, gloss=0.3, solid=False)
    c.gloss += 0.12 + 0.05 * c.noise(3, 2)


@category("brushed steel", "texture", scratch="SD scratch", dent="GD dent", cross_grain="SP swirl",
          rust="AC stain:rust")  # fmt: skip
def brushed_steel(c: Canvas) -> None:
    r = c.rng
    c.pose(5, 30, 0)
    i, j = (c.v * F(1.5)).astype(int) + 300, (c.u * F(0.045) + F(16)).astype(int)
    table = r.standard_normal((600, 40)).astype(F)
    table = table + table[:, :1] * F(1.3) + np.roll(table, 1, 0) * F(0.6)
    w = c.u * F(0.045) + F(16) - j
    grain = table[i, j] * (1 - w) + table[i, j + 1] * w
    band = np.cos((c.u + F(r.uniform(-70, 70))) * F(0.021)) * F(0.09) + F(0.03) * c.noise((2, 3), 2)
    c.rgb[:] = c.tone("a9adb2", 0.05)[:, None, None] * (1 + band + F(0.033) * grain)
    c.height, c.gloss[:] = grain * F(0.12), 0.15


@category("cork board", "texture", gouge="SD gouge", debris="FM debris", bleached="AC stain:bleach",
          combined="MU gouge+debris")  # fmt: skip
def cork(c: Canvas) -> None:
    r = c.rng
    c.pose(180, 120, 0.1)
    edge, n = cells(c.u + F(1.5) * c.noise(60, 1), c.v, 1300)
    base = c.tone("c39462", 0.05)
    tones = base * (1 + 0.13 * r.standard_normal((1301, 1))) + r.normal(0, 0.012, (1301, 3))
    tones[r.random(1301) < 0.06] = rgb("6b4426")
    c.rgb = fill(tones, n) * (1 + F(0.06) * c.noise(100, 2)) * (F(0.72) + F(0.28) * step(edge, 0, 1.6))
    c.height, c.gloss[:] = np.minimum(edge, 3) * F(0.5) + F(0.35) * c.noise(90, 1), 0.03


@category("gear wheel", "rigid", missing_tooth="MC part", scratch="SD scratch", rust="AC stain:rust",
          crack="SB crack")  # fmt: skip
def gear(c: Canvas) -> None:
    c.ground(c.tone("8fa3b0", 0.05))
    c.pose(180, 7)
    n, root, tooth = 18, 74.0, 18.0
    rad, turn = length(c.u, c.v), np.arctan2(c.v, c.u) * F(1 / TAU)
    ang = turn * n
    wave = np.clip(F(0.5) + F(1.15) * np.cos(F(TAU) * ang), 0, 1)
    if c.hit("missing_tooth"):
        k = c.f.integers(n)
        wave = wave * (np.abs((ang - F(k) + F(n / 2)) % n - F(n / 2)) > 0.5)
    c.paint((rad - F(root) - F(tooth) * wave) * F(0.8), c.tone("b9b4aa", 0.05), 6, 4.5, 8, 0.3, 0.75)
    c.paint(np.abs(rad - F(49)) - F(14), c.tone("96928a"), -3.5, 4, gloss=0.15, metal=0.7)
    a = frac(turn * 6) - F(0.5)
    hole = length(rad - F(49), a * F(TAU / 6 * 49)) - F(10.5)
    bore = np.minimum(rad - F(19), box(c.u, c.v + F(19), 5, 5))
    for d in (hole, bore):
        c.paint(d - F(1.6), c.tone("c9c4b8"), gloss=0.4, metal=0.8)
        c.paint(d, rgb("3b4248"), z=0, gloss=0)
    c.rgb *= 1 + F(0.035) * np.cos(rad * F(2.4)) * (c.alpha > 0.5) * (rad < 72)


@category("hex bolt", "rigid", bent="GD bend:35", stripped_thread="MM part", grease="FM stain:grease",
          scratch="SD scratch")  # fmt: skip
def hex_bolt(c: Canvas) -> None:
    c.ground(c.tone("d9d4c6", 0.04))
    c.pose(25, 7)
    u, v = c.u, c.v
    steel = c.tone("b7bcc2", 0.05)
    pitch, cut = 6.4, np.ones_like(u)
    if c.hit("stripped_thread"):
        mid, half = c.f.uniform(25, 75), c.f.uniform(8, 16)
        cut = step(np.abs(u - F(mid)), half * 0.7, half * 1.1) * F(0.85) + F(0.1)
    saw = np.abs(frac((u - v * F(0.11)) / F(pitch)) - F(0.5)) * 2
    zone = step(u, 4, 10) * cut
    rad = F(19.5) - zone * saw * F(4.2) - np.maximum(u - F(92), 0) * F(0.9) - F(1.8) * (1 - cut)
    shank = np.maximum(np.abs(v) - rad, np.abs(u - F(20)) - F(82)) * F(0.8)
    c.paint(shank, steel, z=0, gloss=0.25, metal=0.8)
    round_ = np.sqrt(np.clip(1 - np.square(v / F(20)), 0.01, 1))
    c.height += (round_ * F(15) - zone * saw * F(3.6)) * (c.alpha > 0)
    c.rgb *= 1 - F(0.45) * (1 - round_) * (c.alpha > 0)
    c.paint(box(u + F(58), v, 4, 43, 2), steel * F(0.96), 4, 4, 16, 0.3, 0.8)
    head = np.maximum(box(u + F(78), v, 18, 38, 3), -u - F(93) + np.square(v / F(38)) * F(5))
    face = np.abs(v) - F(18.5)
    c.paint(head, steel, 6, 5, 20, 0.3, 0.75)
    c.rgb *= 1 - (head < 0) * (step(face, -0.8, 0.8) * F(0.22) - F(0.25) * np.exp(-np.square(face / F(1.2))))


@category("coin", "rigid", wrong_numeral="LE part", scratch="SD scratch", edge_nick="MM part",
          combined="MU scratch+stain:verdigris")  # fmt: skip
def coin(c: Canvas) -> None:
    r = c.rng
    c.ground(c.tone("49505c", 0.06))
    c.pose(14, 8, 0.05)
    u, v = c.u, c.v
    rad, ang = length(u, v), np.arctan2(v, u)
    disc = rad - F(88)
    if c.hit("edge_nick"):
        a, s = c.f.uniform(0, TAU), c.f.uniform(9, 21)
        bite = length(u - F(np.cos(a) * 90), v - F(np.sin(a) * 90)) - F(s) + F(2.2) * np.sin(ang * F(41))
        disc = np.maximum(disc, -bite)
    gold = c.tone(("d3a640", "c98f56", "c9a961")[r.integers(3)], 0.05)
    c.paint(disc, gold, 7, 5, 6, 0.35, 0.75)
    c.paint(rad - F(78), gold * F(0.9), -3.5, 3, gloss=0.25, metal=0.7)
    beads = length(rad - F(72), (frac(ang * F(48 / TAU)) - F(0.5)) * F(TAU * 72 / 48)) - F(3)
    c.paint(beads, gold, 2.6, 3, gloss=0.5, metal=0.7)
    leaf_a = frac(np.abs(ang - F(np.pi / 2)) * F(5)) * F(2.2) - F(1.1)
    side = np.abs(np.abs(ang - F(np.pi / 2)) - F(1.35)) < 0.95
    side |= np.abs(ang + F(3 * np.pi / 2) - F(1.35)) < 0.95
    sprig = length((rad - F(55) - leaf_a * F(3.4)) * F(0.75), leaf_a * F(5.5)) - F(5.2)
    c.paint(np.where(side, sprig, 9), gold * F(1.04), 3, 3.5, gloss=0.4, metal=0.7)
    digit = "5" if not c.hit("wrong_numeral") else "23678"[c.f.integers(5)]
    c.paint(text(digit, u, v, 52), gold * F(1.06), 4.5, 4, gloss=0.45, metal=0.7)
    c.rgb *= 1 + F(0.05) * c.noise(8, 3) * c.alpha


@category("door key", "rigid", wrong_cut="LE part", bent="GD bend:18", scratch="SD scratch",
          broken_tip="SB part")  # fmt: skip
def key(c: Canvas) -> None:
    c.ground(c.tone("3f6b66", 0.06))
    c.pose(20, 6)
    u, v = c.u, c.v
    brass = c.tone("d2b468", 0.04)
    tip = F(100)
    if c.hit("broken_tip"):
        tip = F(100 - c.f.uniform(14, 36)) + F(2.2) * np.sin(v * F(0.9)) + v * F(0.25)
    bits = [9, 3, 7, 1, 6, 4, 8]
    if c.hit("wrong_cut"):
        k = c.f.integers(0, 6)
        for m, shift in ((k, 6), (k + 1, 5 + c.f.integers(3))):
            bits[m] = (bits[m] + shift) % 11
    i = np.clip(u / F(12), 0, len(bits) - 1)
    lo = np.floor(i).astype(int)
    b, w = np.array(bits, F), np.clip((i - lo) * 2 - F(0.5), 0, 1)
    depth = b[lo] * (1 - w) + b[np.minimum(lo + 1, len(bits) - 1)] * w
    edge = F(16) - (depth + F(1)) * (u > 0) + np.maximum(u - F(82), 0) * F(-0.9)
    blade = np.maximum(np.maximum(v - edge, -v - F(12) + np.maximum(u - F(86), 0) * F(0.8)), u - tip) * F(0.85)
    bow = smin(length(u + F(66), v) - F(33), box(u + F(32), v, 14, 16, 3), 14)
    body = np.minimum(np.maximum(blade, -u - F(40)), bow)
    c.paint(np.maximum(body, F(8) - length(u + F(82), v)), brass, 5, 4, 7, 0.35, 0.75)
    c.paint(np.maximum(np.abs(v + F(3)) - F(2.6), np.abs(u - F(30)) - F(52)), brass * F(0.72), -2.5, 2.5, metal=0.7)
    c.paint(np.maximum(np.abs(length(u + F(62), v) - F(22)) - F(1.2), -u - F(78)), brass * F(0.8), -1.5, 1.5,
            metal=0.7)  # fmt: skip
    c.paint(text("H7", u + F(60), v, 14), brass * F(0.6), -1.5, 2, metal=0.6)
    c.rgb *= 1 + F(0.05) * c.noise(6, 3) * c.alpha


@category("integrated circuit", "rigid", missing_pin="MC part", bent_pin="GD part", wrong_mark="LE part",
          scratch="SD scratch")  # fmt: skip
def chip(c: Canvas) -> None:
    c.ground(c.tone("b9bcae", 0.05))
    c.pose(9, 7)
    u, v = c.u, c.v
    pitch = F(21)
    n = np.floor(u / pitch + F(4))
    x = u - (n - F(3.5)) * pitch
    pin = (n >= 0) & (n < 8)
    faulty = (n == c.f.integers(8)) & ((v > 0) == (c.f.random() < 0.5)) if c.fault in ("missing_pin", "bent_pin") else 0
    if c.hit("missing_pin"):
        pin = pin & ~faulty
    out = np.abs(v)
    if c.hit("bent_pin"):
        x = x - faulty * c.f.choice([-1, 1]) * F(c.f.uniform(0.45, 0.6)) * np.maximum(out - F(52), 0)
    d = np.minimum(box(x, out - F(54), 6.2, 12), box(x, out - F(70), 3.8, 20, 1.5))
    bend = F(14) - F(10) * step(out, 62, 72)
    c.paint(np.where(pin, d, 9), c.tone("cfcfca", 0.03), 2, 2.5, 0, 0.5, 0.7)
    c.height += bend * c.alpha
    c.paint(box(u, v, 88, 50, 3), c.tone("2c2d31", 0.06), 7, 6, 14, 0.12)
    c.rgb *= 1 + F(0.05) * c.noise(110, 1) * c.alpha
    c.paint(length(u + F(88), v) - F(9), rgb("202125"), -4, 4, gloss=0.1)
    ink = c.tone("c8c8c0", 0.05)
    c.paint(text("VL 4017", u - F(4), v + F(10), 15), ink, alpha=0.85)
    c.paint(text("MAD 26", u - F(4), v - F(16), 11), ink, alpha=0.8)
    dot = (-72, 34) if not c.hit("wrong_mark") else [(72, 34), (72, -34), (-72, -34)][c.f.integers(3)]
    c.paint(length(u - F(dot[0]), v - F(dot[1])) - F(6), ink, -1.5, 2, alpha=0.85)


@category("rope", "flexible", frayed="SB part", wrong_strand="LE part", abrasion="SD gouge",
          foreign_fibre="FM fibre")  # fmt: skip
def rope(c: Canvas) -> None:
    c.ground(c.tone("5d7480", 0.06))
    c.pose(30, 8)
    s, t = c.along(c.rng.uniform(14, 24), c.rng.uniform(190, 260))
    half, pitch = F(25), F(27)
    q = np.clip(t / half, -1, 1)
    turn = s / pitch + np.arcsin(q * F(0.97)) * F(0.62)
    n = np.floor(turn)
    ph = turn - n - F(0.5)
    bulge = np.sqrt(np.clip(1 - np.square(2 * ph), 0, 1))
    lay = np.sin((turn * F(3.2) - t * F(0.42)) * F(3.1))
    hemp = c.tone("d9c08a", 0.04)
    col = hemp[:, None, None] * (1 + F(0.11) * lay + F(0.07) * c.noise(70, 2)) * (F(0.45) + F(0.55) * bulge)
    d = np.abs(t) - half * (F(0.93) + F(0.09) * bulge)
    if c.hit("wrong_strand"):
        k = np.floor(np.median(n) + c.f.integers(-2, 3))
        other = rgb(("a33b2f", "3d4f8a", "5c7a3a", "40382e")[c.f.integers(4)])
        other = hemp + (other - hemp) * F((0.3, 0.6, 1.0)[c.level])
        col = np.where((n == k) & (d < 0), (other / hemp)[:, None, None] * col, col)
    fringe = None
    if c.hit("frayed"):  # one strand is cut through: its yarns splay out over both sides of a dark gap
        s0, side = c.f.uniform(-60, 60), c.f.choice([-1, 1])
        gap = length((s - F(s0)) * F(0.9), t - side * half) - F(c.f.uniform(10, 17))
        gap = gap + F(4) * np.abs(np.sin(s * F(1.3))) * np.sin(t * F(0.8))
        d = np.maximum(d, -gap)
        fringe = [(s0 + a, side * 22.0, s0 + a * 1.9, side * c.f.uniform(27, 36)) for a in c.f.uniform(-15, 15, 11)]
    c.paint(d, col, 20, 25, 2, 0.05)
    c.height += (F(7) * bulge + F(0.9) * lay) * c.alpha
    for line in fringe or ():
        c.paint(seg(s, t, *line, 0.8), hemp * F(0.95), 2, 1, gloss=0.05)


@category("leaf", "flexible", bite="MM part", tear="SB part", spots="AC stain:brown", combined="MU stain:brown+pit")
def leaf(c: Canvas) -> None:
    r = c.rng
    c.ground(c.tone("e8e2d4", 0.04))
    c.pose(40, 7, 0.05)
    curve = F(r.uniform(-0.0022, 0.0022))
    u, v = c.u, c.v - curve * np.square(c.u)
    tau = np.clip((u + F(84)) / F(184), 0, 0.9999)
    width = F(r.uniform(46, 56)) * np.power(np.sin(np.pi * np.power(tau, F(0.72))), F(0.85))
    saw = frac(u * F(0.17) - np.abs(v) * F(0.05))
    d = (np.abs(v) - width + F(2.6) * saw * (width > 6)) * F(0.8)
    d = np.maximum(d, np.abs(u - F(8)) - F(92))
    spread = np.abs(v) * F(0.75) + np.square(v) * F(0.003)
    vein = np.abs(frac((u - spread) / F(17)) - F(0.5)) * F(17)
    if c.hit("bite"):
        m, side, s = c.f.uniform(-40, 50), c.f.choice([-1, 1]), c.f.uniform(10, 24)
        edge = 50 * np.sin(np.pi * ((m + 84) / 184) ** 0.72) ** 0.85
        bites = [length(u - F(m + a), v - F(side * edge)) - F(s * b) for a, b in ((0, 1), (0.9 * s, 0.65))]
        d = np.maximum(d, -np.minimum(*bites))
    if c.hit("tear"):
        m, side, s = c.f.uniform(-30, 40), c.f.choice([-1, 1]), c.f.uniform(2.0, 5.5)
        jag = F(2) * np.sin(v * F(0.55)) + F(1.2) * np.sin(v * F(1.7))
        gap = np.abs(u - spread - F(m) + jag) - F(s) * (np.abs(v) - F(5)) / F(22)
        d = np.maximum(d, -np.where(v * side > 5, gap, 9))
    green = c.tone(("4f8a3a", "5d8f33", "3f7d42")[r.integers(3)], 0.06)
    col = green[:, None, None] * (1 + F(0.1) * c.noise(6, 4) + F(0.05) * c.noise(70, 1))
    pale = np.maximum(step(-vein, -1.7, -0.4) * F(0.5), step(-np.abs(v), -2.8, -1.2) * F(0.85))
    col = col + pale * (rgb("b9cf8a")[:, None, None] - col)
    c.paint(seg(u, v, -84, 0, -110, 8, 2.4), rgb("9aa866"), 3, 2.4, 2, 0.15)
    c.paint(d, col, 3, 5, 4, 0.16)
    c.height += (np.minimum(vein, 6) * F(0.35) - F(2) * np.exp(-np.abs(v) * F(0.25)) + np.abs(v) * F(0.05)) * c.alpha


@category("zipper", "flexible", missing_tooth="MC part", tape_weave="SP part", lint="FM fibre",
          abrasion="SD gouge")  # fmt: skip
def zipper(c: Canvas) -> None:
    r = c.rng
    c.ground(c.tone("d5d2cb", 0.04))
    c.pose(12, 8)
    s, t = c.along(r.uniform(4, 10), r.uniform(240, 320))
    tape = c.tone(("2f4a78", "7a2f3a", "35553f")[r.integers(3)], 0.06)
    rib = np.cos(t * F(1.5)) * F(0.5) + np.cos((s + F(2.2) * np.sign(np.cos(t * F(0.75)))) * F(1.7)) * F(0.5)
    if c.hit("tape_weave"):
        rib = np.where(c.blob() < 0, np.cos((s + t) * F(0.8)) * F(1.4), rib)
    c.paint(np.abs(t) - F(62), tape[:, None, None] * (1 + F(0.13) * rib), 3, 3, 2, 0.03)
    c.height += rib * F(0.55) * c.alpha
    c.paint(np.abs(np.abs(t) - F(21)) - F(1.2), tape * F(1.5), 1, 1.2)
    pitch, side = F(9.4), np.sign(t) + (t == 0)
    n = np.floor(s / pitch + side * F(0.25))
    x = s - (n + F(0.5) - side * F(0.25)) * pitch
    tooth = np.minimum(box(x, np.abs(t) - F(9), 2.9, 8.5, 1.6), length(x, t - side * F(0.5)) - F(3.6))
    if c.hit("missing_tooth"):
        k, which = np.floor(c.f.uniform(-8, 9)), c.f.choice([-1, 1])
        tooth = np.where((side == which) & (n >= k) & (n < k + c.f.integers(1, 4)), 9, tooth)
    c.paint(np.abs(t) - F(17), tape * F(0.55), -1.5, 3)
    c.paint(tooth, c.tone(("c9a24e", "bfc2c6")[r.integers(2)], 0.04), 4.5, 3.2, 5, 0.5, 0.75)
    s0 = F(r.choice([-1, 1]) * r.uniform(66, 84))
    steel = c.tone("b8bbc0", 0.03)
    slider = np.maximum(box(s - s0, t, 19, 18, 7), -box(s - s0 + F(22), t, 9, 4, 2))
    c.paint(slider, steel, 7, 6, 10, 0.45, 0.75)
    c.paint(np.abs(box(s - s0 - F(6), t - F(26), 5.5, 24, 5)) - F(2.8), steel * F(0.93), 4, 2.8, 14, 0.5, 0.75)
