"""Types that travel through the whole library.

The array API standard defines behaviour, not a class, so an array is whatever
its own library calls one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

Array: TypeAlias = Any
Namespace: TypeAlias = Any
Device: TypeAlias = Any
DType: TypeAlias = Any
Params: TypeAlias = Mapping[str, Array]
