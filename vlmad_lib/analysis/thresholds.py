"""Thresholds: how to call a part good or bad, with and without labelled defects, what it misses and what it costs.

A part is rejected where its score exceeds the threshold. False alarm (overkill): a good part rejected; escape: a
defective part accepted. Calibration images are normal images that were scored like test images: those of the data
set's validation split, or else its training images that are no references; where there are none, random halves of the
good test images take turns: one half sets the threshold, the other is judged.

A score in [0, 1] is calibrated where, of the images that get 0.7, 70 % are defective. That holds for one share of
defective images, here the test set's; on a line with fewer defects the same score means less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vlmad_lib import InputError, methods, tables, within
from vlmad_lib.analysis import comparison
from vlmad_lib.config import Profile
from vlmad_lib.data import datasets
from vlmad_lib.evaluation import statistics
from vlmad_lib.pipeline.results import Results

# Random draws of calibration images, where there is more than one way to draw them.
REPEATS = 200
TRAIN, HALVES = "held-out normal images", "halves of the good test images"
VALIDATION = "validation"  # the split of normal images that a data set keeps to set thresholds
# The rules of pixel thresholds: two promises, and that of SegF1 without one.
IMAGES, PIXELS, DEVIATIONS = "images", "pixels", "mean + 3 deviations"
OWN, OTHERS = "F1-max, own labels", "F1-max, other categories"
NUMBERS = {"k": int, "draws": int, "threshold": float, "alarms": float, "n_good": int, "escapes": float, "n_bad": int}
COLUMNS = ["method", "group", "category", "source", "rule", *NUMBERS]
# Bins of a calibration error; fewer where one would hold fewer images than FULL_BIN.
BINS, FULL_BIN = 10, 10
CALIBRATION_RESAMPLES = 500
ENDS = (1 - statistics.LEVEL) / 2, (1 + statistics.LEVEL) / 2
AS_RUN = "as run"
# Platt's logistic curve of the score, and the best rising step function.
CURVES = ("logistic", "isotonic")


# ---------------------------------------------------------------- thresholds


def rank(k: int, alpha: float) -> int:
    """Which of k sorted normal scores is the conformal threshold at level alpha; k + 1 where k is too small."""
    if not 0 < alpha < 1:
        raise InputError(f"The level alpha is {alpha}; choose a share between 0 and 1, for instance 0.1.")
    return int(np.ceil((k + 1) * (1 - alpha) - 1e-9))


def images_needed(alpha: float) -> int:
    """How many normal images a conformal threshold at level alpha takes at least."""
    return int(np.ceil(1 / alpha - 1 - 1e-9))


def conformal(normal: np.ndarray, alpha: float) -> np.ndarray:
    """Split-conformal thresholds (...) of k normal scores (..., k).

    A new normal image exceeds one with probability at most alpha. The promise is for one new image that is
    exchangeable with the k, over draws of all of them. Infinite, no promise but that of rejecting nothing, where
    k < 1 / alpha - 1.
    """
    *draws, k = np.shape(normal)
    place = rank(k, alpha)
    return np.sort(normal, axis=-1).take(place - 1, -1) if place <= k else np.full(draws, np.inf)[()]


def quantile(normal: np.ndarray, alpha: float) -> np.ndarray:
    """Empirical quantiles (...) at 1 - alpha of normal scores (..., k), interpolated.

    With few images more than alpha of new ones exceed it.
    """
    rank(np.shape(normal)[-1], alpha)
    return np.quantile(normal, 1 - alpha, axis=-1)


def rate_interval(k: int, alpha: float, level: float = statistics.LEVEL) -> tuple[float, float]:
    """Where the false-alarm rate of one calibration by k images lies with probability ``level``.

    Given the k images the rate of a continuous score is Beta(k + 1 - r, r), r their ``rank``. (0, 0) without a promise.
    """
    from scipy.stats import beta

    place = rank(k, alpha)
    if place > k:
        return 0.0, 0.0
    low, high = beta.ppf([(1 - level) / 2, (1 + level) / 2], k + 1 - place, place)
    return float(low), float(high)


def alarm_chances(judged: pd.DataFrame, alpha: float) -> np.ndarray:
    """The probabilities of 0, 1, 2 ... false alarms of conformal thresholds over all rows, (most + 1,).

    They are sums of beta-binomial counts: the threshold's own randomness is in them, for k images fix a rate of their
    own. For continuous scores and good images exchangeable with those that calibrated.
    """
    from scipy.stats import betabinom

    chances = np.ones(1)
    for k, n in zip(judged.k, judged.n_good, strict=True):
        place = rank(k, alpha)
        if place <= k:
            chances = np.convolve(chances, betabinom.pmf(np.arange(n + 1), n, k + 1 - place, place))
    return chances


def allowance(judged: pd.DataFrame, alpha: float, level: float = statistics.LEVEL) -> int:
    """The most false alarms, over all rows, that conformal thresholds give with probability ``level``."""
    return int(np.searchsorted(np.cumsum(alarm_chances(judged, alpha)), level))


def tabulate_promises(alphas: Sequence[float], counts: Sequence[int]) -> pd.DataFrame:
    """What k normal images can promise: the rank of the threshold, the mean rate, and where 95 % of draws lie.

    Rates are nan where k is too small: such a threshold rejects nothing, so it inspects nothing.
    """
    rows = []
    for alpha in alphas:
        for k in counts:
            place = rank(k, alpha)
            row = {"alpha": alpha, "k": k, "threshold": "none: too few images, so nothing is inspected"}
            if place <= k:
                low, high = rate_interval(k, alpha)
                row |= {"threshold": f"{place} of {k}", "mean": (k + 1 - place) / (k + 1), "low": low, "high": high}
            rows.append(row)
    return pd.DataFrame(rows, columns=["alpha", "k", "threshold", "mean", "low", "high"])


def plan_images(rates: Sequence[float], level: float = statistics.LEVEL) -> pd.DataFrame:
    """How many images a promise takes, by the share that shall not be exceeded.

    ``good, on average``: normal images for a conformal threshold whose mean false-alarm rate is at most the share.
    ``good, at 95 %``: for one set from the k normal images at hand to be within it with that probability, its largest
    score being the threshold (Wilks 1941): (1 - share)^k at most 1 - level. ``bad, none escaping``: defective images to
    bound the escapes at that level if none of them escapes (rule of three); ``bad, one escaping``: if one does
    (Clopper and Pearson 1934). The images are taken as drawn independently, as the line's parts come.
    """
    from scipy.stats import beta

    rows = []
    for share in rates:
        within("share", share, 1e-4, 0.5)
        none = int(np.ceil(np.log(1 - level) / np.log1p(-share)))
        counts = np.arange(none, 2 * none + 1)
        with_one = int(counts[np.argmax(beta.ppf(level, 2, counts - 1) <= share)])
        rows.append((share, images_needed(share), none, none, with_one))
    columns = ["share", "good, on average", "good, at 95 %", "bad, none escaping", "bad, one escaping"]
    return pd.DataFrame(rows, columns=columns)


def pixel_threshold(normal_maps: Sequence[np.ndarray], rate: float, over: str = "images") -> float:
    """A threshold for the pixels of anomaly maps from maps of k normal images alone, each of any shape.

    A pixel is marked where its score exceeds the threshold. ``over`` says what is promised of one new normal image,
    exchangeable with the k, over draws of all of them:

    - ``"images"``: with probability at most ``rate`` it has any marked pixel (split-conformal on the maxima);
    - ``"pixels"``: its expected share of marked pixels is at most ``rate`` (conformal risk control, Angelopoulos et
      al. 2024). Some normal images may have many marked pixels where most have none.

    Pixels of one image are not exchangeable with those of another, so k counts images: infinite, nothing is marked,
    where k < 1 / rate - 1. Neither promises that a defect is marked, nor that a mask has the defect's outline.
    InputError for an unknown ``over`` or a rate that is no share.
    """
    if over not in ("images", "pixels"):
        raise InputError(f"over={over!r} is no promise of a pixel threshold; choose 'images' or 'pixels'.")
    k = len(normal_maps)
    if rank(k, rate) > k:
        return float("inf")
    if over == "images":
        return float(conformal(np.array([scores.max() for scores in normal_maps]), rate))
    values = np.concatenate([np.ravel(scores) for scores in normal_maps])
    weights = np.concatenate([np.full(np.size(scores), 1 / np.size(scores)) for scores in normal_maps])
    order = np.argsort(-values, kind="stable")
    values, counted = values[order], np.cumsum(weights[order])
    # the new image may be marked all over, which is the 1; what may be marked is then above the first value too many
    allowed = np.searchsorted(counted, rate * (k + 1) - 1 + 1e-9, "right")
    return float(values[min(allowed, len(values) - 1)])


def deviation_threshold(normal_maps: Sequence[np.ndarray], deviations: float = 3.0) -> float:
    """The mean of the pixels of normal images' anomaly maps plus so many of their standard deviations.

    All pixels of all maps, each of any shape, count alike, category by category: how the authors of MVTec AD 2 set the
    threshold of SegF1 from validation images (Heckler-Kram et al. 2025). It promises nothing of a new image.
    """
    count = sum(scores.size for scores in normal_maps)
    mean = sum(float(scores.sum(dtype=np.float64)) for scores in normal_maps) / count
    squares = sum(float(np.square(scores - mean, dtype=np.float64).sum()) for scores in normal_maps)
    return mean + deviations * float(np.sqrt(squares / count))


def marked_areas(maps: Sequence[np.ndarray], limit: float) -> np.ndarray:
    """The share of each image's pixels above a pixel threshold, (n,) in [0, 1]: a second score of images.

    It sees a wide and faint defect that the maximum misses. A threshold on it keeps a promise only if ``limit`` was
    set from other images than those that set the threshold on the area.
    """
    return np.array([np.mean(scores > limit) for scores in maps], float)


def _under(score: float, scores: np.ndarray) -> float:
    """A threshold that ``score`` just exceeds, half way to the next lower score; -inf where there is none."""
    lower = scores[scores < score]
    return min((lower.max() + score) / 2, np.nextafter(score, -np.inf)) if len(lower) else float("-inf")


def f1_max(good: np.ndarray, bad: np.ndarray) -> float:
    """The threshold of the largest F1 on labelled scores; judged on these very scores it would flatter itself."""
    candidates = np.unique(bad)  # F1 is only best at the score of a defective image
    hits = len(bad) - np.searchsorted(np.sort(bad), candidates, "left")
    alarms = len(good) - np.searchsorted(np.sort(good), candidates, "left")
    best = candidates[np.argmax(2 * hits / (hits + alarms + len(bad)))]
    return _under(best, np.r_[good, bad])


def threshold_at_escape(good: np.ndarray, bad: np.ndarray, share: float) -> float:
    """The highest threshold that at most this share of the defective images escape."""
    allowed = int(np.floor(share * len(bad) + 1e-9))
    return _under(np.sort(bad)[allowed], np.r_[good, bad]) if allowed < len(bad) else float("inf")


def escape_bound(bad: np.ndarray, share: float) -> float:
    """The highest threshold under which a new defective image escapes with probability at most ``share``.

    Split-conformal from the side of n defective scores (n,), for one that is exchangeable with them. -inf, which
    rejects everything, where n < 1 / share - 1; infinite where all may escape.
    """
    if not 0 < share < 1:
        return float("inf") if share >= 1 else float("-inf")
    return float(np.nextafter(-conformal(-np.asarray(bad, float), share), -np.inf))


# The rules that need normal images only.
RULES = {"quantile": quantile, "conformal": conformal}


# ---------------------------------------------------------------- scores


def calibration_index(index: pd.DataFrame, shots: int = 0, seed: int = 0, most: int = 0) -> pd.DataFrame:
    """An index for a run on which normal images that are kept from the test are the ones tested.

    Those of a category's validation split where it has one, or else its training images but for the references of a
    draw, which stay references; at most ``most`` a category. Categories without such images are left out.
    """
    train = index[(index.split == "train") & (index.label == 0)]
    drawn = [datasets.draw_references(train, name, shots, seed) for name in train.category.unique()]
    drawn = pd.concat(drawn) if drawn else train
    kept = index[(index.split == VALIDATION) & (index.label == 0)]
    spare = train.drop(drawn.index)
    spare = pd.concat([spare[~spare.category.isin(kept.category)], kept]).sample(frac=1, random_state=seed)
    spare = spare.groupby("category").head(most) if within("most", most, 0) else spare
    return pd.concat([drawn[drawn.category.isin(spare.category)], spare.assign(split="test")]).sort_index()


def score_normal_images(run: Callable[..., Results], results: Results, shots: int = 0, most: int = 0) -> Results | None:
    """Scores and maps of a run's methods on normal images of ``calibration_index``, scored like test images.

    Args:
        run: What scores the images of an index by a profile: ``pipeline.run.run``, called as ``run(profile, table=)``.
        results: The run whose methods and index are taken.
        shots: The number of references; those of the first draw stay references.
        most: At most so many images a category; 0 for all.

    Returns:
        None where there is no such image or method. Methods whose scores were stretched over the test images, or that
        compare these with each other, are left out: training images have no place on that scale.
    """
    chosen: Profile = results.profile
    seed = min(chosen.seeds) if shots else 0
    spare = calibration_index(results.index, shots, seed, most)
    alone = methods.list_scoring_alone(chosen.methods)
    able = [spec for spec in alone if not shots or methods.without_category_context(spec) == spec]
    if not able or spare.empty or not (results.scores.shots == shots).any():
        return None
    changes = {"methods": able, "imports": [], "shots": [shots], "seeds": [seed]}
    return run(chosen.model_copy(update=changes), table=spare)


@dataclass(frozen=True)
class CategoryScores:
    """The scores of one method on one category: good and defective test images, and normal images kept from the test.

    The latter, ``train``, are those of the validation split where there is one.
    """

    method: str
    group: str
    category: str
    good: np.ndarray
    bad: np.ndarray
    train: np.ndarray

    @property
    def source(self) -> str:
        """Where its calibration images come from."""
        return TRAIN if len(self.train) else HALVES

    @property
    def spare(self) -> int:
        """How many normal images can calibrate."""
        return len(self.train) or len(self.good) // 2

    def draws(self, k: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Scores of k calibration images (all to spare for 0) and of the good images to judge, draw by draw."""
        k = min(k or self.spare, self.spare)
        stream = np.random.default_rng(0)
        for _ in range(0 if not k else 1 if k == len(self.train) else REPEATS):
            order = stream.permutation(len(self.train) or len(self.good))
            if len(self.train):
                yield self.train[order[:k]], self.good
            else:  # the judged half is the same size for every k
                yield self.good[order[:k]], self.good[order[self.spare :]]


