import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import imread

from grpo_ao.calibration import Estimate
from grpo_ao.report import plots
from grpo_ao.report.plots import (
    TONES,
    Panel,
    curve,
    inline_svg,
    reliability_diagram,
    running_mean,
    save,
)

CONFIDENCE = np.array([0.95, 0.95, 0.05, 0.05, 0.55])
OUTCOME = np.array([1.0, 0.0, 0.0, 0.0, 1.0])
SVG = "{http://www.w3.org/2000/svg}"


def words(axis):
    return " ".join(text.get_text() for text in axis.texts)


def lines(figure: Figure) -> list[list[list[float]]]:
    return [points(line.get_xydata()) for line in figure.axes[0].lines]


def points(found: object) -> list[list[float]]:
    return np.asarray(found).round(3).tolist()


# The two ways out


def test_a_picture_is_written_twice_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "reliability.png"
    save(reliability_diagram([Panel("before", CONFIDENCE, OUTCOME)]), path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["reliability.png", "reliability.svg"]
    pixels = imread(path)
    assert pixels.shape[0] > 400
    assert pixels[..., :3].std() > 0.05  # not an empty sheet
    assert path.with_suffix(".svg").read_text().lstrip().startswith("<?xml")


def test_a_killed_writer_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "reliability.png"
    figure = reliability_diagram([Panel("before", CONFIDENCE, OUTCOME)])
    save(figure, path)
    old = path.read_bytes()

    def die(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", die)
    with pytest.raises(KeyboardInterrupt):
        save(figure, path)
    assert path.read_bytes() == old


def test_a_figure_of_the_page_has_its_colours_and_nothing_for_the_whole_page():
    drawn = str(
        inline_svg(reliability_diagram([Panel("before", CONFIDENCE, OUTCOME)]), "a <label>")
    )
    root = ElementTree.fromstring(drawn)
    assert root.get("aria-label") == "a <label>"
    assert "var(--after)" in drawn and "var(--ink)" in drawn
    assert not re.search(r"#[0-9a-f]{6}\b(?!\")", drawn.replace("url(#", "url("))
    assert not list(root.iter(f"{SVG}style")) and root.get("width") is None


def test_a_saved_figure_can_be_set_into_the_page(tmp_path):
    save(reliability_diagram([Panel("before", CONFIDENCE, OUTCOME)]), tmp_path / "r.png")
    drawn = plots.page_svg((tmp_path / "r.svg").read_text(), "a label")
    assert ElementTree.fromstring(str(drawn)).get("role") == "img"
    assert "var(--after)" in drawn and "#ffffff" not in drawn


def test_ids_of_two_figures_of_a_page_differ():
    drawn = [str(inline_svg(curve([1, 2], [0.0, 1.0], {}), label)) for label in ("a", "b")]
    clips = [set(re.findall(r'clipPath id="(\w+)"', svg)) for svg in drawn]
    assert clips[0] and not clips[0] & clips[1]


def test_a_tooltip_cannot_leave_its_link():
    hostile = "</title><script>"
    figure = curve([1, 2], [0.0, 1.0], {"#alert-1": 2})
    root = ElementTree.fromstring(str(inline_svg(figure, "a label", {"#alert-1": hostile})))
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert titles and set(titles) == {hostile}


# Reliability


def test_discs_are_the_bins_means_and_their_area_the_share():
    axis = reliability_diagram([Panel("a title", CONFIDENCE, OUTCOME)]).axes[0]
    discs = axis.collections[-1]
    assert points(discs.get_offsets()) == [[0.05, 0.0], [0.55, 1.0], [0.95, 0.5]]
    assert isinstance(discs, PathCollection)
    assert discs.get_sizes().tolist() == [12 + 200, 12 + 100, 12 + 200]
    assert axis.get_title() == "a title"
    # |.05 - 0| * .4 + |.55 - 1| * .2 + |.95 - .5| * .4 = .29.
    assert words(axis) == "ECE 0.290\nn 5"


def test_panels_stand_side_by_side():
    panels = [Panel(name, CONFIDENCE, OUTCOME) for name in ("before", "after")]
    assert [a.get_title() for a in reliability_diagram(panels).axes[:2]] == ["before", "after"]


def test_a_constant_confidence_is_one_disc():
    axis = reliability_diagram([Panel("", np.full(4, 0.5), np.ones(4))]).axes[0]
    assert points(axis.collections[-1].get_offsets()) == [[0.5, 1.0]]


def test_an_oracle_that_states_no_confidence_has_a_picture_too(tmp_path):
    none = np.array([])
    figure = reliability_diagram([Panel("before", none, none), Panel("", CONFIDENCE, OUTCOME)])
    save(figure, tmp_path / "r.png")
    assert words(figure.axes[0]) == "no confidence was stated"
    assert words(figure.axes[1]).startswith("ECE")


def test_bins_are_described_with_their_interval_over_texts():
    confidence, outcome = np.array([0.05, 0.09, 0.5, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])
    panel = Panel("", confidence, outcome, np.arange(4))
    assert [(part.low, part.high, part.count) for part in panel.bins] == [
        (0, 9, 2), (50, 59, 1), (90, 100, 1),
    ]  # fmt: skip
    described = "confidence 0 to 9: 2 answers, mean confidence 7, right 0.50 [0.00, 1.00]"
    assert str(panel.bins[0]) == described
    # One text: whatever is drawn, it is the same answers.
    same = Panel("", confidence, outcome, np.zeros(4)).bins[0].outcome
    assert same == Estimate(0.5, 0.5, 0.5)


def test_discs_link_to_their_answers():
    panel = Panel("", CONFIDENCE, OUTCOME, link=lambda part: f"#low={part.low}&x=1")
    addresses = {"#low=0&x=1": "a", "#low=50&x=1": "b", "#low=90&x=1": "c"}
    root = ElementTree.fromstring(str(inline_svg(reliability_diagram([panel]), "", addresses)))
    assert [link.get("aria-label") for link in root.iter(f"{SVG}a")] == ["a", "b", "c"]


def test_bars_are_dark_as_far_as_their_answers_are_right():
    panel = Panel("", np.array([0.52, 0.52, 0.9]), np.array([0.0, 1.0, 1.0]))
    bars = reliability_diagram([panel]).axes[1].patches
    heights = [round(bar.get_height(), 3) for bar in bars]  # pyright: ignore
    assert heights[10] == 0.667 and heights[20 + 10] == 0.333
    assert heights[18] == heights[20 + 18] == 0.333


# Curves


def test_a_curve_goes_through_its_values_and_leaves_out_unknown_ones():
    assert lines(curve([1, 2, 3], [0.0, None, 1.0], {})) == [[[1, 0], [3, 1]]]


@pytest.mark.parametrize("values", [[0.25], [0.0, 0.0], [1e6, 1e6]])
def test_a_curve_without_height_or_length_is_drawn(values, tmp_path):
    save(curve(list(range(len(values))), values, {}), tmp_path / "c.png")
    assert (tmp_path / "c.svg").exists()


def test_a_long_curve_is_thinned_and_keeps_its_end():
    single, mean = lines(curve(list(range(5001)), list(np.linspace(0, 1, 5001)), {}))
    assert len(single) == len(mean) <= 302
    assert single[-1] == [5000, 1]


def test_a_running_mean_is_over_what_came_before():
    assert running_mean(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1, 2, 4, 6]
    assert running_mean(np.array([1.0, 3.0]), 1).tolist() == [1, 3]


def test_each_curve_of_risk_is_named():
    points = (np.array([0.5, 1.0]), np.array([0.0, 0.5]))
    figure = plots.risk_coverage_diagram({"after": points, "agreement": points})
    assert lines(figure) == [[[0.5, 0], [1, 0.5]]] * 2
    legend = figure.axes[0].get_legend()
    assert legend and [text.get_text() for text in legend.get_texts()] == ["after", "agreement"]


# Rows


def test_estimates_stand_in_their_row_with_their_interval():
    rows = {
        "topic": {"before": Estimate(0.5, 0.25, 0.75), "after": Estimate(0.75, 0.5, 1.0)},
        "city": {"after": Estimate(0.5, np.nan, np.nan)},
    }
    figure = plots.estimates(rows, "AUROC")
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["topic", "city"]
    assert lines(figure) == [[[0.5, -0.15]], [[0.75, 0.15]], [[0.5, 1.15]]]
    whiskers = axis.collections[0]
    assert isinstance(whiskers, LineCollection)
    assert [points(s) for s in whiskers.get_segments()] == [[[0.25, -0.15], [0.75, -0.15]]]


def test_rows_of_few_texts_are_grey():
    rows = {name: {"after": Estimate(0.5, 0.4, 0.6)} for name in ("many", "few")}
    axis = plots.estimates(rows, few=["few"]).axes[0]
    assert [line.get_color() for line in axis.lines] == [TONES["after"], TONES["few"]]
    spans = {name: {"after": (0.25, 0.75)} for name in rows}
    axis = plots.gaps(spans, few=["few"]).axes[0]
    assert [line.get_color() for line in axis.lines] == [TONES["after"]] * 3 + [TONES["few"]] * 3


def test_bins_of_few_texts_are_grey_and_not_joined():
    # Of each of two bins 40 answers, the second about one text.
    panel = Panel("", np.repeat([0.25, 0.75], 40), np.ones(80), np.r_[np.arange(40), np.zeros(40)])
    assert [part.texts for part in panel.bins] == [40, 1]
    axis = reliability_diagram([panel]).axes[0]
    assert points(axis.lines[1].get_xydata()) == [[0.25, 1.0]]
    discs = axis.collections[1]
    colors = np.asarray(discs.get_facecolor())
    assert [to_hex(tuple(color)) for color in colors.tolist()] == [TONES["after"], TONES["few"]]


def test_a_curve_over_layers_is_in_the_order_of_depth():
    at = {9: Estimate(0.75, 0.5, 1.0), 3: Estimate(0.5, 0.25, 0.75)}
    figure = plots.layer_curves({"accuracy": {"oracle": at}, "ECE": {"oracle": at}})
    assert [axis.get_title() for axis in figure.axes] == ["accuracy", "ECE"]
    assert lines(figure) == [[[3, 0.5], [9, 0.75]]]
    whiskers = figure.axes[0].collections[0]
    assert isinstance(whiskers, LineCollection)
    assert [points(s) for s in whiskers.get_segments()] == [
        [[3, 0.25], [3, 0.75]],
        [[9, 0.5], [9, 1.0]],
    ]


def test_a_gap_joins_what_is_right_and_what_is_stated():
    figure = plots.gaps({"topic": {"before": (0.25, 0.75)}, "city": {"before": (0.5, 0.5)}})
    joined = [line for line in lines(figure) if len(line) == 2]
    assert joined == [[[0.25, 0], [0.75, 0]], [[0.5, 1], [0.5, 1]]]
