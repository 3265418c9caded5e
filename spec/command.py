"""Run the suite as an installed program: ``lstm-spec --stdio COMMAND``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from spec import clauses, kills, report

FOLDER = Path(__file__).parent
MORE = """\
options of the suite:
  --patience SECONDS    time limit of an answer
  --deviations FILE     list of known deviations
  --isolated            run each subject in a separate process

other commands, with --help of their own:
  lstm-spec report      write the result of each clause as a page
  lstm-spec kills       count the wrong LSTMs that each clause detects
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Test one implementation and return pytest's exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["report"]:
        report.QUIET += configured()
        return report.main(given[1:], "lstm-spec report")
    if given[:1] == ["kills"]:
        return kills.main(given[1:])
    parser = argparse.ArgumentParser(
        prog="lstm-spec",
        description="Test an LSTM. Further options are pytest's, such as -k, -x, -rs and -n.",
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--stdio", metavar="COMMAND", help="a program that answers JSON lines")
    subject.add_argument("--subject", action="append", metavar="MODULE:CLASS", help="an adapter in Python")
    subject.add_argument(
        "--where", action="store_true", help="print the folder of clauses, vectors and examples"
    )
    version = clauses.version(clauses.SPEC.read_text(encoding="utf-8"))
    parser.add_argument("--version", action="version", version=f"lstm-spec {version}")
    if given and not given[0].startswith("-"):
        parser.error(f"there is no command {given[0]!r}; to test an LSTM, begin with --stdio or --subject")
    options, rest = parser.parse_known_args(given)
    if options.where:
        print(FOLDER)
        return 0
    # Adapters are imported from the current folder, as with `python -m`.
    sys.path.insert(0, "")
    chosen = (
        [f"--stdio={options.stdio}"]
        if options.stdio is not None
        else [f"--subject={s}" for s in options.subject]
    )
    files = [str(FOLDER / f"test_{name}.py") for name in report.FILES]
    return int(pytest.main([*files, *configured(), "-q", *chosen, *rest]))


def configured() -> list[str]:
    """Return the options that pyproject.toml sets in a clone."""
    return ["-c", str(FOLDER / "installed.ini"), f"--rootdir={FOLDER}"]


if __name__ == "__main__":
    sys.exit(main())
