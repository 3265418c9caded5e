"""Check plain values, such as numbers, flags, strings and seeds, and return them as built-in types.

An error names the argument, its value and the bound. A wrong type raises `DTypeError`. A value outside the
bound raises `ArgumentError`.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Real
from typing import Any, Generic, TypeVar

import numpy as np

from xplstm._errors import ArgumentError, DTypeError

T = TypeVar("T")
LARGEST = 2**31 - 1
"""The largest size, because kernels count in 32-bit integers."""
LARGEST_SEED = 2**128 - 1


class Option(Generic[T]):
    """Attribute that is checked whenever it is set, also after construction."""

    def __init__(self, check: Callable[[str, Any], T]) -> None:
        self._check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> T:
        # The class itself has no value; without one, tools that list members see no attribute.
        if instance is None or self._name not in vars(instance):
            raise AttributeError(self._name)
        value: T = vars(instance)[self._name]
        return value

    def __set__(self, instance: Any, value: Any) -> None:
        vars(instance)[self._name] = self._check(self._name, value)


def size(name: str, value: Any, low: int = 1, high: int = LARGEST) -> int:
    """Return an integer in [low, high]."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool | np.bool_ | np.ndarray):
        msg = f"{name}={_format_value(value)} must be an integer"
        raise DTypeError(msg)
    if number < low:
        msg = f"{name}={_format_value(number)} must be at least {low}"
        raise ArgumentError(msg)
    if number > high:
        msg = f"{name}={_format_value(number)} must be at most {high}"
        raise ArgumentError(msg)
    return number


def number(name: str, value: Any) -> float:
    """Return a number, which may be infinite or NaN."""
    return _number(name, value, "finite or not")


def finite(name: str, value: Any) -> float:
    """Return a finite number."""
    number = _number(name, value, "finite")
    return _check_bound(name, value, number, "finite", -math.inf < number < math.inf)


def positive(name: str, value: Any) -> float:
    """Return a finite number above 0."""
    number = _number(name, value, "above 0 and finite")
    return _check_bound(name, value, number, "above 0 and finite", 0 < number < math.inf)


def above_zero(name: str, value: Any) -> float:
    """Return a number above 0, which may be infinite."""
    number = _number(name, value, "above 0")
    return _check_bound(name, value, number, "above 0", number > 0)


def in_range(name: str, value: Any, low: float, below: float) -> float:
    """Return a number in [low, below)."""
    bound = f"in [{low}, {below})"
    number = _number(name, value, bound)
    return _check_bound(name, value, number, bound, low <= number < below)


def at_least_zero(name: str, value: Any) -> float:
    """Return a finite number of at least 0."""
    return in_range(name, value, 0, math.inf)


def probability(name: str, value: Any) -> float:
    """Return a number in [0, 1)."""
    return in_range(name, value, 0, 1)


def flag(name: str, value: Any) -> bool:
    """Return `value` as a bool, checked to be True or False."""
    if not isinstance(value, bool | np.bool_):
        msg = f"{name}={_format_value(value)} must be True or False"
        raise DTypeError(msg)
    return bool(value)


def one_of(name: str, value: Any, known: Collection[str]) -> str:
    """Return one of the known strings."""
    if not isinstance(value, str) or value not in known:
        msg = f"{name}={_format_value(value)} must be one of {', '.join(known)}"
        raise ArgumentError(msg) if isinstance(value, str) else DTypeError(msg)
    return value


def mapping(name: str, value: Any) -> Mapping[Any, Any]:
    """Return a mapping."""
    if not isinstance(value, Mapping):
        msg = f"{name}={_format_value(value)} must be a mapping"
        raise DTypeError(msg)
    return value


def items(name: str, value: Any, least: int = 0) -> list[Any]:
    """Return the items of an iterable, at least 0 or 1, except of text and of a mapping."""
    if (
        isinstance(value, str | bytes | Mapping)
        or not isinstance(value, Iterable)
        or getattr(value, "shape", None) == ()
    ):
        msg = f"{name}={_format_value(value)} must be a sequence"
        raise DTypeError(msg)
    try:
        found = list(value)
    except TypeError as error:  # as array-api-strict and traced arrays
        msg = f"{name} is a {type(value).__name__}, expected a sequence: {error}"
        raise DTypeError(msg) from error
    if len(found) < least:
        msg = f"{name} is empty; at least 1 is needed"
        raise ArgumentError(msg)
    return found


def function(name: str, value: Any) -> Callable[..., Any]:
    """Return a callable."""
    if not callable(value):
        msg = f"{name}={_format_value(value)} must be a function"
        raise DTypeError(msg)
    return value


def text(name: str, value: Any) -> str:
    """Return a str."""
    if not isinstance(value, str):
        msg = f"{name}={_format_value(value)} must be a str"
        raise DTypeError(msg)
    return value


def path(name: str, value: Any) -> str:
    """Return a path as a str."""
    where = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(where, str):
        msg = f"{name}={_format_value(value)} must be a str or a path whose text is a str"
        raise DTypeError(msg)
    if not where or "\0" in where:
        msg = f"{name}={_format_value(value)} must have at least 1 character and no NUL character"
        raise ArgumentError(msg)
    return where


def seed(name: str, value: Any) -> int | np.random.Generator | None:
    """Return a seed, a NumPy generator, or None for fresh entropy."""
    if value is None or isinstance(value, np.random.Generator):
        return value
    return size(name, value, 0, LARGEST_SEED)


def generator(name: str, value: Any) -> np.random.Generator:
    """Return a NumPy generator: from a seed, or the given one, or one with fresh entropy for None."""
    return np.random.default_rng(seed(name, value))


def _number(name: str, value: Any, bound: str) -> float:
    """Return a real number as a Python float, which never changes the dtype of an array expression."""
    if isinstance(value, bool) or not isinstance(value, Real):
        msg = f"{name}={_format_value(value)} must be a number, {bound}"
        raise DTypeError(msg)
    number: Any = value
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _check_bound(name: str, value: Any, number: float, bound: str, valid: bool) -> float:
    """Return `number`, or raise an error if `valid` is False."""
    if not valid:
        msg = f"{name}={_format_value(value)} must be {bound}"
        raise ArgumentError(msg)
    return number


def _format_value(value: Any) -> str:
    """Format a value for an error message, in at most about 200 characters."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
