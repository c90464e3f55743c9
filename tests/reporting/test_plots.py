"""Figures: what is drawn where, on tables by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from vlmad_lib.reporting import figures


@pytest.fixture(autouse=True)
def closed():
    yield
    figures.plt.close("all")


def test_chance_of_the_aupro_is_half_its_limit():
    rows = [("A", shots, 0, *[0.9] * 3) for shots in (0, 1)]
    table = pd.DataFrame(rows, columns=["method", "shots", "seed", "image_auroc", "pixel_auroc", "aupro"])
    figure = figures.over_shots(table, ["image_auroc", "aupro"], fpr_limit=0.2)
    dashed = [next(line for line in axes.get_lines() if line.get_label() == "chance") for axes in figure.axes]
    assert [line.get_ydata()[0] for line in dashed] == [0.5, pytest.approx(0.1)]
    assert figure.axes[1].get_ylim()[0] < 0.1
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A", "chance"]


def test_a_narrow_log_axis_has_several_ticks():
    spans = {"contrast": [8.0, 14.0, 30.0], "area": [1e-4, 1e-2, 0.5]}
    frames = [pd.DataFrame({"measure": name, "value": values}) for name, values in spans.items()]
    curves = pd.concat(frames).assign(method="A", recall=0.5, low=0.4, high=0.6)
    figure = figures.recall_curves(curves, {"contrast": "contrast", "area": "area"}, "recall")
    shown = []
    for axes in figure.axes:
        low, high = axes.get_xlim()
        shown.append([round(tick, 6) for tick in axes.get_xticks() if low <= tick <= high])
    assert shown == [[10, 20], [1e-4, 1e-3, 1e-2, 1e-1]]


def test_a_correlation_axis_ends_at_one():
    table = pd.DataFrame({"name": "A, zero-shot", "shift": "blur", "severity": [1, 3], "mean": [0.9, 0.6]})
    table = table.assign(low=table["mean"] - 0.3, high=table["mean"] + 0.3)
    top = [figures.over_severity(table, "x", 1, **more).axes[0].get_ylim()[1] for more in ({"highest": 1}, {})]
    assert 1 < top[0] < 1.02 < top[1]


def test_the_most_accurate_stands_on_top_with_its_time_beside_it():
    table = pd.DataFrame({"method": "A", "name": ["A, 2-shot", "A, 1-shot"], "ms": [310.0, 300.0]})
    table = table.assign(value=[0.81, 0.8], low=0.7, high=0.9)
    left, right = figures.worth(table, "image AUROC").axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["A, 1-shot", "A, 2-shot"]
    assert [line.get_xdata()[0] for line in left.get_lines()] == [0.8, 0.81]
    assert [line.get_xdata()[0] for line in right.get_lines()] == [300, 310]


def test_a_difference_of_no_single_method_is_in_no_methods_colour():
    table = pd.DataFrame({"name": ["x"], "measure": "image_auroc", "difference": 0.1, "low": 0.0, "high": 0.2, "n": 3})
    assert figures.differences(table, "name").axes[0].get_lines()[0].get_color() not in figures.COLOURS.values()


def test_ticks_of_differences_do_not_touch_and_methods_have_their_own_colours():
    rows = [
        ("A, against a name that takes half of the figure", name, 0.02, -0.02, 0.057, 12, "WinCLIP") for name in "abc"
    ]
    table = pd.DataFrame(rows, columns=["name", "measure", "difference", "low", "high", "n", "method"])
    figure = figures.differences(table, "name", "method")
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [tick.label1.get_window_extent() for tick in axes.xaxis.get_major_ticks() if tick.label1.get_text()]
        assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:], strict=False))
    assert figure.axes[0].get_lines()[0].get_color() == figures.COLOURS["WinCLIP"]


def test_a_cell_without_images_is_empty_and_others_tell_their_n():
    rows = [("A", "small", "low", 0.25, 0.1, 0.5, 8, 3), ("A", "large", "high", 0.75, 0.5, 1.0, 12, 4)]
    table = pd.DataFrame(rows, columns=["method", "area", "contrast", "recall", "low", "high", "images", "categories"])
    for column, names in (("area", ("small", "large")), ("contrast", ("low", "high"))):
        table[column] = pd.Categorical(table[column], names, ordered=True)
    axes = figures.cells(table, "area", "contrast", "recall", "recall").axes[0]
    values = axes.collections[0].get_array()
    assert values.reshape(2, 2).mask.tolist() == [[False, True], [True, False]]
    shown = {text.get_position(): text.get_text() for text in axes.texts if text.get_text()}
    assert shown == {
        (0.5, 0.5): "0.25\n0.10 to 0.50\nn = 8,\n3 products",
        (1.5, 1.5): "0.75\n0.50 to 1.00\nn = 12,\n4 products",
    }


def test_a_curve_of_recall_has_its_band_in_a_panel_for_each_measure():
    table = pd.DataFrame({"method": "A", "measure": "contrast", "value": [5.0, 20.0], "recall": [0.2, 0.8]})
    curves = table.assign(low=table.recall - 0.1, high=table.recall + 0.1)
    figure = figures.recall_curves(curves, {"area": "area", "contrast": "Delta-E"}, "recall")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "Delta-E" and axes.get_lines()[0].get_ydata().tolist() == [0.2, 0.8]
    assert axes.collections[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(0.9)


def test_an_answer_has_at_most_three_sentences(capsys):
    figures.show_answer(["One.", "", "Two."])
    assert capsys.readouterr().out
    with pytest.raises(ValueError, match="at most 3"):
        figures.show_answer(["One.", "Two.", "Three.", "Four."])
