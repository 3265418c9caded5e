"""Change the package in one place at a time, and count the changes that its tests do not see.

``python -m tests.mutations --count 100 --seed 0`` draws changes from every module of `TARGETS` and runs the
tests of the module on a copy of the tree. It prints each change that survives. A change that alters no result
is written into `HARMLESS` with its reason. The exit status is 1 if another survives.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

ROOT = Path(__file__).parents[1]
KERNELS = ("tests/kernels/test_sequence.py", "tests/kernels/test_kernels.py", "tests/kernels/test_resets.py")
SPECIFICATION = ("spec/test_vectors.py", "spec/test_behaviour.py", "spec/test_sized.py", "--subject")
REFERENCE = (*SPECIFICATION, "xplstm:numpy:reference")
CELLS = ("spec/test_vectors.py", "spec/test_gru.py", "--subject", "xplstm:numpy:reference")

PATIENCE = 300

Runs: TypeAlias = tuple[tuple[str, ...], ...]

# Modules, and the runs of pytest that judge them; the first that fails ends a change.
TARGETS: dict[str, Runs] = {
    "xplstm/cells/*.py": (CELLS, ("tests/cells", "tests/nn")),
    "xplstm/kernels/reference.py": (
        REFERENCE,
        ("tests/kernels/test_sequence.py", "tests/kernels/test_kernels.py"),
    ),
    "xplstm/kernels/_steps.py": (REFERENCE, KERNELS),
    "xplstm/kernels/_checkpoint.py": (
        ("tests/kernels/test_sequence.py", "tests/nn"),
        ("tests/test_functional.py",),
    ),
    "xplstm/_stack.py": (REFERENCE, ("tests/nn", "tests/test_functional.py")),
    "xplstm/_merge.py": (REFERENCE,),
    "xplstm/_dropout.py": (REFERENCE, ("tests/nn/test_dropout.py",)),
    "xplstm/kernels/numpy_inplace.py": (
        (*SPECIFICATION, "xplstm:numpy:numpy_inplace"),
        KERNELS,
    ),
    "xplstm/optim/_*.py": (("tests/optim",),),
    "xplstm/losses/_*.py": (("tests/losses",),),
    "xplstm/models/decoding.py": (("tests/models",),),
    "xplstm/io/gates.py": (("tests/io",),),
    "xplstm/io/columns.py": (("tests/io",),),
    "xplstm/io/layouts/*.py": (("tests/io",),),
    "xplstm/kernels/_native/*.h": (("tests/kernels/test_native.py", "tests/kernels/test_resets.py"),),
}

# Changes that alter no result, as module and the changed line: why.
HARMLESS: dict[tuple[str, str], str] = {}

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.Pow: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
# In C every token stands where an operator of two numbers can be.
TOKENS = {
    " + ": " - ",
    " - ": " + ",
    " * ": " + ",
    " < ": " <= ",
    " <= ": " < ",
    " == ": " != ",
    " && ": " || ",
}


class Change(NamedTuple):
    """A module with one place changed."""

    module: str
    line: int
    before: str
    after: str
    text: str

    @property
    def harmless(self) -> str:
        """Why no result differs, or nothing."""
        return HARMLESS.get((self.module, self.before.strip()), "")


def python_changes(module: str, text: str) -> Iterator[Change]:
    """Yield every change of an operator, a constant or a branch; messages and annotations are left alone."""
    tree = ast.parse(text)
    places = list(places_of(tree))
    for number in range(len(places)):
        made = copy.deepcopy(tree)
        node = list(places_of(made))[number]
        before = ast.unparse(statement_of(tree, places[number]))
        for change in alternatives(node):
            change()
            after = ast.unparse(statement_of(made, node))
            if after != before:
                first = next((a for a, b in lines_of(before, after) if a != b), "")
                other = next((b for a, b in lines_of(before, after) if a != b), "")
                yield Change(module, places[number].lineno, first, other, ast.unparse(made))


def lines_of(before: str, after: str) -> Iterator[tuple[str, str]]:
    return zip(before.splitlines(), after.splitlines(), strict=False)


def places_of(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the expressions that can be changed."""
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list", "bases", "type_params"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if not isinstance(node, ast.AST) or isinstance(node, ast.JoinedStr | ast.Raise):
                continue
            if isinstance(node, ast.keyword) and node.arg == "strict":
                continue
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("msg", "T", "P", "R", "V"):
                continue
            if isinstance(node, ast.expr) and any(True for _ in alternatives(node)):
                yield node
            yield from places_of(node)


