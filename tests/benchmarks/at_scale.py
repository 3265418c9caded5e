"""Compute the numbers of docs/at_scale.md: 1e9 sequences on 100 machines with 8 GPUs each.

``python -m tests.benchmarks.at_scale`` prints the tables of the page. ``--draw FILE`` draws its figure, and
``--write`` writes the tables to the page. Messages and bytes come from the code that adds gradients, which
runs once for each rank with arrays that are not sent. Times follow from assumptions: latency and bandwidth of
links, and the speed of a GPU and of disks.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import xplstm
from xplstm.training._team import Team

PAGE = Path(__file__).parents[2] / "docs" / "at_scale.md"
BEGIN, END = "<!-- begin: python -m tests.benchmarks.at_scale -->\n", "<!-- end -->\n"

SEQUENCES, T, I, H = 10**9, 100, 64, 256
MACHINES, GPUS = 100, 8
RANKS = 512  # the largest power of two that fits on the machines
SHARDS, SHARD_SIZE = 1024, 200
CHUNK = 10_000  # sequences in a chunk of inference

# Assumptions, not measurements.
FLOPS = 5e12  # per second and GPU, for a recurrence that waits for latency
READ = 1e9  # bytes per second and machine
LATENCY_INSIDE, BANDWIDTH_INSIDE = 10e-6, 50e9  # between two GPUs of a machine
LATENCY_BETWEEN, BANDWIDTH_BETWEEN = 50e-6, 12e9  # of a machine's network card, which its ranks share
WRITE = 0.5e9  # bytes per second to the disk of rank 0
FAILURES = {
    "one failure a machine and year": 365 * 86400 * GPUS / RANKS,
    "spot machines, one loss an hour": 3600.0,
}


class Message(NamedTuple):
    """Messages that one rank sends to another rank, and receives from it."""

    peer: int
    size: int


class Recorder:
    """Group that records the messages of one rank."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.sent: list[Message] = []

    def exchange(self, array: np.ndarray, peer: int) -> np.ndarray:
        """Record an array, and return one of the same size."""
        self.sent.append(Message(peer, array.nbytes))
        return np.zeros_like(array)

    def gather(self, data: bytes) -> list[bytes]:
        """Raise an error, because a sum without errors gathers nothing."""
        raise AssertionError(data)


@functools.cache
def _parts(ranks: int) -> list[list[Message]]:
    """Return the messages of each rank that add arrays with one number for each rank."""
    recorders = [Recorder(rank, ranks) for rank in range(ranks)]
    for recorder in recorders:
        Team(recorder).add(lambda: (np.zeros(ranks, "uint8"), None), ranks, "uint8")
    return [recorder.sent for recorder in recorders]


