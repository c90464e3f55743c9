"""Thresholds, costs and calibration: a simulation of the promise, cases by hand, scikit-learn as oracle."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import make_mvtec, make_mvtec_ad2, small_profile
from scipy.stats import binom, binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, f1_score

from vlmad_lib import InputError
from vlmad_lib.analysis import costs, thresholds
from vlmad_lib.analysis.thresholds import OTHERS, OWN, CategoryScores
from vlmad_lib.data import datasets, mask_files
from vlmad_lib.evaluation import metrics, statistics
from vlmad_lib.pipeline import run
from vlmad_lib.reporting import decide

FRAMED = ["mask", "width", "height", "fit"]  # what frames the mask of a row of the scores table


def part(good, bad, train=(), category: str = "plate", method: str = "A") -> CategoryScores:
    return CategoryScores(method, "rigid", category, *(np.asarray(one, float) for one in (good, bad, train)))


def judged_row(method, rule, k, alarms, n_good, escapes=0, n_bad=0, category="plate") -> dict:
    counts = {"alarms": alarms, "n_good": n_good, "escapes": escapes, "n_bad": n_bad}
    facts = {"method": method, "group": "rigid", "category": category, "source": thresholds.TRAIN, "rule": rule}
    return facts | {"k": k, "draws": 1, "threshold": 0.5} | counts


def rates(rule, k: int, alpha: float, runs: int = 20_000) -> np.ndarray:
    """True false-alarm rates of thresholds from k exponential scores each: exp(-threshold)."""
    draws = np.random.default_rng(k).exponential(size=(runs, k))
    return np.array([np.exp(-rule(one, alpha)) for one in draws])


# ---------------------------------------------------------------- the promise


@pytest.mark.parametrize(("k", "alpha"), [(9, 0.1), (12, 0.1), (25, 0.1), (19, 0.05), (60, 0.02), (6, 0.3)])
def test_conformal_thresholds_keep_their_promise(k, alpha):
    found = rates(thresholds.conformal, k, alpha, 6000)
    error = 4 * found.std() / np.sqrt(len(found))
    assert found.mean() <= alpha + error
    assert found.mean() == pytest.approx((k + 1 - thresholds.rank(k, alpha)) / (k + 1), abs=error)
    low, high = thresholds.rate_interval(k, alpha)
    assert np.quantile(found, [0.025, 0.975]) == pytest.approx([low, high], abs=0.02)
    assert ((found >= low) & (found <= high)).mean() == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("k", [3, 5, 12])
def test_a_quantile_of_few_images_promises_nothing(k):
    stream = np.random.default_rng(0)
    found = np.array([1 - thresholds.quantile(one, 0.1) for one in stream.random((6000, k))])  # uniform scores
    error = 4 * found.std() / np.sqrt(len(found))
    assert found.mean() > 0.1 + error
    assert found.mean() == pytest.approx((1 + (k - 1) * 0.1) / (k + 1), abs=error)


def test_ties_only_make_the_promise_safer():
    stream = np.random.default_rng(0)
    scores = stream.integers(0, 4, (6000, 20))
    alarms = np.mean([one[-1] > thresholds.conformal(one[:-1], 0.1) for one in scores])
    assert alarms < 0.1


def test_too_few_images_promise_nothing_but_silence():
    assert thresholds.conformal(np.arange(8), 0.1) == np.inf and thresholds.rate_interval(8, 0.1) == (0.0, 0.0)
    assert thresholds.conformal(np.arange(9), 0.1) == 8 and thresholds.conformal(np.arange(19), 0.1) == 17
    table = thresholds.tabulate_promises([0.1], [8, 19]).set_index("k")
    assert table.threshold[8].startswith("none") and table.threshold[19] == "18 of 19"
    assert table.loc[8, ["mean", "low", "high"]].isna().all()  # not a rate of zero: nothing is inspected
    assert table["mean"][19] == pytest.approx(0.1)
    for alpha in (0.0, 1.0, -0.1):
        with pytest.raises(InputError, match="between 0 and 1"):
            thresholds.quantile(np.arange(9), alpha)


@pytest.mark.parametrize("over", ["images", "pixels"])
def test_a_pixel_threshold_keeps_its_promise_for_new_images(over):
    """Pixels of one image are alike, as those of one photograph are: images, not pixels, are drawn anew."""
    stream, rate, k = np.random.default_rng(0), 0.1, 24
    shares, touched = [], []
    for _ in range(1500):
        maps = stream.normal(0, 1, (k + 1, 1, 1)) + stream.normal(0, 1, (k + 1, 6, 6))
        limit = thresholds.pixel_threshold(list(maps[:k]), rate, over)
        shares.append((maps[k] > limit).mean())
        touched.append((maps[k] > limit).any())
    held = np.mean(touched if over == "images" else shares)
    assert 0.6 * rate < held <= rate + 3 * np.sqrt(rate * (1 - rate) / 1500)


def test_a_pixel_threshold_by_brute_force():
    """The lowest score that keeps the bound, whatever the shapes of the images."""
    stream = np.random.default_rng(1)
    maps = [np.round(stream.random(shape), 1) for shape in [(3, 4), (5, 2)] * 12]
    for rate in (0.05, 0.1, 0.35):
        limit = thresholds.pixel_threshold(maps, rate, "pixels")
        kept = [at for at in np.unique(np.concatenate([one.ravel() for one in maps]))
                if (thresholds.marked_areas(maps, at).sum() + 1) / 25 <= rate + 1e-9]  # fmt: skip
        assert limit == kept[0]
    maxima = np.array([one.max() for one in maps])
    assert thresholds.pixel_threshold(maps, 0.1) == thresholds.conformal(maxima, 0.1)


def test_a_pixel_threshold_of_too_few_images_marks_nothing():
    for over in ("images", "pixels"):
        assert thresholds.pixel_threshold([np.ones((9, 9))] * 8, 0.1, over) == np.inf
        assert thresholds.pixel_threshold([np.ones((9, 9))] * 9, 0.1, over) == 1
        assert thresholds.pixel_threshold([], 0.1, over) == np.inf
    with pytest.raises(InputError, match="'images' or 'pixels'"):
        thresholds.pixel_threshold([np.ones((9, 9))], 0.1, "regions")


def test_allowance_is_what_alike_images_stay_within():
    judged = pd.DataFrame({"k": [12, 9, 5], "n_good": [16, 20, 10]})  # five images cannot calibrate at 10 %
    stream = np.random.default_rng(0)
    counts = np.zeros(4000)
    for k, n in ((12, 16), (9, 20)):
        normal = stream.normal(size=(4000, k + n))
        counts += (normal[:, k:] > normal[:, :k].max(1)[:, None]).sum(1)
    allowed = thresholds.allowance(judged, 0.1)
    assert (counts <= allowed).mean() >= 0.94 and (counts <= allowed - 1).mean() < 0.96
    assert thresholds.allowance(judged[judged.k == 5], 0.1) == 0


# ---------------------------------------------------------------- thresholds from labels


def test_f1_max_by_brute_force():
    stream = np.random.default_rng(0)
    for digits in (1, 6):
        good, bad = stream.normal(size=30).round(digits), stream.normal(1, size=20).round(digits)
        scores, labels = np.r_[good, bad], np.repeat([0, 1], [30, 20])
        limit = thresholds.f1_max(good, bad)
        best = max(f1_score(labels, scores > one) for one in np.r_[-np.inf, scores])
        assert f1_score(labels, scores > limit) == pytest.approx(best)
        assert best == pytest.approx(metrics.ranking(good, bad)["f1_max"])
    assert thresholds.f1_max(np.array([0.2, 0.4]), np.array([0.6, 0.9])) == pytest.approx(0.5)  # half way
    assert thresholds.f1_max(np.array([0.5]), np.array([0.1])) == -np.inf


def test_overkill_by_hand():
    good, bad = np.arange(10) / 10 + 0.05, np.r_[0.1, 0.3, np.full(18, 0.97)]  # of 20 defects 5 % is one, 10 % two
    table = thresholds.judge_at_escapes([part(good, bad)], [0.02, 0.05, 0.1]).set_index("share")
    assert table.allowed.tolist() == [0, 1, 2] and table.escapes.tolist() == [0, 1, 2]
    assert table.alarms.tolist() == [9, 7, 0] and table.false_alarm.tolist() == [0.9, 0.7, 0.0]
    assert tuple(table.loc[0.02, ["escape_low", "escape_high"]]) == pytest.approx(statistics.wilson(0, 20))
    tied = thresholds.judge_at_escapes([part([0.5, 0.1], [0.5] * 20)], [0.1])  # tied defects escape together
    assert tied.escapes.tolist() == [0] and tied.alarms.tolist() == [1]
    assert thresholds.judge_at_escapes([part(good, [])], [0.1]).empty


def test_counts_by_hand():
    parts = [
        part([0.1, 0.2, 0.35, 0.5], [0.3, 0.4, 0.9], np.arange(1, 10) / 30),  # train: up to 0.3
        part([0.1, 0.7], [0.6, 0.8], np.arange(1, 10) / 10, "cloth"),  # up to 0.9
    ]
    judged = thresholds.compare_rules(parts, 0.1)
    conformal = judged[judged.rule == "conformal"].set_index("category")
    assert conformal.threshold.tolist() == pytest.approx([0.3, 0.9])
    assert conformal.loc["plate", ["alarms", "n_good", "escapes", "n_bad"]].tolist() == [2, 4, 1, 3]
    assert conformal.loc["cloth", ["alarms", "n_good", "escapes", "n_bad"]].tolist() == [0, 2, 2, 2]
    row = conformal.loc["plate"]
    assert (row.false_alarm_low, row.false_alarm_high) == pytest.approx(statistics.wilson(2, 4))
    others = judged[judged.rule == OTHERS].set_index("category").threshold
    assert others["plate"] == thresholds.f1_max(parts[1].good, parts[1].bad)
    total = thresholds.pool_categories(judged).set_index("rule").loc["conformal"]
    assert (total.n, total.alarms, total.n_good, total.escapes, total.n_bad) == (2, 2, 6, 3, 5)
    assert total.macro_false_alarm == pytest.approx(0.25) and total.macro_escape == pytest.approx((1 / 3 + 1) / 2)
    alike = thresholds.pool_categories(conformal[conformal.index == "cloth"].reset_index()).iloc[0]
    ends = alike.macro_false_alarm_low, alike.macro_false_alarm_high
    assert alike.macro_false_alarm == 0 and ends == pytest.approx(statistics.wilson(0, 2))  # not 0 to 0
    shown = thresholds.format_rates(judged[judged.rule == "conformal"])
    assert shown["false alarms"].iloc[0].startswith("2 of 4: 50.0% (15.0 to 85.0)")


def test_halves_take_turns_where_no_training_image_is_scored():
    good = np.arange(21.0)
    drawn = list(part(good, [1.0]).draws())
    assert len(drawn) == thresholds.REPEATS
    assert all(sorted(np.r_[normal, rest]) == good.tolist() and len(normal) == 10 for normal, rest in drawn)
    few = list(part(good, []).draws(3))
    assert all(len(normal) == 3 and len(rest) == 11 and not set(normal) & set(rest) for normal, rest in few)
    table = thresholds.judge_rules([part(good, [])], 0.1).set_index("rule")
    assert table.false_alarm["conformal"] == pytest.approx(1 / 11, abs=0.03)  # over halves as over draws
    assert table.escape.isna().all() and (table.k == 10).all()
    assert not list(part([1.0], [2.0]).draws()) and thresholds.judge_rules([part([1.0], [2.0])], 0.1).empty


def test_training_images_calibrate_once_or_in_random_subsets():
    normal = part([1.0, 2.0], [3.0], np.arange(12))
    (only,) = normal.draws()
    assert sorted(only[0]) == list(range(12)) and only[1].tolist() == [1.0, 2.0]
    assert {len(one) for one, _ in normal.draws(5)} == {5} and len(list(normal.draws(5))) == thresholds.REPEATS
    grown = thresholds.judge_by_count([normal], 0.1, [5, 9, 40])
    assert grown.k.unique().tolist() == [5, 9, 12]
    assert grown[(grown.rule == "conformal") & (grown.k == 5)].escape.item() == 1.0
    assert thresholds.judge_by_count([], 0.1, [5]).empty


# ---------------------------------------------------------------- scoring training images


def test_training_images_are_scored_like_test_images(tmp_path):
    chosen = small_profile(make_mvtec(tmp_path / "data", train=4), tmp_path / "cache", shots=[0, 1])
    results = run.run(chosen)
    for shots, spare in ((0, 4), (1, 3)):
        table = thresholds.calibration_index(results.index, shots, 0)
        changes = {"shots": [shots], "seeds": [0]}
        scored = run.run(chosen.model_copy(update=changes), table=table)
        assert scored.scores.groupby("category").size().to_dict() == {"cloth": spare, "plate": spare}
        assert scored.scores.image.str.contains("/train/").all() and (scored.scores.label == 0).all()
        own = results.scores[results.scores.shots == shots]
        assert set(scored.scores.references) == set(own.references)  # of the same draw
        assert set(scored.scores.variant) == set(own.variant)
        found = thresholds.collect_scores(results.scores, scored.scores, shots)
        assert [(one.category, len(one.train), len(one.good), len(one.bad)) for one in found] == [
            ("cloth", spare, 4, 4), ("plate", spare, 4, 4),
        ]  # fmt: skip
    assert [len(one.train) for one in thresholds.collect_scores(results.scores)] == [0, 0]
    few = thresholds.calibration_index(results.index, most=2)
    assert few.groupby("category").size().tolist() == [2, 2] and set(few.split) == {"test"}
    assert thresholds.calibration_index(results.index[results.index.split == "test"]).empty
    assert thresholds.calibration_index(results.index, shots=4).empty  # all of them are references


def test_pixel_thresholds_mark_by_normal_images_alone(tmp_path):
    chosen = small_profile(make_mvtec(tmp_path / "data", train=4), tmp_path / "cache", shots=[0])
    results = run.run(chosen)
    spare = thresholds.score_normal_images(run.run, results)
    found = costs.mark_pixels(results, spare, 0.3).set_index(["category", "promise"])
    assert len(found) == 6 and (found.k == 4).all() and (found.n_good == 4).all()
    assert set(found.source) == {thresholds.TRAIN}
    rows = results.scores[results.scores.category == "plate"]
    maps = results.framed(rows)
    for promise in (thresholds.IMAGES, thresholds.PIXELS, thresholds.DEVIATIONS):
        row = found.loc[("plate", promise)]
        held = spare.framed(spare.scores[spare.scores.category == "plate"])
        if promise == thresholds.DEVIATIONS:
            limit = np.mean(held) + 3 * np.std(held)
        else:
            limit = thresholds.pixel_threshold(held, 0.3, promise)
        normal = [one for one, label in zip(maps, rows.label, strict=True) if not label]
        assert row.threshold == pytest.approx(limit) and row.alarms == sum(one.max() > limit for one in normal)
        assert row["normal pixels"] == pytest.approx(np.mean([(one > limit).mean() for one in normal]))
        marked = []
        for one, facts in zip(maps, rows.itertuples(), strict=True):
            if facts.label:
                mask = mask_files.framed_mask(facts.mask, facts.width, facts.height, facts.fit, chosen.evaluation_size)
                marked.append((one[mask] > limit).mean())
        assert row["defect's pixels"] == pytest.approx(np.mean(marked))
        assert row["defects touched"] == np.mean(np.array(marked) > 0)
        inside = [mask_files.framed_mask(*facts, chosen.evaluation_size) for facts in rows[FRAMED].to_numpy()]
        above = np.array(maps) > row.threshold
        precision, recall = (np.logical_and(above, inside).sum() / max(np.sum(of), 1) for of in (above, inside))
        assert row["pixel F1"] == pytest.approx(2 * precision * recall / max(precision + recall, 1e-12))
        best = results.metrics[results.metrics.category == "plate"].pixel_f1_max.item()
        assert row["pixel F1"] <= best + 1e-9 and row["best pixel F1"] == best
    halves = costs.mark_pixels(results, None, 0.3)
    assert set(halves.source) == {thresholds.HALVES} and (halves.k == 2).all() and (halves.n_good == 2).all()
    assert (halves["pixel F1"] <= halves["best pixel F1"] + 1e-9).all()


def test_validation_images_set_thresholds_before_training_images(tmp_path):
    index, _ = datasets.build_index(
        small_profile(make_mvtec_ad2(tmp_path, ("can", "vial"), 3), tmp_path / "cache", dataset="mvtec2")
    )
    held = thresholds.calibration_index(index, shots=1)
    assert held.groupby("split").size().to_dict() == {"test": 6, "train": 2}  # the references stay references
    assert held[held.split == "test"].image.str.contains("/validation/good/").all()
    without = index[(index.split != "validation") | (index.category == "can")]
    held = thresholds.calibration_index(without, shots=1)
    places = held[held.split == "test"].groupby("category").image.first()
    assert "/validation/" in places["can"] and "/train/" in places["vial"]
    assert len(thresholds.calibration_index(index, shots=3)) == 12  # with all training images as references too


def test_the_threshold_of_seg_f1_pools_the_pixels_of_all_normal_maps():
    maps = [np.zeros((1, 2), np.float32), np.full((2, 3), 4, np.float32)]  # the mean is 3, the deviation sqrt(3)
    assert thresholds.deviation_threshold(maps) == pytest.approx(3 + 3 * np.sqrt(3))
    assert thresholds.deviation_threshold(maps, 0) == pytest.approx(3)
    mask = np.array([[True, True, False, False]])
    scores = np.array([[0.9, 0.1, 0.6, 0.5]], np.float32)
    assert metrics.pixel_f1([(scores, mask), (scores, mask & False)], 0.5) == pytest.approx(2 / (4 + 2))
    assert metrics.pixel_f1([(scores, mask)], 1) == 0 and np.isnan(metrics.pixel_f1([(scores, mask & False)], 0))


# ---------------------------------------------------------------- transfer and cost


def test_transfer_by_hand():
    parts = [part([0.1, 0.2], [0.4, 0.6], [0.3] * 9), part([0.5, 0.7], [0.8, 0.9], [0.85] * 9, "cloth")]
    moved = costs.transfer_thresholds(parts, "A").set_index(["source", "target"])
    assert moved.loc[("plate", "plate"), "balanced"] == 0 and moved.loc[("cloth", "cloth"), "balanced"] == 0
    assert moved.loc[("plate", "cloth"), ["false_alarm", "escape"]].tolist() == [1, 0]  # 0.3 rejects all cloth
    assert moved.loc[("cloth", "plate"), ["false_alarm", "escape"]].tolist() == [0, 1]
    conformal = costs.transfer_thresholds(parts, "A", 0.1).set_index(["source", "target"])
    assert conformal.loc[("cloth", "cloth"), ["false_alarm", "escape"]].tolist() == [0, 0.5]
    lent = costs.compare_transfer(parts, 0.1).set_index("rule")
    assert lent.loc["F1-max", ["another's", "n"]].tolist() == [0.5, 2]
    own = thresholds.judge_halves(parts, OWN, thresholds.f1_max)
    assert lent.loc["F1-max", "own"] == pytest.approx(own[["false_alarm", "escape"]].to_numpy().mean())
    assert lent.loc["conformal", ["own", "another's"]].tolist() == [0.125, 0.5]
    bare = [part([0.1, 0.1], [0.2, 0.2]), part([0.3, 0.3], [0.4, 0.4], category="cloth")]
    assert costs.compare_transfer(bare, 0.1).rule.tolist() == ["F1-max"]  # no training images, no conformal to lend
    assert costs.compare_transfer(parts[:1], 0.1).empty and costs.transfer_thresholds([part([0.1], [])], "A").empty


def test_costs_by_hand():
    prices = costs.Prices(escape=100, false_alarm=2, defect_share=0.01)
    assert prices.cost(0.1, 0.5) == pytest.approx(1000 * (0.01 * 0.5 * 100 + 0.99 * 0.1 * 2))
    assert prices.trivial == ("accept all", pytest.approx(1000.0))
    assert costs.Prices(1000, 2, 0.01).trivial == ("reject all", pytest.approx(1980.0))
    parts = [part([0.1, 0.5], [0.3, 0.9], [0.2] * 9), part([0.1, 0.2], [0.3, 0.4], [0.2] * 9, "cloth")]
    judged = thresholds.judge_rules(parts, 0.1)
    found = costs.estimate_costs(judged[judged.rule == "conformal"], prices)
    each = [prices.cost(0.5, 0), 0.0]
    mean, _, high = statistics.paired(each)
    assert found.cost.item() == pytest.approx(mean) and found.n.item() == 2
    assert found.cost_low.item() == 0 and found.cost_high.item() == pytest.approx(min(high, prices.cost(1, 1)))
    one = costs.estimate_costs(judged[judged.category == "plate"], prices).iloc[0]  # nothing varies: Wilson's ends
    ends = [prices.cost(*pair) for pair in zip(statistics.wilson(1, 2), statistics.wilson(0, 2), strict=True)]
    assert (one.cost_low, one.cost_high) == pytest.approx(tuple(ends))
    assert costs.estimate_costs(thresholds.judge_rules([part(np.arange(20), [])], 0.1), prices).empty


@pytest.mark.parametrize("values", [(-1, 1, 0.1), (1, -1, 0.1), (1, 1, 1.1), (1, 1, -0.1)])
def test_wrong_prices_are_refused(values):
    with pytest.raises(InputError, match="defect_share|cost_escape|cost_false_alarm"):
        costs.Prices(*values)


def test_the_cheapest_threshold_by_brute_force():
    stream, prices = np.random.default_rng(0), costs.Prices(30, 1, 0.05)
    for _ in range(20):
        good, bad = stream.normal(size=30).round(1), stream.normal(stream.random() * 2, size=20).round(1)
        limit = costs.cheapest_threshold(good, bad, prices)
        rates = [((good > one).mean(), (bad <= one).mean()) for one in np.r_[-np.inf, good, bad, limit]]
        assert prices.cost(*rates[-1]) == pytest.approx(min(prices.cost(*one) for one in rates))


def test_thresholds_from_labels_are_judged_on_other_images():
    """Scores that know nothing: on the images that chose it the F1-max threshold seems to know something."""
    stream, price = np.random.default_rng(0), costs.Prices(30, 1, 0.05)
    parts = [part(stream.normal(size=12), stream.normal(size=12), (), str(name)) for name in range(40)]
    for rule in (thresholds.f1_max, lambda good, bad: costs.cheapest_threshold(good, bad, price)):
        halves = thresholds.judge_halves(parts, "any", rule)
        own = [(rule(one.good, one.bad), one) for one in parts]
        flattered = np.mean([((one.good > limit).mean() + (one.bad <= limit).mean()) / 2 for limit, one in own])
        assert (halves.n_good == 6).all() and (halves.n_bad == 6).all()
        fair = halves[["false_alarm", "escape"]].to_numpy().mean()
        assert fair == pytest.approx(0.5, abs=0.04) and flattered < fair - 0.02
    assert thresholds.judge_halves([part([0.1], [0.2, 0.3]), part([0.1, 0.3], [0.2])], "any", thresholds.f1_max).empty


def test_training_images_may_set_the_good_side():
    trained = part([0.1, 0.2, 0.3], [0.8, 0.9], [0.4] * 9)
    (row,) = thresholds.judge_halves([trained], "any", lambda good, bad: good.max(), training=True).to_dict("records")
    assert row["threshold"] == 0.4 and (row["n_good"], row["n_bad"]) == (3, 1) and row["escape"] == 0


# ---------------------------------------------------------------- the line


def test_a_conformal_threshold_on_a_line_of_two_percent_rejects_mostly_good_parts():
    """Half of the defects are caught at 10 %: of 1000 parts it rejects 98 good and 10 defective ones, 10 escape."""
    rows = [judged_row("A", "conformal", k=9, alarms=10, n_good=100, escapes=20, n_bad=40, category=str(n))
            for n in range(3)]  # fmt: skip
    (line,) = costs.count_per_thousand(thresholds.pool_categories(thresholds.rated(rows)), 0.02).to_dict("records")
    assert [line[name] for name in ("rejected", "defective", "escapes")] == pytest.approx([108, 10, 10])
    assert line["precision"] == pytest.approx(10 / 108) and line["precision_low"] < 10 / 108 < line["precision_high"]
    low, high = statistics.wilson(60, 120)  # the three categories agree
    assert (line["escapes_low"], line["escapes_high"]) == pytest.approx((20 * low, 20 * high))
    for n_good, n_bad in ((10, 0), (0, 10)):
        one_side = thresholds.rated([judged_row("A", "conformal", 9, 0, n_good, 0, n_bad)])
        assert costs.count_per_thousand(thresholds.pool_categories(one_side), 0.02).rejected.isna().all()


def test_go_needs_both_intervals_within_the_limits():
    """One interval beyond its limit is a no-go; between them there are too few pictures."""
    counts = [(0, 200, 0, 200), (0, 200, 40, 200), (40, 200, 0, 200), (0, 16, 0, 24), (0, 200, 0, 0), (9, 10, 0, 0)]
    rows = [judged_row("A", "conformal", 19, *four, category=str(number)) for number, four in enumerate(counts)]
    judged = thresholds.rated(rows)
    limited = costs.judge_limits(judged, 0.05, 0.05)
    assert limited.verdict.tolist() == [
        costs.GO, costs.NO_GO, costs.NO_GO, costs.TOO_FEW, costs.TOO_FEW, costs.NO_GO,
    ]  # fmt: skip
    assert costs.judge_limits(judged[:4], 1, 1).verdict.eq(costs.GO).all()
    assert costs.judge_limits(judged[:0], 0.05, 0.05).empty
    for limits in ((1.1, 0.05), (0.05, -0.1)):
        with pytest.raises(InputError, match="max_escapes|max_false_alarms"):
            costs.judge_limits(judged, *limits)


def test_go_or_no_go_is_said_in_parts_of_a_line():
    rows = [judged_row("A", "conformal", 19, 10, 100, 20, 40), judged_row("A", "conformal", 19, 0, 900, 0, 900)]
    limited = costs.judge_limits(thresholds.rated(rows).assign(category=["a", "b"]), 0.05, 0.05)
    sentence = costs.describe_limits(limited, 0.05, 0.05, 0.02)
    assert sentence.startswith("**Go for some products** at limits of 5% escapes and 5% false alarms")
    assert (
        "let 25% of the defects escape with A, 5 of the 20 defective parts in 1,000" in sentence
    )  # the mean of 50 and 0 %
    assert (
        "broken in 1 of 2 products and kept in 1 of 2 products (n = 940 defective" in sentence
        and "12 Thresholds" in sentence
    )
    assert costs.describe_limits(limited[1:], 0.05, 0.05, 0.02).startswith("**Go**")
    no_go = costs.describe_limits(limited[:1], 0.05, 0.05, 0.02)
    assert no_go.startswith("**No-go**") and "kept" not in no_go and "11 Failures" in no_go
    assert "n = 0" in costs.describe_limits(limited[:0], 0.05, 0.05, 0.02)
    open_too = pd.concat([limited[:1], limited[:1].assign(method="B", escape=0.0, verdict=costs.TOO_FEW)])
    sentence = costs.describe_limits(open_too, 0.05, 0.05, 0.02)  # another method may still do
    assert sentence.startswith("**Too few to say go**") and "broken in 1 of 1 product with A (n" in sentence
    normal = costs.judge_limits(thresholds.rated([judged_row("A", "conformal", 9, 1, 10)]), 0.05, 0.05)
    sentence = costs.describe_limits(normal, 0.05, 0.05, 0.02)
    assert "unknown share of defects" in sentence and "nan" not in sentence
    assert "a go takes at least 73 defective and 73 good of each product" in sentence
    many = pd.concat(
        [limited.assign(method=name, escape=rate) for name, rate in zip("DABC", (0.9, 0.1, 0.2, 0.3), strict=True)]
    )
    sentence = costs.describe_limits(many, 0.05, 0.05, 0.02)
    assert (
        "the best 3 of 4 methods" in sentence
        and "30% with C, 2, 4 and 6 of the 20" in sentence
        and "with D" not in sentence
    )


def test_a_go_takes_as_many_images_as_planned():
    """With one image fewer, none of them wrong, the interval still holds the limit."""
    for share in (0.01, 0.05, 0.3):
        needed = costs.plan_verdict(share)
        assert statistics.wilson(0, needed)[1] <= share < statistics.wilson(0, needed - 1)[1]
    assert costs.plan_verdict(0.0) == costs.plan_verdict(1.0) == 0


def test_methods_are_compared_at_the_same_false_alarms():
    """2 of 10 good parts may go: both thresholds are the third highest good score, wherever the defects lie."""
    good = np.arange(10.0)
    parts = [part(good, bad=[6.5, 7.5, 9.5, 10.5]), part(good + 100, bad=[0.0, 200.0])]
    judged = thresholds.judge_at_false_alarms(parts, 0.25)
    assert judged.alarms.tolist() == judged.allowed.tolist() == [2, 2]
    assert judged.threshold.tolist() == [7.0, 107.0] and judged.escapes.tolist() == [1, 1]
    assert thresholds.judge_at_false_alarms(parts, 0.05).alarms.tolist() == [0, 0]  # less than one part: none
    assert thresholds.judge_at_false_alarms(parts, 1.0).escapes.tolist() == [0, 0]
    assert thresholds.judge_at_false_alarms([part([], bad=[1.0])], 0.1).empty
    with pytest.raises(InputError, match="max_false_alarms"):
        thresholds.judge_at_false_alarms(parts, 1.5)


def test_a_threshold_for_a_precision_by_brute_force():
    stream = np.random.default_rng(0)
    normal, bad = stream.normal(0, 1, 200), stream.normal(3, 1, 50)
    limit = costs.threshold_at_precision(normal, bad, 0.05, 0.7)

    def precision(at):
        true, false = 0.05 * (bad > at).mean(), 0.95 * (1 + (normal > at).sum()) / 201
        return true / (true + false)

    assert precision(limit) >= 0.7 and max(precision(one) for one in normal[normal < limit]) < 0.7
    rate, least = costs.plan_precision(0.02, 0.5)
    assert rate == pytest.approx(2 / 98) and least == 48  # 12 images cannot promise 2 % false alarms
    for k in (12, least - 1, least):  # every defect lies above all normal images
        assert np.isfinite(costs.threshold_at_precision(normal[:k], np.full(9, 99.0), 0.02, 0.5)) == (k == least)
    assert costs.plan_precision(0.5, 0.5) == (1.0, 0)
    with pytest.raises(InputError, match="'target_precision'"):
        costs.plan_precision(0.02, 1.0)


def test_a_bound_of_escapes_holds_for_new_defects():
    stream = np.random.default_rng(0)
    draws = stream.normal(size=(4000, 20))
    escaped = np.mean([one[-1] <= thresholds.escape_bound(one[:-1], 0.1) for one in draws])
    assert 0.08 < escaped <= 0.1 + 3 * np.sqrt(0.09 / 4000)
    assert (
        thresholds.escape_bound(np.arange(9.0), 0.1) == pytest.approx(0) and thresholds.escape_bound([1.0], 1) == np.inf
    )
    assert thresholds.escape_bound(np.arange(8.0), 0.1) == thresholds.escape_bound([1.0], 0) == -np.inf
    assert not np.arange(9.0)[0] <= thresholds.escape_bound(np.arange(9.0), 0.1)  # the least of nine is still rejected


def test_the_planner_counts_images():
    plan = thresholds.plan_images([0.1, 0.01, 0.001]).set_index("share")
    assert plan["good, on average"].tolist() == [9, 99, 999]
    assert plan["good, at 95 %"].tolist() == plan["bad, none escaping"].tolist() == [29, 299, 2995]  # rule of three
    assert plan["bad, one escaping"].tolist() == [46, 473, 4742]  # the sizes of acceptance sampling
    for share, row in plan.iterrows():
        for least, allowed in ((row["bad, none escaping"], 0), (row["bad, one escaping"], 1)):
            highest = [
                binomtest(allowed, int(n), alternative="less").proportion_ci(0.95).high for n in (least, least - 1)
            ]
            assert highest[0] <= share < highest[1]
        assert thresholds.rank(int(row["good, on average"]), share) <= row["good, on average"]
    with pytest.raises(InputError, match="'share'"):
        thresholds.plan_images([0.0])


# ---------------------------------------------------------------- calibration


def test_calibration_error_by_hand():
    scores, labels = np.array([0.1, 0.1, 0.3, 0.3, 0.8, 0.8]), np.array([0, 0, 0, 1, 1, 1])
    # three bins: 0.1 against 0, 0.3 against 0.5, 0.8 against 1
    assert thresholds.calibration_error(labels, scores, 3) == pytest.approx((0.1 + 0.2 + 0.2) / 3)
    table = thresholds.tabulate_reliability(labels, scores, 3)
    assert table.share.tolist() == [0, 0.5, 1] and table.score.tolist() == pytest.approx([0.1, 0.3, 0.8])
    assert table.n.tolist() == [2, 2, 2] and (table.low[1], table.high[1]) == pytest.approx(statistics.wilson(1, 2))
    assert thresholds.brier_score(labels, scores) == pytest.approx(brier_score_loss(labels, scores))
    order = np.random.default_rng(0).permutation(6)  # ties share a bin, so the order of the rows is nothing
    assert thresholds.calibration_error(labels[order], scores[order], 2) == pytest.approx(
        thresholds.calibration_error(labels, scores, 2)
    )
    assert thresholds.calibration_error(np.array([0, 1]), np.array([0.5, 0.5])) == 0
    many = np.arange(95) / 95
    assert (
        len(thresholds.tabulate_reliability(many > 0.5, many)) == 9
        and len(thresholds.tabulate_reliability(labels, scores)) == 2
    )


def made_up(sharpen: float, images: int = 400, categories: int = 3) -> pd.DataFrame:
    """Labels drawn from a probability; the score is that probability with its log odds stretched."""
    stream, rows = np.random.default_rng(0), []
    for number in range(categories):
        odds = stream.normal(0, 1.5, images)
        labels = stream.random(images) < 1 / (1 + np.exp(-odds))
        names = {"category": f"c{number}", "image": [f"{number}-{i}" for i in range(images)]}
        rows.append(pd.DataFrame(names | {"label": labels.astype(int), "score": 1 / (1 + np.exp(-sharpen * odds))}))
    return pd.concat(rows).assign(method="A", shots=0, seed=0)


def test_calibration_is_told_from_its_absence():
    errors = {}
    for sharpen in (1.0, 6.0):
        table = thresholds.tabulate_calibration(made_up(sharpen)).set_index("version")
        errors[sharpen] = table.loc["as run"]
        assert (table.low <= table.error).all() and (table.error <= table.high).all()
        assert (table.loc["isotonic"].error < table.loc["isotonic"].chance) and (table.n == 1200).all()
    assert errors[1.0].error <= errors[1.0].chance and errors[6.0].error > errors[6.0].chance


def test_scores_that_know_nothing_are_not_better_than_a_constant():
    told = []
    for seed in range(60):
        stream = np.random.default_rng(seed)
        labels, scores = stream.permutation(np.repeat([0, 1], 20)), stream.normal(0.5, 0.02, 40)
        told.append(thresholds.compare_with_constant(labels, scores, np.repeat(["a", "b"], 20), 200))
    assert np.mean([word == "better" for word in told]) < 0.1
    labels = np.repeat([0, 1], 20)
    for scores, word in ((labels * 0.8 + 0.1, "better"), (0.9 - labels * 0.8, "worse")):
        assert thresholds.compare_with_constant(labels, scores, labels) == word


def test_curves_are_fitted_on_other_categories():
    scores = made_up(3.0, 60, 2).reset_index(drop=True)
    found = thresholds.apply_other_curves(scores, "logistic")
    fit, own = (scores[scores.category == name] for name in ("c0", "c1"))
    z = lambda values: ((values - fit.score.mean()) / fit.score.std(ddof=0)).to_numpy()[:, None]  # noqa: E731
    oracle = LogisticRegression(C=1e3).fit(z(fit.score), fit.label).predict_proba(z(own.score))[:, 1]
    assert found[own.index] == pytest.approx(oracle)
    swapped = scores.assign(label=scores.label.where(scores.category == "c0", 1 - scores.label))
    assert thresholds.apply_other_curves(swapped, "logistic")[own.index] == pytest.approx(
        oracle
    )  # its labels are unseen
    steps = thresholds.apply_other_curves(scores, "isotonic")[own.index]
    assert (np.diff(steps[np.argsort(own.score.to_numpy())]) >= 0).all() and steps.min() >= 0 and steps.max() <= 1
    assert thresholds.apply_other_curves(fit, "logistic") is None


def test_scores_outside_the_unit_interval_are_no_probabilities():
    found = thresholds.tabulate_calibration(made_up(2.0, 100).assign(score=lambda table: 10 * table.score))
    assert found.version.tolist() == list(thresholds.CURVES)
    alone = made_up(2.0, 50, 1)
    assert thresholds.tabulate_calibration(alone).version.tolist() == ["as run"]
    assert thresholds.tabulate_calibration(alone.assign(label=0)).empty


# ---------------------------------------------------------------- sentences


def test_a_promise_is_contradicted_where_good_images_are_not_alike():
    stream, promises = np.random.default_rng(0), {}
    for shift in (0.0, 2.0):
        categories = [
            part(stream.normal(shift, 1, 40), stream.normal(4, 1, 30), stream.normal(size=19), name) for name in "abcd"
        ]
        (promises[shift],) = costs.judge_promise(thresholds.compare_rules(categories, 0.1), 0.1).itertuples()
    assert promises[0.0].promise == "not contradicted" and promises[2.0].promise == "contradicted"
    assert (promises[0.0].n, promises[0.0].k) == (160, "19") and promises[2.0].alarms > promises[2.0].allowed
    few = thresholds.judge_rules([part([0.1, 0.2], [0.3], np.arange(5))], 0.1)
    halves = thresholds.judge_rules([part(np.arange(40), np.arange(40))], 0.1)
    for silent in (few, few.iloc[:0], halves):  # nothing is promised, or nothing is judged afresh
        assert costs.judge_promise(silent, 0.1).empty


def test_the_rate_that_could_still_be_true_is_clopper_and_pearsons():
    for hits, n, alpha in ((16, 192, 0.1), (5, 5, 0.9)):
        judged = thresholds.rated([judged_row("A", "conformal", 19, hits, n)])
        high = binomtest(hits, n, alternative="less").proportion_ci(0.95).high
        assert costs.judge_promise(judged, alpha).highest.item() == pytest.approx(high)


def alike(stream, k: int, n: int, categories: int = 12, methods: int = 1) -> pd.DataFrame:
    """Counts of two rules whose mean rate is exactly 10 %, on images that are exchangeable: nothing is to be found."""
    rows = []
    for method in range(methods):
        for category in range(categories):
            normal, good = np.split(stream.random(k + n), [k])
            alarms = (good > thresholds.conformal(normal, 0.1)).sum()
            rows += [judged_row(f"M{method}", rule, k, alarms, n, category=str(category))
                     for rule in ("conformal", "quantile")]  # fmt: skip
    return thresholds.rated(rows)


@pytest.mark.parametrize(("k", "n", "categories"), [(9, 40, 1), (19, 100, 3), (49, 200, 12)])
def test_false_alarms_of_alike_images_seldom_surprise(k, n, categories):
    """The threshold's own randomness counts: Wilson's interval alone is left in 19 to 22 % of draws."""
    stream, table = np.random.default_rng(0), pd.DataFrame({"k": [k] * categories, "n_good": [n] * categories})
    scores = stream.random((4000, categories, k + n))
    limits = thresholds.conformal(scores[..., :k], 0.1)
    seen = (scores[..., k:] > limits[..., None]).sum((1, 2))
    assert (seen > thresholds.allowance(table, 0.1)).mean() <= 0.05 + 0.01
    chances = thresholds.alarm_chances(table, 0.1)
    assert chances.sum() == pytest.approx(1)
    assert (chances[::-1].cumsum()[::-1][seen] <= 0.025).mean() <= 0.025 + 0.008


@pytest.mark.slow
@pytest.mark.parametrize("methods", [1, 3])
@pytest.mark.parametrize("k", [9, 19])
def test_no_promise_is_contradicted_more_often_than_its_level(methods, k):
    stream, draws = np.random.default_rng(k), 400
    promises = [costs.judge_promise(alike(stream, k, 30, 6, methods), 0.1).promise for _ in range(draws)]
    fired = sum((promise == "contradicted").any() for promise in promises)
    assert binomtest(fired, draws, 0.05, alternative="greater").pvalue > 0.01, fired


def test_levels_are_said_as_they_were_set():
    fine = thresholds.judge_at_escapes([part(np.arange(9.0), np.arange(9.0))], [0.005, 0.001])
    assert fine.rule.tolist() == ["0.5% escape", "0.1% escape"]
    assert decide._promise(50, 0.025, "pictures").startswith("At most 2.5% of new")
    assert decide._promise(250, 0.005, "pictures").startswith("At most 0.5% of new")


def test_a_rule_is_dearer_or_cheaper_than_not_to_look():
    prices = costs.Prices(50, 1, 0.02)
    rows = [judged_row("A", rule, 9, alarms, 1000, escapes, 1000, category=str(number))
            for rule, alarms, escapes in (("conformal", 100, 100), ("quantile", 1000, 1000), (OWN, 900, 98))
            for number in range(3)]  # fmt: skip
    table = costs.estimate_costs(thresholds.rated(rows), prices).set_index("rule")
    verdicts = table["than not to look"].to_dict()
    assert verdicts == {"conformal": "cheaper", "quantile": "dearer", OWN: "no difference shown"}


def test_gaps_say_what_is_missing():
    whole = [part([1, 2], [3], [1.0], "a"), part([1, 2], [3], [1.0], "b")]
    assert costs.describe_gaps(whole) == ""
    assert "1 product no training picture was scored" in costs.describe_gaps([part([1, 2], [3]), whole[0]])
    assert "No test picture is defective" in costs.describe_gaps([part([1, 2], [], [1.0])])
    assert "With one product" in costs.describe_gaps(whole[:1]) and "With one product" not in costs.describe_gaps(whole)
    assert "Without two good pictures" in costs.describe_gaps([part([1], [3]), whole[0]])
    assert "n = 0" in costs.describe_gaps([])


def test_the_tail_of_rejections_takes_the_threshold_as_random():
    """Simulated: 19 images set the threshold, 12 are tested; a binomial tail would be too small."""
    stream, k, n, rank = np.random.default_rng(0), 19, 12, 18
    scores = stream.normal(size=(20_000, k + n))
    counts = (scores[:, k:] > np.sort(scores[:, :k])[:, [rank - 1]]).sum(1)
    chances = thresholds.alarm_chances(pd.DataFrame({"k": [k], "n_good": [n]}), 0.1)
    for rejected in (0, 1, 3, 6):
        seen = (counts >= rejected).mean()
        assert chances[rejected:].sum() == pytest.approx(seen, abs=0.01)
    assert chances[4:].sum() > 2 * binom.sf(3, n, 1 - rank / (k + 1))
    assert list(thresholds.alarm_chances(pd.DataFrame({"k": [8], "n_good": [n]}), 0.1)) == [1]  # it rejects nothing