def collect_scores(scores: pd.DataFrame, normal: pd.DataFrame | None = None, shots: int = 0) -> list[CategoryScores]:
    """Each category of a scores table at a number of shots, first reference draw, in the tables' order of categories.

    ``normal``: the scores table of training images, run with that draw.
    """
    categories = []
    for name, first in tables.select_first_draw(scores, shots).groupby("method", sort=False):
        spare = normal[(normal.method == name) & (normal.shots == shots)] if normal is not None else first.iloc[:0]
        for category in tables.order_categories(first):
            rows = first[first.category == category]
            sides = (rows[rows.label == label].score.to_numpy() for label in (0, 1))
            train = spare[spare.category == category].score.to_numpy()
            categories.append(CategoryScores(name, rows.group.iloc[0], category, *sides, train))
    return categories


# ---------------------------------------------------------------- false alarms and escapes


def judge(
    scores: CategoryScores,
    rule: str,
    k: int,
    trials: Sequence[tuple[float, np.ndarray]],
    bad: Sequence[np.ndarray] = (),
) -> dict:
    """The counts of a rule, means over trials of a threshold and the good images it judges.

    ``bad``: the defective images that each trial judges, all of the category's unless given.
    """
    limits = np.array([limit for limit, _ in trials])
    alarms = np.mean([(good > limit).sum() for limit, good in trials])
    judged_bad = bad or [scores.bad] * len(trials)
    escapes = np.mean([(values <= limit).sum() for limit, values in zip(limits, judged_bad, strict=True)])
    facts = {"rule": rule, "k": k, "draws": len(trials), "threshold": float(np.median(limits))}
    named = {"method": scores.method, "group": scores.group, "category": scores.category, "source": scores.source}
    counts = {"alarms": alarms, "n_good": len(trials[0][1]), "escapes": escapes, "n_bad": len(judged_bad[0])}
    return named | facts | counts


