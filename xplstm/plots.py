"""Plot the gates of an LSTM at every step, and the losses of a training run; needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xplstm import ArgumentError, DTypeError, LSTMTrace, ShapeError, _array, _values
from xplstm.training import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLES = {
    "i": "input gate $i$: how much is written",
    "f": "forget gate $f$: how much is kept",
    "o": "output gate $o$: how much is shown",
    "g": "candidate $g$: what would be written",
    "c": "cell state $c$: what is remembered",
    "h": "hidden state $h$: what is shown",
}
GATES, SIGNED = ("i", "f", "o"), ("g", "c", "h")
# The brightness of both maps is monotonic for every kind of colour blindness.
GATE_COLOURS, SIGNED_COLOURS = "viridis", "RdBu_r"
# The colours of Okabe and Ito that are dark enough for lines.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000", "#e69f00", "#56b4e9", "#7f7f7f")
FAINT = "#b8cfe6"
STYLES = ("-", "--", "-.", ":")
# From LONG steps on, all panels form one column; up to NUMBERED cells, each cell shows its number.
LONG, NUMBERED = 17, 32
BLANKS = {
    " ": "\N{OPEN BOX}",
    "\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}",
    "\t": "\N{RIGHTWARDS ARROW TO BAR}",
}


def plot_trace(
    trace: LSTMTrace,
    *,
    row: int = 0,
    index: int = 0,
    tokens: Sequence[str] | None = None,
    units: Sequence[int] | None = None,
    lines: bool = False,
    batch_first: bool = False,
    ax: Sequence[Axes] | None = None,
) -> Figure:
    """Draw the gates, the cell state and the hidden state of one sequence over time.

    One panel each for i, f, o, g, c and h, with time on the horizontal axis. The three
    gates share one colour scale; g and h share another.

    Parameters
    ----------
    trace : LSTMTrace
        Result of `LSTM.trace`, with arrays of any library.
    row : int, default 0
        Batch entry, in [0, B); 0 for a trace without a batch axis.
    index : int, default 0
        ``layer * D + direction``, in [0, L*D).
    tokens : sequence of str, optional
        Labels of the time axis: the token of each step of this batch entry, 1 to T tokens. Only the
        steps with a token are drawn.
    units : sequence of int, optional
        Hidden units to draw, in this order, each in [0, H); all if omitted.
    lines : bool, default False
        Draw one line for each unit, at most 8 units, instead of a colour map.
    batch_first : bool, default False
        Whether the trace is from an LSTM with ``batch_first=True``.
    ax : sequence of 6 matplotlib.axes.Axes, optional
        Axes of one figure for i, f, o, g, c and h, in this order; a new figure if omitted.

    Returns
    -------
    matplotlib.figure.Figure
        ``figure.savefig("gates.png")`` writes it to a file.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError
        If an argument has a wrong value, shape or type.
    ImportError
        Without matplotlib: ``pip install 'xplstm[plot]'``.

    Examples
    --------
    >>> import numpy as np
    >>> import xplstm
    >>> from xplstm.plots import plot_trace
    >>> lstm = xplstm.LSTM(3, 2, rng=0)
    >>> x = np.eye(3, dtype="float32")
    >>> figure = plot_trace(lstm.trace(x), tokens=["a", "b", "c"])
    >>> figure.axes[0].get_title(loc="left")
    'input gate $i$: how much is written'
    """
    lines, batch_first = _values.flag("lines", lines), _values.flag("batch_first", batch_first)
    if tokens is not None:
        tokens = list(tokens) if isinstance(tokens, str) else _values.items("tokens", tokens)
        if not all(isinstance(token, str) for token in tokens):
            msg = f"tokens={tokens} must be str"
            raise DTypeError(msg)
    if units is not None:
        units = _values.items("units", units, 1)
    values = _choose_entry(trace, row, index, tokens, units, batch_first)
    numbers = range(values["i"].shape[1]) if units is None else units
    if lines and len(numbers) > len(LINES):
        msg = f"lines=True distinguishes at most {len(LINES)} units, got {len(numbers)}; pass units="
        raise ArgumentError(msg)
    steps = values["i"].shape[0]
    figure, panels = _panels(steps, lines) if ax is None else _find_panels(ax, lines)
    if lines:
        _draw_lines(panels, values, list(numbers))
        if ax is None:
            handles, labels = panels["i"].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), fontsize=10)
        else:
            panels["i"].legend(fontsize=8)
    else:
        _draw_maps(figure, panels, values, list(numbers))
    for name, axes in panels.items():
        bottom = name == "h" or (name == "o" and steps < LONG)
        _mark_time(axes, steps, tokens, last=bottom or ax is not None)
    return figure


def plot_history(history: History, *, ax: Axes | None = None) -> Figure:
    """Draw the losses and the validations of a training run.

    The faint line is the loss of each update. From 200 updates on, a dark line shows the mean of each
    hundredth of the run, drawn at the middle of that hundredth. A circle marks the best validation.

    Parameters
    ----------
    history : History
        Result of `xplstm.training.fit`, with at least 1 loss or validation.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; a new figure if omitted.

    Returns
    -------
    matplotlib.figure.Figure
        ``figure.savefig("loss.png")`` writes it to a file.

    Raises
    ------
    ArgumentError, DTypeError
        If `history` is empty, or an argument has a wrong type.
    ImportError
        Without matplotlib: ``pip install 'xplstm[plot]'``.

    Examples
    --------
    >>> from xplstm.plots import plot_history
    >>> from xplstm.training import History
    >>> figure = plot_history(History([2.0, 1.0, 0.5], [(0, 2.1), (3, 0.6)]))
    >>> figure.axes[0].get_xlabel()
    'update'
    """
    if not isinstance(history, History):
        msg = f"history must be a training.History, got {type(history).__name__}"
        raise DTypeError(msg)
    losses = np.asarray(
        [
            _values.number(f"history.losses[{k}]", a)
            for k, a in enumerate(_values.items("history.losses", history.losses))
        ]
    )
    validations = [
        _validation(k, pair)
        for k, pair in enumerate(_values.items("history.validations", history.validations))
    ]
    if not len(losses) and not validations:
        msg = "history is empty; it must have at least 1 loss or validation"
        raise ArgumentError(msg)
    if ax is None:
        ax = _new_figure("plot_history", figsize=(7.0, 4.0), layout="constrained").subplots()
    else:
        _check_axes("ax", ax)
    parts = np.array_split(np.arange(len(losses)), 100) if len(losses) >= 200 else []
    if len(losses):
        label = "loss of each update" if parts else "loss"
        ax.plot(np.arange(1, len(losses) + 1), losses, color=FAINT if parts else LINES[0], label=label)
    if parts:
        means = [losses[part].mean() for part in parts]
        ax.plot([part.mean() + 1 for part in parts], means, color=LINES[0], label="mean of each hundredth")
    if validations:
        updates, values = np.asarray(validations).T
        ax.plot(updates, values, "o-", color=LINES[1], markersize=4, label="validation")
        update, best = history.best
        ax.plot([update], [best], "o", color=LINES[1], markersize=10, fillstyle="none",
                label=f"best, {best:.4g} at update {update}")  # fmt: skip
    finite = np.asarray([*losses, *(value for _, value in validations)])
    if (finite[np.isfinite(finite)] > 0).all():
        ax.set_yscale("log")
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("update")
    ax.set_ylabel("loss")
    ax.grid(alpha=0.25)
    ax.legend()
    return _figure_of(ax)


def _validation(k: int, pair: Any) -> tuple[int, float]:
    """Return the update and the value of one validation."""
    name = f"history.validations[{k}]"
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        msg = f"{name}={pair!r} must be a pair (update, value)"
        raise DTypeError(msg)
    return _values.size(f"{name}[0]", pair[0], 0), _values.number(f"{name}[1]", pair[1])


def _choose_entry(
    trace: LSTMTrace,
    row: int,
    index: int,
    tokens: Sequence[str] | None,
    units: Sequence[int] | None,
    batch_first: bool,
) -> dict[str, np.ndarray]:
    """Return each quantity of one batch entry, layer and direction as a host array (T, H)."""
    if not isinstance(trace, LSTMTrace):
        msg = f"trace must be an LSTMTrace from LSTM.trace, got {type(trace).__name__}"
        raise DTypeError(msg)
    _below("index", index, trace.i.shape[0])
    arrays = {}
    for name, a in trace._asdict().items():
        one = _array.to_numpy(a[index, ...])
        if one.ndim not in (2, 3):
            msg = f"trace.{name} has shape {tuple(a.shape)}, expected (L*D, T, B, H) or (L*D, T, H)"
            raise ShapeError(msg)
        if one.ndim == 2:
            one = one[:, None]
        elif batch_first:
            one = one.swapaxes(0, 1)
        _below("row", row, one.shape[1])
        arrays[name] = np.asarray(one[:, row], dtype=np.float64)
    T, H = arrays["i"].shape
    if T == 0:
        msg = "trace has no steps; at least 1 is needed"
        raise ArgumentError(msg)
    if tokens is not None and not 1 <= len(tokens) <= T:
        msg = f"tokens has {len(tokens)} elements, expected 1 to {T}: one for each step to draw"
        raise ArgumentError(msg)
    for place, unit in enumerate([] if units is None else units):
        _below(f"units[{place}]", unit, H if arrays["h"].shape[1] == H else min(H, arrays["h"].shape[1]))
    steps = slice(None if tokens is None else len(tokens))
    which = slice(None) if units is None else list(units)
    return {name: a[steps, which] for name, a in arrays.items()}


def _below(name: str, value: int, bound: int) -> None:
    if not 0 <= _values.size(name, value, 0) < bound:
        msg = f"{name}={value} must be in [0, {bound})"
        raise ArgumentError(msg)


def _new_figure(caller: str, **options: Any) -> Figure:
    """Return an empty figure."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        msg = f"{caller} needs the package matplotlib: pip install 'xplstm[plot]'"
        raise ImportError(msg) from error
    return Figure(**options)


