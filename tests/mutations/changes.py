"""Change Python code by its syntax tree, and C code by its tokens."""

from __future__ import annotations

import ast
import copy
import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple

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
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
# In C, each of these tokens can be an operator with two operands.
TOKENS = {
    " + ": " - ",
    " - ": " + ",
    " * ": " + ",
    " / ": " * ",
    " % ": " / ",
    " < ": " <= ",
    " <= ": " < ",
    " > ": " >= ",
    " >= ": " > ",
    " == ": " != ",
    " != ": " == ",
    " && ": " || ",
    " || ": " && ",
    " += ": " = ",
}
TOKEN = re.compile("|".join(map(re.escape, TOKENS)) + r"|(?<![\w.])\d+(?![\w.])|!(?=[\w(])")
# Comments, strings, and what the preprocessor reads.
NO_CODE = re.compile(r'/\*.*?\*/|"(?:\\.|[^"\\\n])*"|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*', re.DOTALL | re.MULTILINE)


class Change(NamedTuple):
    """Module with one changed place: the text of the changed module, and the lines of its statement."""

    module: str
    line: int
    last: int
    inside: bool
    before: str
    after: str
    text: str

    @property
    def key(self) -> str:
        """Return the name of the change in a file of results."""
        return hashlib.sha256(f"{self.module}\n{self.text}".encode()).hexdigest()[:16]


class Place(NamedTuple):
    """Expression, the lines of its statement, and whether it is in the body of a function."""

    node: ast.expr
    line: int
    last: int
    inside: bool


def python_changes(module: str, text: str) -> Iterator[Change]:
    """Yield every change of an operator, a constant or a branch; messages and annotations are left alone."""
    raw = text.encode()
    starts = [0]
    for line in raw.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for node, first, last, inside in places(ast.parse(text)):
        for other in alternatives(node):
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)
            new = f"({ast.unparse(other)})".encode()
            # Lines keep their numbers.
            new = new[:-1] + b"\n" * raw[begin:end].count(b"\n") + b")"
            made = (raw[:begin] + new + raw[end:]).decode()
            at, until = node.lineno - 1, node.end_lineno
            before, after = (" ".join(t.splitlines()[at:until]) for t in (text, made))
            yield Change(module, first, last, inside, squeezed(before), squeezed(after), made)


def squeezed(text: str) -> str:
    return " ".join(text.split())


def places(node: ast.AST, first: int = 0, last: int = 0, inside: bool = False) -> Iterator[Place]:
    """Yield the expressions that can be changed."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases", "type_params"):
            continue
        within = inside or (field == "body" and isinstance(node, ast.FunctionDef | ast.Lambda))
        for child in value if isinstance(value, list) else [value]:
            if (
                not isinstance(child, ast.AST)
                or isinstance(child, ast.JoinedStr | ast.Raise)
                or untouched(child)
            ):
                continue
            if isinstance(child, ast.stmt):
                first, last = child.lineno, header(child)
            if isinstance(child, ast.expr) and any(True for _ in alternatives(child)):
                yield Place(child, first, last, within)
            elif (
                field == "test"
                and isinstance(node, ast.stmt)
                and isinstance(child, ast.Name | ast.Attribute | ast.Call | ast.NamedExpr)
            ):
                yield Place(ast.copy_location(Condition(child), child), first, last, within)
            yield from places(child, first, last, within)


def untouched(node: ast.AST) -> bool:
    """Return whether a part is a message, a type, or an argument such as `strict` of zip."""
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) in ("msg", "T", "P", "R", "V")
    if isinstance(node, ast.If):
        return ast.unparse(node.test) == "TYPE_CHECKING"
    return isinstance(node, ast.keyword) and node.arg in ("strict", "stacklevel")


def header(node: ast.stmt) -> int:
    """Return the last line of a statement without the statements in it."""
    body = getattr(node, "body", None)
    return max(node.lineno, body[0].lineno - 1) if body else (node.end_lineno or node.lineno)


class Condition(ast.expr):
    """Condition that is not a comparison."""

    def __init__(self, value: ast.expr) -> None:
        super().__init__()
        self.value = value


def alternatives(node: ast.expr) -> Iterator[ast.expr]:
    """Yield the replacements of an expression."""
    match node:
        case Condition():
            yield ast.UnaryOp(ast.Not(), node.value)
        case ast.Compare(ops=[op, *others]) if type(op) in SWAPS:
            yield ast.Compare(node.left, [SWAPS[type(op)](), *others], node.comparators)
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPS:
            new = copy.copy(node)
            new.op = SWAPS[type(op)]()  # type: ignore[attr-defined]
            yield new
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            yield operand
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value + 1 if value + 1 != value else value * 2)
        case ast.Call(func=ast.Name(id=name)) if name in NAMES:
            yield ast.Call(ast.Name(NAMES[name]), node.args, node.keywords)


def c_changes(module: str, text: str) -> Iterator[Change]:
    """Yield every change of an operator, a constant or a negation outside comments, strings and macros."""
    code = NO_CODE.sub(lambda found: re.sub(r"\S", " ", found.group()), text)
    for found in TOKEN.finditer(code):
        old = found.group()
        new = TOKENS.get(old) or ("" if old == "!" else str(int(old) + 1))
        made = text[: found.start()] + new + text[found.end() :]
        line = text.count("\n", 0, found.start())
        before, after = (squeezed(t.splitlines()[line]) for t in (text, made))
        yield Change(module, line + 1, line + 1, False, before, after, made)