def rated(rows: list[dict] | pd.DataFrame) -> pd.DataFrame:
    """Counts with their rates and Wilson's 95 % intervals; nan where there is no image to judge."""
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows, columns=COLUMNS)
    table = table.astype({name: kind for name, kind in NUMBERS.items() if name in table})  # also where there is no row
    for rate, hits, n in (("false_alarm", "alarms", "n_good"), ("escape", "escapes", "n_bad")):
        ends = [statistics.wilson(*pair) for pair in zip(table[hits], table[n], strict=True)]
        table[rate] = table[hits] / table[n].where(table[n] > 0)
        table[[f"{rate}_low", f"{rate}_high"]] = pd.DataFrame(ends, table.index, columns=[0, 1], dtype=float)
    return table


def judge_rules(categories: Sequence[CategoryScores], alpha: float, k: int = 0) -> pd.DataFrame:
    """The rules that need normal images only, by category: counts (means over draws), rates, Wilson's intervals."""
    rows = []
    for scores in categories:
        drawn = list(scores.draws(k))
        for rule, choose in RULES.items():
            if drawn:
                limits = choose(np.stack([normal for normal, _ in drawn]), alpha)
                trials = [(float(limit), good) for limit, (_, good) in zip(limits, drawn, strict=True)]
                rows.append(judge(scores, rule, len(drawn[0][0]), trials))
    return rated(rows)


