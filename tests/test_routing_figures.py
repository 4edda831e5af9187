"""Pictures of routing hold the numbers worked out by hand, and can be read at both sizes and in grey."""

import base64
import io
import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from made_up_profiles import made_up_profile
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

from data_recipes.artefact import UserError
from data_recipes.languages import LANGUAGES
from eval.figures import inline_svg
from eval.language_routing import (
    average_linkage,
    carried_by_hottest,
    language_similarity,
    resample_distance,
    routed_shares,
)
from eval.page import figures_of_languages, figures_of_roles
from eval.report import MAX_PAGE_BYTES
from eval.routing_figures import (
    DIFFERENCES,
    MARK_CELL,
    SHARES,
    coverage_figure,
    difference_figure,
    languages_figure,
    routing_figure,
    similarity_figure,
    update_figure,
)

# Two layers, four experts: decoder layers 4 and 9.
COUNTS = {
    "en": [[2, 2, 0, 0], [1, 1, 1, 1]],
    "hi": [[2, 1, 1, 0], [1, 1, 1, 1]],
    "ta": [[0, 0, 6, 2], [0, 4, 0, 0]],
}
PLAN = {"experts": {"4": [2], "9": [1, 3]}, "borderline": {"4": [0], "9": [3]}}


@pytest.fixture
def profile():
    return made_up_profile(COUNTS, ["ta"], [4, 9])


def large_profile():
    """75 layers x 256 experts x 23 languages, one layer without a token, and a plan of a quarter of it."""
    rng = np.random.default_rng(0)
    counts = {name: rng.negative_binomial(2, 0.01, (75, 256)) for name in LANGUAGES}
    for found in counts.values():
        found[43] = 0
    layers = list(range(3, 78))
    chosen = {str(layer): sorted(rng.permutation(256)[:64].tolist()) for layer in layers if layer != 46}
    borderline = {layer: sorted({*ids[:4], *(i + 1 for i in ids[:3])}) for layer, ids in chosen.items()}
    return made_up_profile(counts, set(LANGUAGES) - {"en", "hi"}, layers), {
        "experts": chosen,
        "borderline": borderline,
    }


def all_figures(profile, plan):
    target = profile.languages("target")
    return {
        "map": routing_figure(profile, target, plan, title="Target rows"),
        "difference": difference_figure(profile, plan, title="Target minus general"),
        "coverage": coverage_figure(profile, plan),
        "languages": similarity_figure(profile),
    }


def lightness(rgb):
    """CIE L*, 0 to 100, of sRGB colours: what a grey print keeps (IEC 61966-2-1, CIE 15)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ np.array([0.2126, 0.7152, 0.0722])
    return np.where(luminance <= 216 / 24389, luminance * 24389 / 27, 116 * np.cbrt(luminance) - 16)


def marks_of(figure, n_experts, n_layers):
    """(expert, row) -> the mark's five lines, b black, w white and . nothing, read from the pixels."""
    pixels = np.asarray(figure.axes[0].images[1].get_array())
    wide = pixels.shape[1] // n_layers
    found = {}
    for expert in range(n_experts):
        for row in range(n_layers):
            cell = pixels[expert * MARK_CELL : (expert + 1) * MARK_CELL, row * wide : (row + 1) * wide]
            left = (wide - 5) // 2
            mark = cell[1:6, left : left + 5]
            letters = np.where(mark[..., 3] == 0, ".", np.where(mark[..., 0] == 255, "w", "b"))
            if cell[..., 3].any():
                found[expert, row] = ["".join(line) for line in letters]
    return found


def test_shares_are_over_experts_and_a_layer_without_tokens_has_none():
    counts = {"ta": [[3, 1, 0], [0, 0, 0]], "te": [[1, 1, 2], [0, 0, 0]], "en": [[0, 0, 9], [1, 1, 2]]}
    profile = made_up_profile(counts, ["ta", "te"])
    share_LE = routed_shares(profile, ["ta", "te"])
    assert share_LE[0].tolist() == [0.5, 0.25, 0.25]
    assert np.isnan(share_LE[1]).all()
    assert routed_shares(profile, ["en"], "answer").tolist() == [[0, 0, 1], [0.25, 0.25, 0.5]]
    with pytest.raises(UserError, match="no prompt token of ta"):
        routed_shares(profile, ["ta"], "prompt")


def test_similarity_is_the_common_share_over_experts_mean_over_layers(profile):
    names, similarity_NN = language_similarity(profile)
    assert names == ["en", "hi", "ta"]
    # Layer 4: en-hi 1/2 + 1/4, en-ta 0, hi-ta 1/4; layer 9: en-hi all, en-ta and hi-ta 1/4.
    assert similarity_NN == pytest.approx(np.array([[1, 0.875, 0.125], [0.875, 1, 0.25], [0.125, 0.25, 1]]))