def alternatives(node: ast.expr) -> Iterator[Callable[[], None]]:
    """Yield what changes an expression in place."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield lambda: node.ops.__setitem__(0, SWAPS[type(node.ops[0])]())  # type: ignore[arg-type]
    elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
        yield lambda: setattr(node, "op", SWAPS[type(node.op)]())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        yield lambda: setattr(node, "operand", ast.UnaryOp(node.op, node.operand))
    elif isinstance(node, ast.IfExp):
        yield lambda: node.__dict__.update(body=node.orelse, orelse=node.body)
    elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
        value = node.value
        yield lambda: setattr(node, "value", not value if isinstance(value, bool) else value + 1)


def statement_of(tree: ast.AST, place: ast.AST) -> ast.AST:
    """Return the innermost statement around a place."""
    found = tree
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt) and any(inner is place for inner in ast.walk(node)):
            found = node
    return found


def c_changes(module: str, text: str) -> Iterator[Change]:
    """Yield every change of an operator outside comments and macros' names."""
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        code = line.partition("/*")[0]
        if line.lstrip().startswith(("/*", "*", "#", "   ")) and "*/" in line:
            continue
        for token, other in TOKENS.items():
            at = code.find(token)
            if at >= 0:
                after = line[:at] + other + line[at + len(token) :]
                made = "".join([*lines[:number], after, *lines[number + 1 :]])
                yield Change(module, number + 1, line.rstrip(), after.rstrip(), made)


def drawn(count: int, seed: int, only: str) -> list[tuple[Change, Runs]]:
    """Draw the same number of changes from every target, and skip those that are known to be harmless."""
    chosen = random.Random(seed)
    targets = {pattern: runs for pattern, runs in TARGETS.items() if fnmatch(pattern, f"*{only}*")}
    found = []
    for k, (pattern, runs) in enumerate(targets.items()):
        changes = [change for path in sorted(ROOT.glob(pattern)) for change in changes_of(path)]
        share = count * (k + 1) // len(targets) - count * k // len(targets)
        found += [(change, runs) for change in chosen.sample(changes, min(share, len(changes)))]
    return found


def changes_of(path: Path) -> list[Change]:
    text, module = path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()
    return list((python_changes if path.suffix == ".py" else c_changes)(module, text))


def tree(folder: Path) -> Path:
    """Copy what the tests need."""
    for name in ("xplstm", "spec", "tests", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "_build")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "CHANGELOG.md", "noxfile.py"):
        shutil.copy(ROOT / name, folder)
    return folder


def seen(change: Change, runs: Runs, folder: Path) -> str:
    """Return how a change was found: the first test that failed, or nothing."""
    path = folder / change.module
    right = path.read_text(encoding="utf-8")
    path.write_text(change.text, encoding="utf-8")
    try:
        if path.suffix != ".py" and not compiled(folder):
            return "does not compile"
        return failure(runs, folder)
    finally:
        path.write_text(right, encoding="utf-8")


def environment(folder: Path) -> dict[str, str]:
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS")}
    return {**os.environ, **threads, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def compiled(folder: Path) -> bool:
    """Build the engine; return whether it compiles."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, check=False)
    return done.returncode == 0


def failure(runs: Runs, folder: Path) -> str:
    """Return the first test that fails, or nothing."""
    for run in runs:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=no", *run]
        options: Any = {"cwd": folder, "env": environment(folder), "capture_output": True, "text": True}
        try:
            done = subprocess.run(command, timeout=PATIENCE, check=False, **options)
        except subprocess.TimeoutExpired:
            return f"takes more than {PATIENCE} s"
        if done.returncode:
            lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            return lines[0][:100] if lines else f"exit status {done.returncode}"
    return ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for every change, and the survivors at the end."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="changes, spread evenly over the targets")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", help="a part of a target's name")
    given = parser.parse_args(arguments)
    changes = drawn(given.count, given.seed, given.only)
    survivors = []
    with tempfile.TemporaryDirectory() as name:
        folder = tree(Path(name))
        for runs in {runs for _, runs in changes}:
            # A test that fails without a change would find every one.
            broken = failure(runs, folder)
            if broken:
                print(f"without a change: {broken}", file=sys.stderr)
                return 2
        for number, (change, runs) in enumerate(changes, start=1):
            how = seen(change, runs, folder)
            verdict = how or (f"harmless: {change.harmless}" if change.harmless else "SURVIVES")
            print(f"{number:4}/{len(changes)} {change.module}:{change.line} {verdict}", flush=True)
            if not how:
                survivors.append(change)
    wrong = [change for change in survivors if not change.harmless]
    for change in survivors:
        print(f"{change.module}:{change.line} {change.harmless}\n- {change.before}\n+ {change.after}")
    print(f"{len(changes)} changes: {len(changes) - len(survivors)} seen, {len(survivors)} survive,")
    print(f"of which {len(survivors) - len(wrong)} alter no result")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
