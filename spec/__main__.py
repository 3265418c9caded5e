"""``python -m spec report``: what each implementation keeps of each clause."""

from __future__ import annotations

import sys

from spec import report

USAGE = "usage: python -m spec report [--subject NAME] [--out FOLDER]"


def main(arguments: list[str]) -> int:
    if arguments[:1] != ["report"]:
        print(USAGE, file=sys.stderr)
        return 2
    return report.main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
