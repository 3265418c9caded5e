"""Read untrusted pickles without running them.

A pickle is a program for a stack machine. One of its instructions can call any function by name. The machine
in this module implements only the instructions that build containers. A table replaces the functions that
PyTorch files call. Any other object becomes an `Inert` placeholder with the name of its class. Nothing is
imported or called.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NamedTuple, NoReturn

from xplstm._errors import FormatError
from xplstm.io._contents import quote, show

# Longest allowed name of a module or class.
_LONGEST_GLOBAL = 400


class Global(NamedTuple):
    """A global name in a pickle; it is compared but never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return show(f"{self.module}.{self.name}")


class Inert:
    """A placeholder for an object of an unknown class.

    It is compared and hashed by identity. Its text is the name of the class.
    """

    def __init__(self, name: Global) -> None:
        self.name = name
        self.items: dict[Any, Any] = {}
        self.state: Any = None

    def __repr__(self) -> str:
        return str(self.name)


class _Mark:
    """Marker on the stack for the start of the items of a container."""


Calls = Mapping[Global, Callable[..., Any]]

_MARK = _Mark()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_NO_CONTAINER = "which builds no tensor and no container"
_VALUES = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG1", "LONG4", "LONG"),
    *("BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINSTRING", "SHORT_BINSTRING", "STRING"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# Types of dict keys, and of the items of tuples as keys.
_KEYS = (str, bytes, int, float, type(None), Inert, Global)
# A tuple as a key becomes part of a name, and many tuples can share one text.
_DEEPEST_TUPLE, _LONGEST_TUPLE, _LONGEST_TEXT = 4, 16, 100
# Pickles write containers in parts of a thousand items; a valid pickle needs no larger stack.
_HIGHEST_STACK = 100_000


def load(where: str, program: BinaryIO | bytes, calls: Calls, persistent: Callable[[Any], Any]) -> Any:
    """Return the object that a pickle builds; a file position ends after the last instruction.

    `calls` maps known functions to their replacements. `persistent` resolves references to objects outside
    the pickle.
    """
    machine = _Machine(where, calls, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(program):
            machine.step(opcode.name, argument)
    except FormatError:
        raise
    except Exception as error:  # instructions of a damaged program raise many types of errors
        msg = f"{where} is a damaged pickle: {type(error).__name__} {quote(str(error))}"
        raise FormatError(msg) from error
    return machine.result


class _Machine:
    """Stack machine with a memo and one method for each instruction."""

    def __init__(self, where: str, calls: Calls, persistent: Callable[[Any], Any]) -> None:
        self.where = where
        self.calls = calls
        self.persistent = persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.result: Any = None

    def step(self, name: str, argument: Any) -> None:
        """Execute one instruction."""
        if len(self.stack) > _HIGHEST_STACK:
            self._refuse(f"needs a stack of more than {_HIGHEST_STACK} values")
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            self.stack.append(tuple(self._take(_TUPLES[name])))
        else:
            method = getattr(self, f"_do_{name.lower()}", None)
            if method is None:
                self._refuse(f"has the instruction {name}, {_NO_CONTAINER}")
            elif argument is None:
                method()
            else:
                method(argument)

    def _take(self, count: int) -> list[Any]:
        """Pop `count` values from the stack."""
        taken = self.stack[-count:]
        if len(taken) < count or any(value is _MARK for value in taken):
            self._refuse("pops more values than its stack has")
        del self.stack[-count:]
        return taken

    def _since_mark(self) -> list[Any]:
        """Pop the last mark and the values above it from the stack."""
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                taken = self.stack[place + 1 :]
                del self.stack[place:]
                return taken
        self._refuse("pops values from a stack without a mark")

    def _refuse(self, what: str) -> NoReturn:
        msg = f"{self.where} {what}; the pickle was not executed"
        raise FormatError(msg)

    def _do_proto(self, argument: int) -> None:
        if argument > 5:
            self._refuse(f"has the unknown pickle protocol {argument}")

    def _do_frame(self, _length: int) -> None:
        """Ignore the length of a frame."""

    def _do_stop(self) -> None:
        (self.result,) = self._take(1)

    def _do_mark(self) -> None:
        self.stack.append(_MARK)

    def _do_tuple(self) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _do_list(self) -> None:
        self.stack.append(self._since_mark())

    def _do_dict(self) -> None:
        items = self._since_mark()
        self.stack.append({})
        self._set(items)

    def _do_append(self) -> None:
        self._extend(self._take(1))

    def _do_appends(self) -> None:
        self._extend(self._since_mark())

    def _do_setitem(self) -> None:
        self._set(self._take(2))

    def _do_setitems(self) -> None:
        self._set(self._since_mark())

    def _do_additems(self) -> None:
        items = self._since_mark()
        self._top(set).update(self._key(item) for item in items)

    def _do_frozenset(self) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _do_memoize(self) -> None:
        self.memo[len(self.memo)] = self._top(object)

    def _do_binput(self, argument: int) -> None:
        self.memo[argument] = self._top(object)

    _do_long_binput = _do_put = _do_binput

    def _do_binget(self, argument: int) -> None:
        if argument not in self.memo:
            self._refuse(f"has no memo entry {argument}")
        self.stack.append(self.memo[argument])

    _do_long_binget = _do_get = _do_binget

    def _do_global(self, argument: str) -> None:
        self._name(*argument.split(" ", 1))

    def _do_stack_global(self) -> None:
        self._name(*self._take(2))

    def _do_binpersid(self) -> None:
        (given,) = self._take(1)
        self.stack.append(self.persistent(given))

    def _do_reduce(self) -> None:
        function, arguments = self._take(2)
        if isinstance(function, Inert):
            function = function.name
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            self._refuse(f"calls {type(function).__name__}, which is not a function")
        call = self.calls.get(function)
        self.stack.append(Inert(function) if call is None else call(*arguments))

    def _do_newobj(self) -> None:
        self._instance(self._take(2)[0])

    def _do_newobj_ex(self) -> None:
        self._instance(self._take(3)[0])

    def _do_obj(self) -> None:
        self._instance((self._since_mark() or [None])[0])

    def _do_inst(self, argument: str) -> None:
        self._since_mark()
        self._name(*argument.split(" ", 1))
        self._instance(*self._take(1))

    def _do_build(self) -> None:
        """Set the state of a placeholder; ignore that of containers, which has only version numbers."""
        (state,) = self._take(1)
        target = self._top(object)
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict):
            self._refuse(f"sets attributes of {type(target).__name__}")

    def _instance(self, kind: Any) -> None:
        """Push a placeholder for an object of a class."""
        if not isinstance(kind, Global | Inert):
            self._refuse(f"makes an object of {type(kind).__name__}, which is not a class")
        self.stack.append(Inert(kind if isinstance(kind, Global) else kind.name))

    def _name(self, module: Any, name: Any) -> None:
        """Push a global name."""
        for part in (module, name):
            if not isinstance(part, str) or len(part) > _LONGEST_GLOBAL:
                self._refuse(f"has a {type(part).__name__} in place of the name of a class")
        self.stack.append(Global(module, name))

    def _top(self, kind: type) -> Any:
        """Return the top of the stack, and check its type."""
        if not self.stack or not isinstance(self.stack[-1], kind) or self.stack[-1] is _MARK:
            self._refuse(f"adds items to an object that is not a {kind.__name__}")
        return self.stack[-1]

    def _extend(self, items: list[Any]) -> None:
        """Append items to the list below them; ignore the items of a placeholder."""
        if not isinstance(self._top(object), Inert):
            self._top(list).extend(items)

    def _key(self, key: Any) -> Any:
        """Check that a key can be hashed and printed in bounded time."""
        parts: list[Any] = []
        pending = [(key, 0)]
        while pending and len(parts) <= _LONGEST_TUPLE:
            part, depth = pending.pop()
            if not part and type(part) is tuple:
                parts.append(None)
            elif type(part) is tuple and len(part) <= _LONGEST_TUPLE and depth < _DEEPEST_TUPLE:
                pending += [(inner, depth + 1) for inner in part]
            else:
                parts.append(part)
        if len(parts) > _LONGEST_TUPLE or not all(map(_is_key, parts)):
            self._refuse(
                f"has a {type(key).__name__} as a key, expected text, a number or a short tuple of them"
            )
        long = any(isinstance(part, str | bytes) and len(part) > _LONGEST_TEXT for part in parts)
        if long and type(key) is not str:
            self._refuse(f"has a tuple of texts as a key with more than {_LONGEST_TEXT} characters")
        return key

    def _set(self, items: list[Any]) -> None:
        """Add alternating keys and values to the dict below them."""
        if len(items) % 2:
            self._refuse("has a key without a value")
        top = self._top(object)
        target = top.items if isinstance(top, Inert) else self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self._key(key)] = value


def _is_key(value: Any) -> bool:
    return isinstance(value, _KEYS) and not (isinstance(value, int) and value.bit_length() > 64)
