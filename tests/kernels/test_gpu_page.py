"""Check that the pages about GPUs agree with the code."""

from __future__ import annotations

import pytest

from docs import gpu_tables
from tests.support.pages import PAGES
from xplstm.kernels._cuda import launch, proof

PAGE = PAGES["docs/kernels_gpu.md"]


@pytest.mark.parametrize(
    "table",
    [gpu_tables.reached_alone, gpu_tables.reached, gpu_tables.costs, gpu_tables.cuts],
    ids=lambda f: f.__name__,
)
def test_a_table_is_what_the_code_says(table):
    assert table() in PAGE, "python -m docs.gpu_tables writes it again"


@pytest.mark.parametrize("name", sorted(p.name for p in launch.SOURCES.glob("*.cu")))
def test_every_source_is_told(name):
    assert f"`{name}`" in PAGE


def test_the_guide_says_why_a_kernel_is_not_chosen():
    name = "cupy_persistent"
    assert f"not {name}: {proof.NOT_PROVEN}; use_kernel({name!r})" in PAGES["docs/guides/cupy.md"]
