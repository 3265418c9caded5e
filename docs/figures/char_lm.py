"""Train a character model for half a minute, and draw what some of its units do while it reads a line.

``python docs/figures/char_lm.py`` writes char_lm_gates.png and char_lm_lines.png beside this file. Which unit
does what differs from machine to machine, as training does.
"""

from __future__ import annotations

import sys
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from PIL import Image

from xplstm import optim, training
from xplstm.models import CharLM
from xplstm.plots import plot_trace

BEFORE = "The compound statements contain groups of other statements.\n\n"
LINE = 'The "with" statement is used to wrap the "execution" of a block.\n'


def draw(path: Path, updates: int = 2500) -> None:
    """A map of the units that follow something one can name, and lines of the best three."""
    text = "\n".join(topics[name] for name in sorted(topics))
    model = trained(text, updates)
    closest = followers(model, text[:20000])
    read = BEFORE + LINE
    trace = model.lstm.trace(model.embedding(model.encode(read)))
    line = type(trace)(*(a[:, len(BEFORE) :, ...] for a in trace))
    chosen = [unit for units in closest.values() for unit in units]
    best = [units[0] for units in closest.values()]
    for suffix, options in (("_gates", {"units": chosen}), ("_lines", {"units": best, "lines": True})):
        file = path.with_name(f"{path.stem}{suffix}.png")
        plot_trace(line, tokens=LINE, **options).savefig(file, dpi=80)
        Image.open(file).quantize(256).save(file, optimize=True)


def trained(text: str, updates: int) -> CharLM:
    """One layer of 64 units that has read the text for some updates."""
    model = CharLM(sorted(set(text)), 64, 1, embedding_dim=32, rng=0)
    training.fit(
        model,
        training.Streams(model.encode(text), 32, 64),
        optim.Adam(optim.warmup_cosine(4e-3, max(1, updates // 20), updates)),
        updates=updates,
        carry=True,
        max_norm=1.0,
        progress=sys.stderr.isatty(),
    )
    return model


def followers(model: CharLM, text: str, count: int = 4) -> dict[str, list[int]]:
    """The units whose cell state goes most closely with what they could keep track of, none twice."""
    c = np.asarray(model.lstm.trace(model.embedding(model.encode(text))).c[0], dtype=np.float64)
    taken: list[int] = []
    found = {}
    for name, wanted in kept_track_of(text).items():
        close = [abs(np.corrcoef(c[:, unit], wanted)[0, 1]) for unit in range(c.shape[1])]
        order = [int(unit) for unit in np.argsort(close)[::-1] if int(unit) not in taken]
        found[name] = order[:count]
        taken += found[name]
    return found


def kept_track_of(text: str) -> dict[str, np.ndarray]:
    """For each character: whether it stands in quotes, how far into its word, how far into its line."""
    inside, word, column = [], [], []
    for character in text:
        quoted = bool(inside and inside[-1]) and character != "\n"
        inside.append(quoted != (character == '"'))
        word.append(word[-1] + 1 if word and character.isalpha() else 0)
        column.append(column[-1] + 1 if column and character != "\n" else 0)
    found = {"quotes": inside, "word": word, "line": column}
    return {name: np.asarray(a, dtype=np.float64) for name, a in found.items()}


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__))
