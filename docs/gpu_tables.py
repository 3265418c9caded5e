"""Replace the tables of docs/kernels_gpu.md by tables computed from the code.

python -m docs.gpu_tables
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from xplstm.kernels._cuda import partitions
from xplstm.kernels._cuda.partitions import COSTS, Chip

PAGE = Path(__file__).resolve().parent / "kernels_gpu.md"
CHIPS = {
    "H200 (132 SMs, 232448 bytes)": Chip(132, 232448),
    "A100 (108 SMs, 166912 bytes)": Chip(108, 166912),
    "RTX 4090 (128 SMs, 101376 bytes)": Chip(128, 101376),
}
KINDS = {"float64": "float64", "float32": "float32", "TF32": "tf32", "float16, bfloat16": "float16"}
ROWS, STEP, STEP_ALONE, MOST = 16, 128, 8, 4096
WALKS = (False,), (False, True)


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def table(head: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    return "\n".join([row(*head), "|---" * len(head) + "|", *(row(*cells) for cells in rows)])


def reach(chip: Chip, kind: str, walks: tuple[bool, ...], alone: bool) -> int:
    """The largest hidden size, in steps, up to which all of these walks fit."""
    step = STEP_ALONE if alone else STEP
    for H in range(step, MOST, step):
        if None in [partitions.best_plan(chip, 1, ROWS, H, kind, back, COSTS, alone) for back in walks]:
            return H - step
    raise AssertionError(MOST)


def reached(alone: bool = False) -> str:
    rows: list[tuple[object, ...]] = []
    for name, chip in CHIPS.items():
        found = ([reach(chip, kind, walks, alone) for walks in WALKS] for kind in KINDS.values())
        rows.append((name, *(f"{forward} / {training}" for forward, training in found)))
    head = "in one block, with 16 rows" if alone else "with 16 rows"
    return table((head, *KINDS), rows)


def reached_alone() -> str:
    return reached(alone=True)


def costs() -> str:
    """Each constant with the words that stand below it in the source."""
    source = inspect.getsource(partitions.Costs)
    said = re.findall(r"^    (\w+): float = .*\n    (\"\"\".*\"\"\")$", source, re.MULTILINE)
    words = {name: ast.literal_eval(text).removesuffix(".") for name, text in said}
    rows = [(f"`{name}`", f"{value:g}", words[name]) for name, value in COSTS._asdict().items()]
    return table(("constant", "value", "what it is"), rows)


def cuts() -> str:
    """What the model chooses on the first chip for some shapes."""
    rows: list[tuple[object, ...]] = []
    for kind in ("float32", "tf32", "float16"):
        for B, H in ((16, 512), (16, 1024), (64, 1024)):
            plan = partitions.best_plan(next(iter(CHIPS.values())), 1, B, H, kind, False, COSTS)
            assert plan is not None
            blocks = f"{plan.groups} · {plan.unit_blocks} = {plan.groups * plan.unit_blocks}"
            shared = f"{plan.shared / 1024:.1f}"
            rows.append((kind, B, H, plan.units, plan.rows, blocks, shared, f"{plan.cost:.1f}"))
    head = (
        "products in",
        "B",
        "H",
        "units of a block",
        "rows of a group",
        "groups · blocks of units = blocks",
    )
    return table((*head, "KiB of shared memory per block", "microseconds per step, predicted"), rows)


def tables() -> Iterator[str]:
    for make in (reached_alone, reached, costs, cuts):
        yield make()


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for made in tables():
        head = re.escape(made.partition("\n")[0])
        page, found = re.subn(head + r"\n(\|.*\n)*", lambda _, made=made: made + "\n", page)
        assert found == 1, head
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
