"""Draw docs/figures/speed.svg: the mean ratios of docs/benchmarks.json, for the first page."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from xplstm.cli import results

NUMBERS = Path(__file__).resolve().parents[1] / "benchmarks.json"
KINDS = {"step": "one step\nof a stream", "forward": "inference", "train": "training"}
PEERS = {
    "onnxruntime": ("ONNX Runtime", "#55a868"),
    "torch": ("PyTorch", "#dd8452"),
    "jax": ("JAX", "#8172b3"),
}
THREADS = "2 threads"


def draw(path: Path) -> None:
    """Draw a group of bars for each kind of work, a bar for each library; log scale, a line at 1."""
    tables = results.group_timed(results.load(NUMBERS).rows)
    means = {
        kind: {
            name: statistics.geometric_mean(found.values())
            for name, found in results.ratios(tables[kind, THREADS], results.pairs).items()
        }
        for kind in KINDS
    }
    with matplotlib.rc_context({"font.size": 12, "svg.hashsalt": "xplstm", "svg.fonttype": "path"}):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.subplots()
        for row, kind in enumerate(KINDS):
            present = [name for name in PEERS if name in means[kind]]
            for k, name in enumerate(present):
                place = row + 0.26 * (k - (len(present) - 1) / 2)
                axes.barh(place, means[kind][name] - 1, 0.24, 1, color=PEERS[name][1])
                label = f"{PEERS[name][0]}  {means[kind][name]:.1f}"
                axes.text(means[kind][name] * 1.03, place, label, va="center", fontsize=11)
        axes.axvline(1, color="#333333", linewidth=1)
        axes.set(xscale="log", xlim=(1, 40), ylim=(len(KINDS) - 0.5, -0.5))
        axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        axes.minorticks_off()
        axes.set_yticks(range(len(KINDS)), list(KINDS.values()))
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("time over that of xplstm (CPU, two threads, mean)")
        axes.spines[["top", "right", "left"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg"))