def test_similarity_leaves_out_a_layer_that_one_language_never_reached():
    counts = {"en": [[1, 1], [1, 0]], "hi": [[1, 3], [0, 1]], "ta": [[2, 2], [0, 0]]}
    _, similarity_NN = language_similarity(made_up_profile(counts, ["ta"]))
    assert similarity_NN[0].tolist() == [1, 0.75, 1]
    counts["ta"][0] = [0, 0]
    with pytest.raises(UserError, match="no layer was reached by all of en, hi, ta: profile again"):
        language_similarity(made_up_profile(counts, ["ta"]))


def test_clusters_are_those_of_scipy():
    rng = np.random.default_rng(0)
    for n in (2, 3, 8, 23):
        distance_NN = squareform(rng.random(n * (n - 1) // 2))
        assert average_linkage(distance_NN) == pytest.approx(linkage(squareform(distance_NN), "average"))


def test_resamples_of_one_language_are_apart_by_their_total_variation():
    # Pairs (0, 2) and (1, 3): 1/2 and 0 in the first layer; only the first pair has tokens in the second: 1.
    replicates = [[[1, 1], [1, 0]], [[2, 2], [0, 0]], [[2, 0], [0, 1]], [[1, 1], [0, 0]]]
    profile = made_up_profile({"ta": [[2, 2], [1, 1]]}, ["ta"], replicates={"ta": replicates})
    assert resample_distance(profile, "ta") == pytest.approx((0.5 + 0 + 1) / 3)
    assert resample_distance(profile, "en") is None


def test_the_tree_joins_where_the_hand_worked_distances_say(profile):
    axes: Any = similarity_figure(profile).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Tamil (target)", "English", "Hindi"]
    brackets = [np.asarray(line.get_xydata()).tolist() for line in axes.get_lines()]
    # English and Hindi at 1/8; Tamil with both at the mean of 7/8 and 3/4.
    assert brackets[0] == [[0, 1], [0.125, 1], [0.125, 2], [0, 2]]
    assert brackets[1] == [[0, 0], [0.8125, 0], [0.8125, 1.5], [0.125, 1.5]]
    assert len(brackets) == 2
    assert axes.get_xlabel() == "total variation, mean over layers (0 same, 1 disjoint)"


def test_the_tree_shows_how_far_resamples_of_a_language_are_apart():
    replicates = {name: [np.array(found), np.array(found)] for name, found in COUNTS.items()}
    replicates["en"][1] = np.array([[1, 3, 0, 0], [1, 1, 1, 1]])  # 1/4 in the first layer, 0 in the second
    profile = made_up_profile(COUNTS, ["ta"], [4, 9], replicates)
    axes: Any = similarity_figure(profile).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0, 0.125, 0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["two resamples of its own rows"]


@pytest.mark.parametrize(
    ("names", "says"),
    [(["ta"], ["Tamil only"]), (["ta", "en"], ["English and Tamil only", "routing is 0.88"])],
)
def test_under_three_languages_the_figure_says_so_instead_of_drawing(names, says):
    figure: Any = similarity_figure(made_up_profile({name: COUNTS[name] for name in names}, ["ta"], [4, 9]))
    text = figure.axes[0].texts[0].get_text()
    assert "a tree needs 3 languages" in text
    assert [part in text for part in says] == [True] * len(says)
    assert figure.axes[0].get_lines() == []


def test_a_map_holds_multiples_of_an_even_share_experts_down_layers_across(profile):
    figure: Any = routing_figure(profile, ["ta"], title="Tamil")
    axes = figure.axes[0]
    shown = np.asarray(axes.images[0].get_array())
    assert shown.T.tolist() == [[0, 0, 3, 1], [0, 4, 0, 0]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "9"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title("left")) == ("layer", "expert", "Tamil")
    assert len(axes.images) == 1 and not figure.legends
    # Languages of one role are added up before they are shared out.
    both = np.asarray(routing_figure(profile, ["en", "hi"]).axes[0].images[0].get_array())
    assert both.T.tolist() == [[2, 1.5, 0.5, 0], [1, 1, 1, 1]]


def test_all_maps_of_a_profile_have_one_colour_scale(profile):
    ends = {routing_figure(profile, [name]).axes[0].images[0].get_clim() for name in COUNTS}
    assert len(ends) == 1
    low, high = ends.pop()
    assert low == 0 and 3 < high <= 4  # the 99.5th percentile of values up to 4


def test_the_difference_is_target_minus_general_and_symmetric_around_zero(profile):
    image: Any = difference_figure(profile, PLAN).axes[0].images[0]
    assert np.asarray(image.get_array()).T.tolist() == [[-2, -1.5, 2.5, 1], [-1, 3, -1, -1]]
    low, high = image.get_clim()
    assert low == -high and 2.5 < high <= 3
    assert DIFFERENCES(image.norm(0.0)) == DIFFERENCES(0.5)


def test_a_layer_without_tokens_is_hatched_and_not_a_colour():
    counts = {"ta": [[1, 3], [0, 0]], "en": [[3, 1], [0, 0]]}
    profile = made_up_profile(counts, ["ta"])
    for figure in (routing_figure(profile, ["ta"]), difference_figure(profile)):
        axes: Any = figure.axes[0]
        assert np.isnan(np.ma.getdata(axes.images[0].get_array())[:, 1]).all()
        assert axes.patch.get_hatch() == "////"
    assert coverage_figure(profile, {"experts": {"1": [1]}}).axes[0].get_lines()
    assert routing_figure(made_up_profile(COUNTS, ["ta"]), ["ta"]).axes[0].patch.get_hatch() is None


def test_chosen_and_borderline_experts_are_marked_in_black_and_white(profile):
    figure: Any = routing_figure(profile, ["ta"], PLAN)
    marks = marks_of(figure, 4, 2)
    chosen = [".bbb.", "bwwwb", "bwwwb", "bwwwb", ".bbb."]
    chosen_borderline = [".bbb.", "bwwwb", "bwbwb", "bwwwb", ".bbb."]
    left_out = [".www.", "wbbbw", "wbbbw", "wbbbw", ".www."]
    # (expert, row): row 0 is decoder layer 4, row 1 is 9.
    assert marks == {(2, 0): chosen, (1, 1): chosen, (3, 1): chosen_borderline, (0, 0): left_out}
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["chosen", "chosen, borderline", "left out, borderline"]
    assert figure.axes[0].images[1].get_extent() == [-0.5, 1.5, 3.5, -0.5]
    only: Any = difference_figure(profile, {"experts": {"9": [0]}})
    assert marks_of(only, 4, 2) == {(0, 1): chosen}
    assert [text.get_text() for text in only.legends[0].get_texts()] == ["chosen"]
    none: Any = routing_figure(profile, ["ta"], {"experts": {}})
    assert len(none.axes[0].images) == 1 and not none.legends


def test_the_hottest_of_each_layer_are_counted_along_the_experts():
    heat_LE = np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    share_LE = np.array([[0.6, 0.3, 0.1], [0.0, 0.25, 0.75]])
    found = carried_by_hottest(heat_LE, share_LE)
    assert found == pytest.approx(np.array([[0, 0.1, 0.4, 1], [0, 0, 0.25, 1]]))


def test_the_coverage_curve_and_the_points_of_the_plan_are_hand_worked(profile):
    axes: Any = coverage_figure(profile, PLAN).axes[0]
    lines = {line.get_label(): np.asarray(line.get_xydata()) for line in axes.get_lines()}
    # Target: 3/4 1 1 1 and 1 1 1 1. General: of the same experts, in the target's order 2 3 0 1 and 1 0 2 3.
    assert lines["target"].tolist() == [[0, 0], [1, 0.875], [2, 1], [3, 1], [4, 1]]
    general = np.array([[0, 0, 0], [1, 0.125, 0.25], [2, 0.125, 0.5], [3, 0.625, 0.75], [4, 1, 1]])
    assert lines["general"][:, 1] == pytest.approx(general[:, 1:].mean(axis=1))
    # The plan has 1 and 2 experts: target 3/4 and 1, general 1/8 and 1/2.
    assert lines["plan, target: 0.88"].tolist() == [[1.5, 0.875]]
    assert lines["plan, general: 0.31"].tolist() == [[1.5, 0.3125]]
    assert axes.get_xlabel() == "hottest experts of a layer (the plan: 1.5 of 4)"
    band = axes.collections[1].get_paths()[0].vertices
    assert {tuple(point) for point in band.round(9).tolist()} >= {(2, 0.125), (2, 0.5)}


def test_a_picture_of_both_roles_needs_both():
    profile = made_up_profile({"ta": COUNTS["ta"]}, ["ta"])
    with pytest.raises(UserError, match=r"no general language \(it has ta \(target\)\): add general rows"):
        difference_figure(profile)
    with pytest.raises(UserError, match="no general language"):
        coverage_figure(profile, PLAN)


@pytest.mark.parametrize("colours", [SHARES, DIFFERENCES])
def test_colours_get_lighter_in_grey_at_every_step(colours):
    grey = lightness(colours(np.arange(colours.N))[:, :3])
    assert len(grey) == 15
    assert np.diff(grey).min() > 2.3  # about the least step that is seen
    assert grey[-1] - grey[0] > 60


def test_zero_difference_is_neutral_and_the_signs_differ_in_lightness_and_hue():
    less, zero, more = DIFFERENCES([0.0, 0.5, 1.0])[:, :3]
    assert len(set(zero.round(6).tolist())) == 1
    assert less[2] > less[0] and more[0] > more[2]
    assert lightness(more) - lightness(zero) > 25 and lightness(zero) - lightness(less) > 25


def overlaps(figure, labels):
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [label.get_window_extent(renderer) for label in labels if label.get_text()]
    assert len(boxes) > 1
    return [one.overlaps(other) for one, other in pairwise(boxes)]


@pytest.mark.parametrize("size", ["tiny-glm", pytest.param("GLM-5.2", marks=pytest.mark.slow)])
def test_labels_do_not_collide_and_the_page_stays_small(size):
    if size == "GLM-5.2":
        profile, plan = large_profile()
    else:
        rng = np.random.default_rng(0)
        counts = {name: rng.negative_binomial(2, 0.01, (5, 32)) for name in ("en", "hi", "ta")}
        profile = made_up_profile(counts, ["ta"])
        plan = {"experts": {str(layer): [0, 3, 9] for layer in range(1, 6)}, "borderline": {"1": [3, 4]}}
    for name, figure in all_figures(profile, plan).items():
        assert isinstance(figure, Figure)
        FigureCanvasAgg(figure).draw()
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                labels = [label for label in axis.get_ticklabels() if label.get_text()]
                assert not labels or not any(overlaps(figure, labels)), (name, axis.axis_name)
        svg = inline_svg(figure, name, "described")
        assert len(svg.encode()) < 100_000, (name, len(svg))
        assert re.findall(r"[\u0600-\u1cff]", svg) == []


@pytest.mark.slow
def test_the_report_of_all_languages_of_a_large_model_keeps_its_size():
    profile, plan = large_profile()
    pictures = [*figures_of_roles(profile, plan), *figures_of_languages(profile, None)]
    assert len(pictures) == 5 + len(LANGUAGES)
    n_bytes = [len(found["svg"].encode()) for found in pictures]
    assert max(n_bytes) < 100_000
    assert sum(n_bytes) < 0.8 * MAX_PAGE_BYTES  # the rest is for the answers


def test_the_tree_of_all_languages_names_each_in_english():
    axes: Any = similarity_figure(large_profile()[0]).axes[0]
    shown = sorted(label.get_text().removesuffix(" (target)") for label in axes.get_yticklabels())
    assert shown == sorted(one.name for one in LANGUAGES.values())
    assert "English" in [label.get_text() for label in axes.get_yticklabels()]


def test_the_page_holds_one_pixel_a_cell_in_the_colours_of_the_map(profile):
    figure: Any = routing_figure(profile, ["ta"], PLAN)
    svg = inline_svg(figure, "map", "described")
    files = [base64.b64decode(found) for found in re.findall(r"base64,([^\"]+)", svg)]
    cells, marks = (Image.open(io.BytesIO(file)) for file in files)
    assert cells.mode == marks.mode == "P"
    image, overlay = figure.axes[0].images
    wanted = image.to_rgba(image.get_array(), bytes=True)
    assert np.array_equal(np.asarray(cells.convert("RGBA")), wanted)
    assert np.array_equal(np.asarray(marks.convert("RGBA")), np.asarray(overlay.get_array()))


def test_strips_hold_the_share_of_each_language_in_the_layers_that_are_shown(profile):
    strips: list[Any] = languages_figure(profile).axes[:2]
    assert [axes.get_title(loc="left") for axes in strips] == ["layer 4", "layer 9"]
    for axes in strips:
        assert [label.get_text() for label in axes.get_yticklabels()] == ["English", "Hindi", "Tamil"]
    # Times an even share of 1/4, by hand from COUNTS.
    assert np.asarray(strips[0].images[0].get_array()).tolist() == [[2, 2, 0, 0], [2, 1, 1, 0], [0, 0, 3, 1]]
    assert np.asarray(strips[1].images[0].get_array()).tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [0, 4, 0, 0]]


def test_of_many_layers_a_few_are_shown_evenly_spread():
    large, _ = large_profile()
    strips: list[Any] = languages_figure(large, n_layers=3).axes[:3]
    assert [axes.get_title(loc="left") for axes in strips] == ["layer 3", "layer 40", "layer 77"]


def test_a_map_of_updates_holds_the_sizes_that_were_given(profile):
    size_LE = np.array([[0, 0, 1.5, 0], [0, 0.5, 0, 1]])
    axes: Any = update_figure(size_LE, profile, PLAN).axes[0]
    assert np.asarray(axes.images[0].get_array()).tolist() == size_LE.T.tolist()
    assert len(axes.images) == 2  # the plan's marks lie over it
