"""Check plots of a trace: the content of each panel, and refused arguments."""

from __future__ import annotations

import io
import runpy
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import xplstm
from tests.support.pages import ROOT
from xplstm import _array
from xplstm.plots import plot_history, plot_trace
from xplstm.training import History

T, B, I, H = 5, 3, 2, 4
X = np.random.default_rng(50).normal(size=(T, B, I))
LABELS = ("input gate", "forget gate", "output gate", "candidate", "cell state", "hidden state")


def lstm(xp=None, **options):
    return xplstm.LSTM(I, H, num_layers=2, bidirectional=True, xp=xp, dtype="float64", rng=6, **options)


def panels(figure):
    """Return the six panels in the order of `LABELS`."""
    titled = {axes.get_title(loc="left"): axes for axes in figure.axes}
    return [next(axes for title, axes in titled.items() if title.startswith(label)) for label in LABELS]


def maps(figure):
    return [np.asarray(axes.images[0].get_array()).T for axes in panels(figure)]


def expected(trace, index, row):
    found = {name: _array.to_numpy(a)[index, :, row] for name, a in trace._asdict().items()}
    return [found[name] for name in "ifogch"]


def test_each_panel_shows_its_quantity_of_that_row_and_layer(xp):
    trace = lstm(xp.xp).trace(xp.asarray(X))
    for got, wanted in zip(maps(plot_trace(trace, row=1, index=2)), expected(trace, 2, 1), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_batch_first_and_no_batch_are_read_as_such():
    trace = lstm().trace(X)
    swapped = lstm(batch_first=True).trace(X.swapaxes(0, 1))
    single = lstm().trace(X[:, 1])
    for figure in (plot_trace(swapped, row=1, index=2, batch_first=True), plot_trace(single, index=2)):
        for got, wanted in zip(maps(figure), expected(trace, 2, 1), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-14)


def test_tokens_name_the_steps_and_end_them():
    figure = plot_trace(lstm().trace(X), tokens=["a", " ", "\n"])
    assert all(a.shape == (3, H) for a in maps(figure))
    assert [text.get_text() for text in panels(figure)[5].get_xticklabels()] == ["a", "\N{OPEN BOX}", "↵"]


def test_a_token_is_no_formula():
    figure = plot_trace(lstm().trace(X), tokens=[r"$\foo$", "$x$"])
    figure.savefig(io.BytesIO(), format="svg")
    assert not any(text.get_parse_math() for text in panels(figure)[5].get_xticklabels())


@pytest.mark.parametrize("lines", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_do_not_set_the_scale(lines, value):
    trace = lstm().trace(X)
    broken = {}
    for name in "igch":
        broken[name] = getattr(trace, name).copy()
        broken[name][0, 0, 0, 0] = value
    figure = plot_trace(trace._replace(**broken), lines=lines)
    figure.savefig(io.BytesIO(), format="svg")
    scales = [a.get_ylim() if lines else a.images[0].get_clim() for a in panels(figure)]
    assert np.isfinite(scales).all()


def test_units_are_chosen_and_ordered():
    trace = lstm().trace(X)
    figure = plot_trace(trace, units=[3, 0])
    for got, wanted in zip(maps(figure), expected(trace, 0, 0), strict=True):
        np.testing.assert_array_equal(got, wanted[:, [3, 0]])
    assert [text.get_text() for text in panels(figure)[0].get_yticklabels()] == ["3", "0"]


def test_scales_are_shared_and_hold_zero_in_the_middle():
    limits = [axes.images[0].get_clim() for axes in panels(plot_trace(lstm().trace(X)))]
    assert limits[:3] == [(0.0, 1.0)] * 3
    assert limits[3] == limits[5] == (-1.0, 1.0)
    low, high = limits[4]
    assert low == -high
    assert high == np.abs(lstm().trace(X).c[0, :, 0]).max()


def test_few_cells_tell_their_numbers():
    trace = lstm().trace(X)
    texts = [text.get_text() for text in panels(plot_trace(trace))[1].texts]
    assert texts == [f"{value:.2f}" for value in trace.f[0, :, 0].T.flat]
    long = plot_trace(lstm().trace(np.ones((20, 1, I))))
    assert not panels(long)[1].texts
    # One below another, in the order of the equations.
    assert [axes.get_subplotspec().rowspan.start for axes in panels(long)] == list(range(6))


def test_lines_show_the_values_and_are_told_apart_twice():
    trace = lstm().trace(X)
    figure = plot_trace(trace, lines=True, units=[2, 1])
    for axes, wanted in zip(panels(figure), expected(trace, 0, 0), strict=True):
        drawn = [line for line in axes.lines if line.get_label().startswith("unit")]
        np.testing.assert_array_equal([line.get_ydata() for line in drawn], wanted[:, [2, 1]].T)
        low, high = axes.get_ylim()
        assert low < wanted[:, [2, 1]].min() < wanted[:, [2, 1]].max() < high
        assert len({line.get_color() for line in drawn}) == len({line.get_linestyle() for line in drawn}) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["unit 2", "unit 1"]


def test_a_projections_h_has_its_own_units():
    projected = xplstm.LSTM(I, H, proj_size=3, dtype="float64", rng=6)
    assert [a.shape[1] for a in maps(plot_trace(projected.trace(X)))] == [H] * 5 + [3]


TRACE = lstm().trace(X)
WRONG = [
    (lambda: plot_trace(TRACE, row=3), xplstm.ArgumentError, r"row=3 must be in \[0, 3\)"),
    (lambda: plot_trace(TRACE, index=4), xplstm.ArgumentError, r"index=4 must be in \[0, 4\)"),
    (lambda: plot_trace(TRACE, index=-1), xplstm.ArgumentError, "index=-1"),
    (
        lambda: plot_trace(TRACE, tokens="abcdef"),
        xplstm.ArgumentError,
        "tokens has 6 elements, expected 1 to",
    ),
    (lambda: plot_trace(TRACE, units=[0, 4]), xplstm.ArgumentError, r"units\[1\]=4 must be in \[0, 4\)"),
    (lambda: plot_trace((X,) * 6), xplstm.DTypeError, "trace must be an LSTMTrace"),
    (lambda: plot_trace(lstm().trace(X[:0])), xplstm.ArgumentError, "trace has no steps"),
    (
        lambda: plot_trace(xplstm.LSTM(I, 9, dtype="float64").trace(X), lines=True),
        xplstm.ArgumentError,
        "lines=True distinguishes at most 8 units, got 9",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), WRONG, ids=[w[2][:30] for w in WRONG])
def test_what_is_wrong_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'xplstm\[plot\]'"):
        plot_trace(TRACE)


@pytest.mark.slow
def test_the_character_models_pictures_are_drawn(tmp_path):
    program = ROOT / "docs" / "figures" / "char_lm.py"
    runpy.run_path(str(program))["draw"](tmp_path / "char_lm.py", updates=2)
    for name in ("char_lm_gates.png", "char_lm_lines.png"):
        drawn, kept = imread(tmp_path / name), imread(program.with_name(name))
        assert drawn.shape[:2] == kept.shape[:2]
        # A colour is one integer of four bytes.
        assert len(np.unique((drawn * 255).astype(np.uint8).view(np.uint32))) > 50


def test_a_trace_is_drawn_on_axes_of_the_caller():
    figure = Figure(layout="constrained")
    left, right = figure.subfigures(1, 2)
    axes = left.subplots(3, 2)
    trace = lstm().trace(X)
    assert plot_trace(trace, ax=axes, row=1, index=2) is figure
    for panel, wanted in zip(axes.flat, expected(trace, 2, 1), strict=True):
        np.testing.assert_array_equal(np.asarray(panel.images[0].get_array()).T, wanted)
        assert all(label.get_text() for label in panel.get_xticklabels())
    plot_trace(trace, ax=right.subplots(6, 1), lines=True)
    assert figure.axes[-6].get_legend() is not None


def test_a_history_is_drawn():
    figure = plot_history(History([2.0, 1.0, 0.5], [(0, 2.5), (2, 1.5), (3, 1.75)]))
    (axes,) = figure.axes
    loss, validation, best = axes.lines
    np.testing.assert_array_equal(loss.get_xydata(), [(1, 2.0), (2, 1.0), (3, 0.5)])
    np.testing.assert_array_equal(validation.get_xydata(), [(0, 2.5), (2, 1.5), (3, 1.75)])
    np.testing.assert_array_equal(best.get_xydata(), [(2, 1.5)])
    assert axes.get_yscale() == "log"
    given = Figure().subplots()
    assert plot_history(History([1.0, -1.0]), ax=given) is given.get_figure()
    assert given.get_yscale() == "linear"


def test_the_mean_of_a_long_history_does_not_lag():
    losses = np.arange(1.0, 1001.0)
    (axes,) = plot_history(History(losses.tolist())).axes
    each, mean = axes.lines
    assert len(each.get_xdata()) == 1000
    assert len(mean.get_xdata()) == 100
    np.testing.assert_allclose(mean.get_xdata(), mean.get_ydata())


BAD_AXES = [
    (lambda: plot_trace(lstm().trace(X), ax=Figure().subplots(2, 2)), "ax has 4 elements, expected 6"),
    (lambda: plot_trace(lstm().trace(X), ax=[None] * 6), r"ax\[0\] must be a matplotlib Axes"),
    (lambda: plot_trace(lstm().trace(X), ax=3), "ax=3 must be a sequence"),
    (lambda: plot_history([1.0]), "history must be a training.History"),
    (lambda: plot_history(History()), "history is empty"),
    (lambda: plot_history(History([1.0]), ax=Figure()), "ax must be a matplotlib Axes, got Figure"),
]


@pytest.mark.parametrize(("call", "message"), BAD_AXES)
def test_what_is_no_axes_is_refused(call, message):
    with pytest.raises(xplstm.XplstmError, match=message):
        call()
