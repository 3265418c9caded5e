"""Check that a step of a long sequence takes as long as a step of a short one."""

from __future__ import annotations

from tests.benchmarks import any_length


def test_a_long_sequence_has_no_other_cost() -> None:
    with_few = any_length.measure(100, 1, 16, 32, rounds=3, steps=20_000)
    with_many = any_length.measure(20_000, 1, 16, 32, rounds=3, steps=20_000)
    assert with_many.process < 2 * with_few.process