def judge_halves(
    categories: Sequence[CategoryScores],
    rule: str,
    choose: Callable[[np.ndarray, np.ndarray], float],
    training: bool = False,
) -> pd.DataFrame:
    """A rule that needs labels, judged on images that did not choose its threshold: counts, rates, intervals.

    ``choose(good, bad)`` sets the threshold on a random half of a category's good and of its defective test images;
    the other halves are judged. Means over ``REPEATS`` halves. With ``training`` the good side that sets it are the
    training images where there are some, and all good test images are judged. No row where a half would be empty.
    """
    rows = []
    for scores in categories:
        stream, trials, judged_bad = np.random.default_rng(0), [], []
        whole = training and len(scores.train)
        if min(len(scores.good) * (2 if whole else 1), len(scores.bad)) < 2:
            continue
        for _ in range(REPEATS):
            good, bad = stream.permutation(scores.good), stream.permutation(scores.bad)
            sides = (scores.train, good) if whole else np.split(good, [len(good) // 2])
            trials.append((choose(sides[0], bad[: len(bad) // 2]), sides[1]))
            judged_bad.append(bad[len(bad) // 2 :])
        rows.append(judge(scores, rule, 0, trials, judged_bad))
    return rated(rows)


def judge_labelled(categories: Sequence[CategoryScores]) -> pd.DataFrame:
    """The F1-max threshold of a category's own labels, split-half, and that of all other categories' pooled labels."""
    rows = []
    for scores in categories:
        others = [other for other in categories if other.method == scores.method and other.category != scores.category]
        good, bad = (np.concatenate([[], *(getattr(other, side) for other in others)]) for side in ("good", "bad"))
        if len(good) and len(bad):
            rows.append(judge(scores, OTHERS, 0, [(f1_max(good, bad), scores.good)]))
    return pd.concat([judge_halves(categories, OWN, f1_max), rated(rows)], ignore_index=True)


def compare_rules(categories: Sequence[CategoryScores], alpha: float) -> pd.DataFrame:
    """All rules side by side: ``judge_rules`` with all images to spare, then ``judge_labelled``, method by method."""
    table = pd.concat([judge_rules(categories, alpha), judge_labelled(categories)], ignore_index=True)
    return tables.order_by_method(table, [scores.method for scores in categories])


def pool_categories(judged: pd.DataFrame, keys: Sequence[str] = ("method", "rule")) -> pd.DataFrame:
    """All categories together: pooled rates with Wilson's intervals, macro means with Student's over *n* categories.

    Where all categories agree, Wilson's interval serves the macro mean too: that they do is no certainty.
    """
    grouped = judged.groupby(list(keys), sort=False)
    pooled = grouped[["alarms", "n_good", "escapes", "n_bad"]].sum()
    pooled.insert(0, "n", grouped.size())
    table = rated(pooled.reset_index())
    for rate in ("false_alarm", "escape"):
        ends = [(*statistics.paired(rows[rate].dropna()), np.ptp(rows[rate])) for _, rows in grouped]
        means = pd.DataFrame(ends, table.index, columns=["", "_low", "_high", "range"], dtype=float)
        for end in ("", "_low", "_high"):
            table[f"macro_{rate}{end}"] = means[end].clip(0, 1).where(~(means["range"] < 1e-12), table[f"{rate}{end}"])
    return table


def judge_by_count(categories: Sequence[CategoryScores], alpha: float, counts: Sequence[int]) -> pd.DataFrame:
    """``pool_categories`` by rule and number k of calibration images: those of ``counts`` that every category has."""
    most = min((scores.spare for scores in categories), default=0)
    judged = [judge_rules(categories, alpha, k) for k in sorted({k for k in counts if 0 < k < most} | {most} - {0})]
    return pool_categories(pd.concat(judged) if judged else rated([]), ("method", "rule", "k"))


def judge_at_escapes(categories: Sequence[CategoryScores], shares: Sequence[float]) -> pd.DataFrame:
    """False alarms at thresholds that let at most a share of the defective images escape, by category.

    They are set on the very defects they judge. ``allowed`` escapes of ``n_bad``: 0 where the share is less than one
    image, which ``n_bad`` images cannot resolve; ``escape_high`` is the end of Wilson's interval: what the same
    threshold may let escape among other images.
    """
    rows = []
    for scores in categories:
        for share in shares if len(scores.good) and len(scores.bad) else ():
            limit = threshold_at_escape(scores.good, scores.bad, share)
            row = judge(scores, f"{statistics.percent(share)} escape", 0, [(limit, scores.good)])
            rows.append(row | {"share": share, "allowed": int(np.floor(share * len(scores.bad) + 1e-9))})
    return rated(pd.DataFrame(rows, columns=[*COLUMNS, "share", "allowed"]))


def judge_at_false_alarms(categories: Sequence[CategoryScores], share: float) -> pd.DataFrame:
    """Escapes at thresholds that reject at most this share of the good test images, by category.

    Every method is judged at the same number of false alarms, whatever its own thresholds would be. They are set on
    the very good images that they judge, which flatters all methods alike. ``allowed`` false alarms of ``n_good``: 0
    where the share is less than one image. No row for a category without good images. InputError for no share.
    """
    within("max_false_alarms", share, 0, 1)
    rows = []
    for scores in categories:
        if len(scores.good):
            allowed = int(np.floor(share * len(scores.good) + 1e-9))
            falling = np.append(np.sort(scores.good)[::-1], -np.inf)
            row = judge(scores, f"{statistics.percent(share)} false alarms", 0, [(falling[allowed], scores.good)])
            rows.append(row | {"share": share, "allowed": allowed})
    return rated(pd.DataFrame(rows, columns=[*COLUMNS, "share", "allowed"]))


def format_rate(rate: float, low: float, high: float) -> str:
    """A share and its interval for people: ``12.5% (4.0 to 31.0)``, or ``none``."""
    return "none" if np.isnan(rate) else f"{rate:.1%} ({100 * low:.1f} to {100 * high:.1f})"


def format_share(hits: float, n: float) -> str:
    """A share with its Wilson interval and count: ``12.5% (4.0 to 31.0, n = 24)``."""
    return f"{format_rate(hits / n, *statistics.wilson(hits, n))[:-1]}, n = {n:.0f})" if n else "unknown (n = 0)"


def format_rates(judged: pd.DataFrame) -> pd.DataFrame:
    """A table of rates for display: counts with their shares and 95 % intervals."""
    table = judged[[name for name in ("method", "category", "share", "rule", "k") if name in judged]].copy()
    sides = ("false alarms", "false_alarm", "alarms", "n_good"), ("escapes", "escape", "escapes", "n_bad")
    for title, rate, hits, n in sides:
        shares = map(format_rate, judged[rate], judged[f"{rate}_low"], judged[f"{rate}_high"])
        counts = [f"{count:.4g} of {whole:.0f}" for count, whole in zip(judged[hits], judged[n], strict=True)]
        table[title] = [f"{count}: {share}" for count, share in zip(counts, shares, strict=True)]
    return table


# ---------------------------------------------------------------- scores as probabilities


def _places(scores: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each of the scores (..., N); bins of about equal count, ties in one; as many as allowed for 0.

    A bin that ties left without a score has no place: places may skip numbers.
    """
    scores = np.asarray(scores)
    bins = bins or max(2, min(BINS, scores.shape[-1] // FULL_BIN))
    edges = np.quantile(scores, np.linspace(0, 1, bins + 1)[1:-1], axis=-1)
    return (scores >= edges[..., None]).sum(0)


def tabulate_reliability(labels: np.ndarray, scores: np.ndarray, bins: int = 0) -> pd.DataFrame:
    """Mean score and share of defective images by bin, with Wilson's 95 % interval of the share."""
    cells = pd.DataFrame({"score": scores, "share": labels}).groupby(_places(scores, bins))
    table = cells.mean().assign(n=cells.size()).reset_index(drop=True)
    ends = [statistics.wilson(*pair) for pair in zip(table.share * table.n, table.n, strict=True)]
    return table.assign(low=[low for low, _ in ends], high=[high for _, high in ends])


def calibration_error(labels: np.ndarray, scores: np.ndarray, bins: int = 0) -> np.ndarray:
    """Expected calibration errors (...) of labels (..., N) and scores (..., N).

    The mean gap of mean score and share over bins, weighted by their counts.
    """
    places, gaps = _places(scores, bins), labels - scores
    sums = [np.where(places == place, gaps, 0).sum(-1) for place in range(places.max() + 1)]
    return np.abs(sums).sum(0) / scores.shape[-1]


def brier_score(labels: np.ndarray, scores: np.ndarray) -> float:
    """Mean squared difference of score and label, 0 to 1; a constant score of the base rate p has p (1 - p)."""
    return float(np.mean((scores - labels) ** 2))


def error_interval(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, bins: int = 0, resamples: int = CALIBRATION_RESAMPLES
) -> tuple[float, float]:
    """95 % interval of ``calibration_error``: images resampled within their group (N,), percentiles.

    Resampling adds to the error as few images do, so the lower end may be too high; it is kept below the estimate.
    """
    drawn = _drawn(groups, resamples)
    low, high = np.quantile(calibration_error(labels[drawn], scores[drawn], bins), ENDS)
    here = float(calibration_error(labels, scores, bins))
    return min(float(low), here), max(float(high), here)


def _drawn(groups: np.ndarray, resamples: int) -> np.ndarray:
    """(resamples, N) places of images resampled within their group (N,)."""
    stream = np.random.default_rng(0)
    members = [np.flatnonzero(groups == group) for group in pd.unique(groups)]
    return np.concatenate([stream.choice(places, (resamples, len(places))) for places in members], 1)


def compare_with_constant(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, resamples: int = CALIBRATION_RESAMPLES
) -> str:
    """Whether the Brier score is ``better`` or ``worse`` than that of the labels' own share, or shows no difference.

    By the 95 % interval of their difference, image by image: resampled within their group (N,), percentiles.
    """
    lost = (scores - labels) ** 2 - (labels.mean() - labels) ** 2
    low, high = np.quantile(lost[_drawn(groups, resamples)].mean(1), ENDS)
    return {"lower": "better", "higher": "worse"}.get(comparison.verdict(low, high), comparison.NO_DIFFERENCE)


def chance_error(scores: np.ndarray, bins: int = 0, resamples: int = CALIBRATION_RESAMPLES) -> float:
    """The error that perfectly calibrated scores stay below with probability 0.95: few images alone make some."""
    labels = np.random.default_rng(0).random((resamples, len(scores))) < scores
    return float(np.quantile(calibration_error(labels, scores, bins), statistics.LEVEL))


# ---------------------------------------------------------------- curves fitted on other categories


def fit_curve(labels: np.ndarray, scores: np.ndarray, new: np.ndarray, curve: str) -> np.ndarray:
    """Probabilities (M,) of new scores by a rising curve fitted on labels (N,) and scores (N,)."""
    if curve == "isotonic":
        from sklearn.isotonic import IsotonicRegression

        return IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, labels).predict(new)
    from sklearn.linear_model import LogisticRegression

    centre, width = scores.mean(), scores.std() or 1.0
    model = LogisticRegression(C=1e3).fit((scores[:, None] - centre) / width, labels)
    return model.predict_proba((new[:, None] - centre) / width)[:, 1]


def apply_other_curves(scores: pd.DataFrame, curve: str) -> np.ndarray | None:
    """Each category's scores through the curve of all other categories; None where those lack one of the labels."""
    values = pd.Series(np.nan, scores.index)
    for category, rows in scores.groupby("category"):
        others = scores[scores.category != category]
        if others.label.nunique() < 2:
            return None
        values[rows.index] = fit_curve(others.label.to_numpy(), others.score.to_numpy(), rows.score.to_numpy(), curve)
    return values.to_numpy()


def calibrate_scores(scores: pd.DataFrame, shots: int = 0) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Each method (first reference draw) as run, if its scores lie in [0, 1], and by the curves."""
    for name, rows in tables.select_first_draw(scores, shots).groupby("method", sort=False):
        rows = rows.reset_index(drop=True)
        if rows.label.nunique() < 2:
            continue
        if rows.score.between(0, 1).all():
            yield name, AS_RUN, rows
        for curve in CURVES:
            values = apply_other_curves(rows, curve)
            if values is not None:
                yield name, curve, rows.assign(score=values)


def tabulate_calibration(scores: pd.DataFrame, shots: int = 0, bins: int = 0) -> pd.DataFrame:
    """Expected calibration error with its 95 % interval and Brier score by method and version.

    ``chance`` is what calibrated scores would stay below with probability 0.95, ``constant`` the Brier score of the
    test set's own share of defective images, *against it* what ``compare_with_constant`` says.
    """
    rows = []
    for name, version, images in calibrate_scores(scores, shots):
        labels, values, groups = images.label.to_numpy(), images.score.to_numpy(), images.category.to_numpy()
        share, ends = labels.mean(), error_interval(labels, values, groups, bins)
        errors = (calibration_error(labels, values, bins), *ends, chance_error(values, bins))
        against = compare_with_constant(labels, values, groups)
        rows.append((name, version, *errors, brier_score(labels, values), share * (1 - share), against, len(images)))
    columns = ["method", "version", "error", "low", "high", "chance", "brier", "constant", "against it", "n"]
    return pd.DataFrame(rows, columns=columns)