def messages(ranks: int, length: int) -> list[list[Message]]:
    """Return the messages of each rank that add `length` float32 numbers, padded to equal parts."""
    part = 4 * -(-length // ranks)
    return [[Message(peer, size * part) for peer, size in own] for own in _parts(ranks)]


def link(rank: int, message: Message) -> float:
    """Return the seconds of one message if all ranks of a machine send at the same time."""
    if rank // GPUS == message.peer // GPUS:
        return LATENCY_INSIDE + message.size / BANDWIDTH_INSIDE
    return LATENCY_BETWEEN + message.size * GPUS / BANDWIDTH_BETWEEN


def tree_time(sent: list[list[Message]]) -> float:
    """Return the seconds until the last rank has the sum. An exchange starts when both ranks are ready."""
    clocks = [0.0] * len(sent)
    for step in range(len(sent[0])):
        before = list(clocks)
        for rank, own in enumerate(sent):
            message = own[step]
            assert sent[message.peer][step].peer == rank
            clocks[rank] = max(before[rank], before[message.peer]) + link(rank, message)
    return max(clocks)


def doubling_time(ranks: int, size: int) -> float:
    """Return the seconds of standard recursive doubling, which sends the complete array in each step."""
    return sum(link(0, Message(1 << k, size)) for k in range(ranks.bit_length() - 1))


def ring_time(ranks: int, size: int) -> float:
    """Return the seconds of a ring, whose slowest link connects two machines."""
    part = size / ranks
    if ranks <= GPUS:
        return 2 * (ranks - 1) * (LATENCY_INSIDE + part / BANDWIDTH_INSIDE)
    return 2 * (ranks - 1) * (LATENCY_BETWEEN + part / BANDWIDTH_BETWEEN)


def parameters(input_size: int, hidden_size: int, layers: int) -> int:
    """Return the number of parameters of an LSTM."""
    gates = 4 * hidden_size
    first = gates * (input_size + hidden_size + 2)
    return first + (layers - 1) * gates * (2 * hidden_size + 2)


def table(header: str, rows: list[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    columns = header.count("|") + 1
    lines = [f"| {header} |", "|---" * columns + "|", *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join(lines) + "\n"


def bytes_of(count: float) -> str:
    """Return bytes with a decimal unit."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def seconds_of(seconds: float) -> str:
    """Return a time with a suitable unit."""
    if seconds < 1:
        return f"{float(f'{seconds * 1e3:.2g}'):g} ms"
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def data() -> str:
    """Return the table of bytes, work and tasks."""
    flop = 2 * 4 * H * (I + H) * T
    x = 4.0 * SEQUENCES * T * I
    return table(
        "quantity | formula | value",
        [
            ("x", "N T I x 4 B", bytes_of(x)),
            ("y, all steps", "N T H x 4 B", bytes_of(4.0 * SEQUENCES * T * H)),
            ("h_n alone", "N H x 4 B", bytes_of(4.0 * SEQUENCES * H)),
            ("work of one sequence, forward", "2 x 4H (I + H) T", f"{flop / 1e6:.3g} MFLOP"),
            (
                "forward pass on all GPUs",
                "N x work / speed",
                seconds_of(SEQUENCES * flop / FLOPS / MACHINES / GPUS),
            ),
            ("reading x on all machines", "x / speed", seconds_of(x / READ / MACHINES)),
            ("chunks of inference", f"N / {CHUNK}", f"{SEQUENCES // CHUNK}"),
            ("tasks, where x is in one chunk along time", "chunks x tasks of one chunk", f"{tasks()}"),
        ],
    )


def tasks() -> int:
    """Return the number of Dask tasks of one call for all sequences, from graphs of one and two chunks."""
    import dask.array as da

    lstm = xplstm.LSTM(2, 3, rng=0)

    def count(chunks: int) -> int:
        x = da.zeros((4, 5 * chunks, 2), chunks=(4, 5, 2), dtype="float32")
        state = lstm(x)[1]
        return len(dict(state.h.__dask_graph__())) - len(dict(x.__dask_graph__()))

    one, two = count(1), count(2)
    return one + (SEQUENCES // CHUNK - 1) * (two - one)


def sums() -> str:
    """Return the table of the sums of gradients."""
    rows = []
    for name, sizes in {
        "I 64, H 256, one layer": (I, H, 1),
        "I 1024, H 1024, two layers": (1024, 1024, 2),
    }.items():
        length = parameters(*sizes)
        for ranks in (8, RANKS, 1024):
            sent = messages(ranks, length)
            size = 4 * length
            rows.append(
                (
                    name,
                    bytes_of(size),
                    f"{ranks}",
                    f"{len(sent[0])}",
                    bytes_of(max(sum(m.size for m in own) for own in sent)),
                    *(
                        seconds_of(t)
                        for t in (tree_time(sent), doubling_time(ranks, size), ring_time(ranks, size))
                    ),
                )
            )
    return table(
        "LSTM | gradient | ranks | messages per rank | bytes per rank | this tree | whole arrays | ring", rows
    )


def training() -> str:
    """Return the table of one epoch of training."""
    batch = SHARDS * SHARD_SIZE
    updates = -(-SEQUENCES // batch)
    compute = 3 * 2 * 4 * H * (I + H) * T * batch / RANKS / FLOPS
    add = tree_time(messages(RANKS, parameters(I, H, 1)))
    counts = 2 * math.log2(RANKS) * LATENCY_BETWEEN
    read = 4.0 * batch * T * I / READ * GPUS / RANKS
    epoch = updates * max(read, compute + add + counts)
    return table(
        "quantity | formula | value",
        [
            ("ranks", f"a power of two, at most {MACHINES * GPUS}", f"{RANKS}"),
            ("machines that they need", f"ranks / {GPUS}", f"{RANKS // GPUS}"),
            ("global batch", f"K = {SHARDS} shards of {SHARD_SIZE}", f"{batch}"),
            ("updates in an epoch", "N / batch", f"{updates}"),
            ("gradients of one update", "3 x forward / (ranks x speed)", seconds_of(compute)),
            ("sum of one update", "simulated", seconds_of(add)),
            ("counts of the parts of one batch", "two gathers, 2 log2(ranks) x latency", seconds_of(counts)),
            ("reading one update's x", "batch T I x 4 B / (machines x speed)", seconds_of(read)),
            ("one epoch, reading ahead", "updates x the slower of both", seconds_of(epoch)),
        ],
    )


def checkpoints() -> str:
    """Return the table of intervals between checkpoints: Young (1974) and Daly (2006), sqrt(2 C M)."""
    rows = []
    for name, sizes in {
        "I 64, H 256, one layer": (I, H, 1),
        "I 1024, H 1024, two layers": (1024, 1024, 2),
    }.items():
        size = 3 * 4 * parameters(*sizes)  # parameters, and the two averages of Adam
        cost = size / WRITE
        for what, mean in FAILURES.items():
            interval = math.sqrt(2 * cost * mean)
            lost = cost / interval + interval / (2 * mean)
            rows.append(
                (name, bytes_of(size), seconds_of(cost), what, seconds_of(interval), f"{100 * lost:.2g} %")
            )
    return table("LSTM | file | C, to write it | M, between failures | interval | time lost", rows)


TABLES: dict[str, Callable[[], str]] = {
    "Data and inference": data,
    "Sums of gradients": sums,
    "One epoch of training": training,
    "Checkpoints": checkpoints,
}


def tables() -> str:
    """Return all tables of the page."""
    return "\n".join(f"### {title}\n\n{make()}" for title, make in TABLES.items())


def draw(path: Path) -> None:
    """Draw the time of a sum for gradients of several sizes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 10, "svg.hashsalt": "xplstm", "svg.fonttype": "path"}):
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        sizes = [4 * RANKS << k for k in range(16)]
        trees = [tree_time(messages(RANKS, size // 4)) for size in sizes]
        lines = {
            "tree by halving and doubling (this library)": (trees, "-", "#4477aa"),
            "whole arrays in each step": ([doubling_time(RANKS, size) for size in sizes], "--", "#cc7711"),
            "ring": ([ring_time(RANKS, size) for size in sizes], ":", "#228833"),
        }
        for label, (times, style, colour) in lines.items():
            axes.loglog(sizes, times, style, color=colour, label=label, linewidth=2)
        axes.set_xlabel("gradient in bytes")
        axes.set_ylabel("seconds, simulated")
        axes.set_title(f"One sum over {RANKS} ranks, {GPUS} a machine")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=120)


def main() -> None:
    """Print, write or draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw the figure")
    asked = parser.parse_args()
    if asked.draw:
        draw(asked.draw)
        return
    made = tables()
    print(made)
    if asked.write:
        text = PAGE.read_text(encoding="utf-8")
        head, rest = text.split(BEGIN)
        PAGE.write_text(head + BEGIN + "\n" + made + "\n" + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