def _check_axes(name: str, axes: Any) -> None:
    """Check that `axes` has the drawing methods of matplotlib."""
    if not all(hasattr(axes, method) for method in ("plot", "imshow", "get_figure")):
        msg = f"{name} must be a matplotlib Axes, got {type(axes).__name__}"
        raise DTypeError(msg)


def _figure_of(axes: Axes) -> Figure:
    """Return the top-level figure of `axes`, even for axes in a subfigure."""
    figure: Any = axes.get_figure()
    while (outer := getattr(figure, "figure", figure)) is not figure:
        figure = outer
    return figure


def _find_panels(ax: Any, lines: bool) -> tuple[Figure, dict[str, Axes]]:
    """Return the figure of the caller's six panels, and the panels by name."""
    given = list(np.ravel(_values.items("ax", ax)))
    for k, axes in enumerate(given):
        _check_axes(f"ax[{k}]", axes)
    if len(given) != 6 or len({id(_figure_of(axes)) for axes in given}) > 1:
        msg = f"ax has {len(given)} elements, expected 6 Axes of one figure, for i, f, o, g, c and h"
        raise ArgumentError(msg)
    order = dict(zip((*GATES, *SIGNED), given, strict=True))
    _title(order, lines)
    return _figure_of(given[0]), order


def _title(order: dict[str, Axes], lines: bool) -> None:
    """Set the title and the axis label of each panel."""
    for name, axes in order.items():
        axes.set_title(TITLES[name], fontsize=11, loc="left")
        axes.set_ylabel("value" if lines else "unit")


