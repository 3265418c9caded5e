"""Test implementations (``python -m spec report``) or clauses (``python -m spec kills``)."""

from __future__ import annotations

import sys

from spec import kills, report

USAGE = "usage: python -m spec report [--subject NAME] [--out FOLDER], or: python -m spec kills [--kept FILE]"


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["kills"]:
        return kills.main(arguments[1:])
    if arguments[:1] != ["report"]:
        print(USAGE, file=sys.stderr)
        return 2
    return report.main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
