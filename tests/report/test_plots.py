import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.image import imread

from grpo_ao.report import plots
from grpo_ao.report.plots import Panel, reliability_diagram

CONFIDENCE = np.array([0.95, 0.95, 0.05, 0.05, 0.55])
OUTCOME = np.array([1.0, 0.0, 0.0, 0.0, 1.0])


@pytest.fixture
def figures(monkeypatch):
    """Keep the figures that are drawn, closed ones too."""
    drawn = []
    save = plots.save_figure

    def keep(figure, path):
        drawn.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "save_figure", keep)
    return drawn


def words(axis):
    return " ".join(text.get_text() for text in axis.texts)


def test_a_picture_is_written_twice_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "reliability.png"
    reliability_diagram(path, [Panel("before", CONFIDENCE, OUTCOME)])
    assert sorted(p.name for p in path.parent.iterdir()) == ["reliability.png", "reliability.svg"]
    pixels = imread(path)
    assert pixels.shape[0] > 400
    assert pixels[..., :3].std() > 0.05  # not an empty sheet
    assert path.with_suffix(".svg").read_text().lstrip().startswith("<?xml")
    assert not plt.get_fignums()


def test_a_killed_writer_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "reliability.png"
    reliability_diagram(path, [Panel("before", CONFIDENCE, OUTCOME)])
    old = path.read_bytes()

    def die(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", die)
    with pytest.raises(KeyboardInterrupt):
        reliability_diagram(path, [Panel("after", CONFIDENCE, OUTCOME)])
    plt.close("all")
    assert path.read_bytes() == old


def test_points_are_the_bins_means_and_their_area_the_share(tmp_path, figures):
    reliability_diagram(tmp_path / "r.png", [Panel("a title", CONFIDENCE, OUTCOME)])
    axis = figures[0].axes[0]
    points = axis.collections[0]
    np.testing.assert_allclose(points.get_offsets(), [[0.05, 0.0], [0.55, 1.0], [0.95, 0.5]])
    np.testing.assert_allclose(points.get_sizes(), [12 + 200, 12 + 100, 12 + 200])
    assert axis.get_title() == "a title"
    # |.05 - 0| * .4 + |.55 - 1| * .2 + |.95 - .5| * .4 = .29; pairs in order 4.5 of 6.
    assert words(axis) == "ECE 0.290\nAUROC 0.750\nn 5"


def test_panels_stand_side_by_side(tmp_path, figures):
    panels = [Panel(name, CONFIDENCE, OUTCOME) for name in ("before", "after")]
    reliability_diagram(tmp_path / "r.png", panels)
    assert [axis.get_title() for axis in figures[0].axes[:2]] == ["before", "after"]


def test_a_constant_confidence_is_one_point(tmp_path, figures):
    reliability_diagram(tmp_path / "r.png", [Panel("", np.full(4, 0.5), np.ones(4))])
    axis = figures[0].axes[0]
    np.testing.assert_allclose(axis.collections[0].get_offsets(), [[0.5, 1.0]])
    assert "AUROC nan" in words(axis)


def test_an_oracle_that_states_no_confidence_has_a_picture_too(tmp_path, figures):
    none = np.array([])
    panels = [Panel("before", none, none), Panel("after", CONFIDENCE, OUTCOME)]
    reliability_diagram(tmp_path / "r.png", panels)
    assert words(figures[0].axes[0]) == "no confidence was stated"
    assert words(figures[0].axes[1]).startswith("ECE")
