"""Check that the table of the cost of a step has a row for each length."""

from __future__ import annotations

from tests.benchmarks import any_length


def test_each_length_has_a_row(monkeypatch, capsys) -> None:
    monkeypatch.setattr(any_length, "LENGTHS", (10, 1_000))
    monkeypatch.setattr(any_length, "STEPS", 1_000)
    assert any_length.main() == 0
    head, short, long = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["T", "H=32,", "B=1"]
    assert [row.split()[0] for row in (short, long)] == ["10", "1,000"]
    assert all(len(row.split()) == 1 + 2 * len(any_length.LAYERS) for row in (short, long))