def _panels(steps: int, lines: bool) -> tuple[Figure, dict[str, Axes]]:
    """Return an empty figure with the six panels by name."""
    long = steps >= LONG
    width = min(24.0, max(11.0, 2.5 + 0.2 * steps)) if long else 11.0
    figure = _new_figure("plot_trace", figsize=(width, 10.5 if long else 6.5))
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.08)
    grid = figure.subplots(6, 1, sharex=True) if long else figure.subplots(3, 2, sharex=True).T.flatten()
    order = dict(zip((*GATES, *SIGNED), grid, strict=True))
    _title(order, lines)
    return figure, order


def _scales(values: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Return the lower and upper end of each scale; gates of variants may be outside [0, 1]."""
    values = {name: np.where(np.isfinite(a), a, 0.0) for name, a in values.items()}
    gates = [values[name] for name in GATES]
    low, high = min(0.0, *(a.min() for a in gates)), max(1.0, *(a.max() for a in gates))
    shown = max(1.0, *(np.abs(values[name]).max() for name in ("g", "h")))
    kept = max(np.abs(values["c"]).max(), 1e-12)
    return {
        **dict.fromkeys(GATES, (low, high)),
        "g": (-shown, shown),
        "h": (-shown, shown),
        "c": (-kept, kept),
    }


def _draw_maps(
    figure: Figure, panels: dict[str, Axes], values: dict[str, np.ndarray], units: list[int]
) -> None:
    """Draw each quantity as a colour map, with numbers if there are few cells."""
    scales, images = _scales(values), {}
    for name, axes in panels.items():
        a = values[name].T
        low, high = scales[name]
        images[name] = axes.imshow(
            a,
            cmap=GATE_COLOURS if name in GATES else SIGNED_COLOURS,
            vmin=low,
            vmax=high,
            aspect="auto",
            interpolation="nearest",
        )
        _mark_units(axes, units[: a.shape[0]])
        if a.size <= NUMBERED:
            _write_numbers(axes, a, name in GATES, scales[name])
    figure.colorbar(images["i"], ax=[panels[name] for name in GATES], pad=0.01, fraction=0.04)
    for name in SIGNED:
        figure.colorbar(images[name], ax=panels[name], pad=0.01, fraction=0.04)


def _write_numbers(axes: Axes, a: np.ndarray, gate: bool, scale: tuple[float, float]) -> None:
    """Write the number of each cell, light on dark cells and dark on light cells."""
    low, high = scale
    for (y, x), value in np.ndenumerate(a):
        place = (value - low) / (high - low)
        dark = place < 0.65 if gate else abs(place - 0.5) > 0.35
        text = f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
        axes.text(x, y, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")


def _draw_lines(panels: dict[str, Axes], values: dict[str, np.ndarray], units: list[int]) -> None:
    """Draw one line for each unit."""
    scales = _scales(values)
    # c shares its scale with no other panel, so its lines may fill the panel.
    finite = values["c"][np.isfinite(values["c"])]
    scales["c"] = (float(finite.min(initial=0.0)), float(finite.max(initial=1e-12)))
    for name, axes in panels.items():
        low, high = scales[name]
        margin = 0.05 * (high - low)
        axes.set_ylim(low - margin, high + margin)
        axes.axhline(0, color="#999999", linewidth=0.8)
        for k, line in enumerate(values[name].T):
            style = STYLES[k % len(STYLES)]
            axes.plot(line, style, color=LINES[k], marker="o", markersize=3, label=f"unit {units[k]}")
        axes.grid(alpha=0.25)


def _mark_units(axes: Axes, units: list[int]) -> None:
    """Set at most 12 ticks at equal distances."""
    every = max(1, -(-len(units) // 12))
    places = range(0, len(units), every)
    axes.set_yticks(places, [str(units[place]) for place in places], fontsize=8)


def _mark_time(axes: Axes, steps: int, tokens: Sequence[str] | None, last: bool) -> None:
    """Label every step with its token or its number; blanks get visible symbols."""
    if tokens is None:
        every = max(1, -(-steps // 20))
        ticks, labels = range(0, steps, every), [str(step) for step in range(0, steps, every)]
    else:
        ticks, labels = range(steps), [BLANKS.get(token, token) for token in tokens]
    axes.set_xlim(-0.5, steps - 0.5)
    # A token such as $x$ is no formula.
    axes.set_xticks(ticks, labels, fontsize=10 if steps <= 80 else 7, parse_math=False)
    axes.tick_params(axis="x", labelbottom=last, length=2)
    if last and tokens is None:
        axes.set_xlabel("step")
