"""The figures of results, as a notebook and a page get them."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from eval.figures import forgetting_figure, gain_figure, loss_figure, small_png


def test_every_figure_is_a_figure_for_a_notebook_too():
    found = {"date": {"base": 0.0, "tuned": 0.9, "difference": 0.9, "low": 0.8, "high": 1.0}}
    metrics = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}, {"step": 2, "eval_loss": 1.5}]
    figures = [gain_figure(found), forgetting_figure(found), loss_figure(metrics)]
    assert all(isinstance(figure, Figure) for figure in figures)
    assert np.asarray(figures[2].axes[0].get_lines()[1].get_xydata(), dtype=float).tolist() == [[2, 1.5]]


def test_a_notebook_gets_a_small_picture_on_white():
    figure = loss_figure([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}])
    png = small_png(figure)
    with Image.open(io.BytesIO(png)) as found:
        assert (found.format, found.mode) == ("PNG", "P")
        pixels = found.convert("RGB")
    assert pixels.getpixel((0, 0)) == (255, 255, 255)
    assert len(np.unique(np.asarray(pixels).reshape(-1, 3), axis=0)) > 2
    usual = io.BytesIO()
    figure.savefig(usual, dpi=72, bbox_inches="tight", pad_inches=0.04)
    assert len(png) < len(usual.getvalue()) / 2


def test_metrics_without_a_loss_are_refused():
    with pytest.raises(ValueError, match="holds a loss"):
        loss_figure([{"step": 1, "eval_loss": 1.0}])
