"""Write the report as a page of the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

Report: TypeAlias = dict[str, Any]
Result: TypeAlias = dict[str, Any]

# The worst first: what the subjects of one implementation make together.
MARKS = {
    "failed": '<span class="broken" title="FAIL">✗</span>',
    "deviates": '<span class="broken" title="FAIL">✗</span>',
    "passed": '<span class="kept" title="PASS">✓</span>',
    "not offered": '<span class="open" title="N/A">–</span>',
    "not run": '<span class="open" title="NOT RUN">?</span>',
}
MEASURED = tuple(
    f"{group} {dtype}"
    for group in ("outputs", "gradients")
    for dtype in ("float64", "float32", "float16", "bfloat16")
)
TITLES = {
    "torch": "PyTorch",
    "torch_autocast": "PyTorch autocast",
    "jax": "JAX, own scan",
    "flax": "Flax optimised cell",
    "flax_lstm_cell": "Flax LSTMCell",
    "keras": "Keras on PyTorch",
    "mlx": "MLX",
    "tensorflow": "TensorFlow",
    "onnx": "ONNX reference",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "litert": "LiteRT",
    "tinygrad": "tinygrad",
}
CLAUSE = re.compile(r"^\*\*(XPL-[A-Z]+-\d{3})\*\* ", re.MULTILINE)

PAGE = """\
# Conformance

{result}

![A table of implementations and groups of clauses. Each cell gives the clauses that pass, of those that pass
or fail; the next table gives the sums.](conformance.svg)

Each cell of the picture gives how many clauses of a group pass, of those that pass or fail. A dash means that
the implementation offers nothing that the group asks, and a question mark that nothing was run.

- **PASS** ✓: every case of the clause passes that the implementation offers.
- **FAIL** ✗: the implementation does something else. [A sentence for each](#what-they-do-otherwise) says
  what{checked}.
- **N/A** –: the implementation, or its adapter, declares that it does not offer the subject of the clause.
  [The list](#what-they-do-not-offer) names it. That is no fault.
- **NOT RUN** ?: there is no result, for [a reason that is given](#what-was-not-run).

{source} A clause marked MAY binds only
implementations that offer its subject; a draft may still change.

{summary}

Errors are the largest of all cases that pass, in u · s of [XPL-NUM-001](#xpl-num-001). Each record states the
allowed error, which is at least 8. The profile is `ieee` for float64 and float32, `fp16` for float16.

Run with Python {python} on {system}, {packages}. {age}

## Clause by clause

{matrix}

## What they do otherwise

{deviating}

## What they do not offer

{lacking}

## What was not run

{unknown}

{engines}
"""


PLAIN_TARGET = '<a id="{}"></a>\n'
"""A link target outside these documents; the empty line after it keeps the clause a paragraph."""
IN_DOCS = """\
`python -m spec report` writes this page, and {download}`conformance.json`, which holds every number.
[Testing another LSTM](guides/specification.md) says how to test one more."""
OF_PROGRAM = """\
`lstm-spec report` wrote this page on `{command}`, [the clauses](clauses.md), and
[conformance.json](conformance.json) with every number."""


def is_of_program(report: Report) -> bool:
    """Return whether a report is of one program: no page of these documents, with failures unexamined."""
    return [*report["subjects"]] == ["stdio"]


def rendered(report: Report) -> str:
    """Return the Markdown of a report."""
    program = is_of_program(report)
    packages = ", ".join(f"{name} {version}" for name, version in report["packages"].items())
    found = PAGE.format(
        result=result_of(report),
        checked="" if program else "; all were checked by hand",
        source=OF_PROGRAM.format(command=report["subjects"]["stdio"]["kernel"]) if program else IN_DOCS,
        age="" if program else "Results may be\nolder than the newest calls of the specification.",
        summary=summary(report),
        **report["host"],
        packages=packages,
        matrix=matrix(report) if program else f"```{{container}} matrix\n{matrix(report)}\n```",
        deviating=by_implementation(report, ("failed", "deviates")),
        lacking=by_implementation(report, ("not offered",)),
        unknown=by_implementation(report, ("not run",)),
        engines=engines(report),
    )
    # Documentation builds the clauses into its links; a report of one program has them in a second file.
    return found.replace("(#xpl-", "(clauses.md#xpl-") if program else found


def result_of(report: Report) -> str:
    """Return a paragraph with the failures of each implementation among its supported clauses."""
    fails = []
    for name, subjects in implementations(report).items():
        passed, failed, _, _ = counted(report, subjects)
        if passed or failed:
            fails.append(f"{title(name)} fails {failed} of {passed + failed}")
    number = f"version {report['specification']}, has {len(report['clauses'])} clauses."
    lead = "Of the clauses that it offers and that were run, "
    return f"[The specification](clauses.md), {number}\n{lead}{', '.join(fails)}."


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def implementations(report: Report) -> dict[str, list[str]]:
    """Return the subjects of each implementation."""
    found: dict[str, list[str]] = {}
    for subject, about in report["subjects"].items():
        found.setdefault(about["name"], []).append(subject)
    return found


def title(name: str) -> str:
    return TITLES.get(name, name)


def joined(report: Report, subjects: Sequence[str], clause: str) -> Result:
    """Join the results of several subjects for one clause: the worst status, and its reasons."""
    found = [report["results"][s][clause] for s in subjects if s in report["results"]]
    status = next((s for s in MARKS if any(r["status"] == s for r in found)), "not run")
    given = [{*reason.split("; ")} for result in found for reason in result["reasons"].get(status, ())]
    # What holds in every case of the clause is why; else there are several whys.
    reasons = set.intersection(*given) or set.union(*given) if given else set()
    asked = {report["subjects"][s]["not_run"] for s in subjects} - {None}
    return {"status": status, "reasons": reasons or (asked if status == "not run" else set())}


def largest(report: Report, subjects: Sequence[str], measured: str) -> str:
    """Return the largest error of all cases that pass."""
    found = [
        result["errors"][measured]
        for subject in subjects
        for result in report["results"].get(subject, {}).values()
        if measured in result["errors"]
    ]
    return f"{max(found):.1f}" if found else "–"


def counted(report: Report, subjects: Sequence[str]) -> list[int]:
    """Return how many clauses pass, fail, are not supported, and were not run."""
    found = [joined(report, subjects, clause)["status"] for clause in report["clauses"]]
    fails = found.count("failed") + found.count("deviates")
    return [found.count("passed"), fails, found.count("not offered"), found.count("not run")]


COUNTS = ("PASS", "FAIL", "N/A", "NOT RUN")
ERRORS = [name.replace(" ", "<br>") for name in MEASURED]


def summary(report: Report) -> str:
    """Return how many clauses each implementation satisfies, and its largest error."""
    counts, errors = [], []
    for name, subjects in implementations(report).items():
        about = report["subjects"][subjects[0]]
        version = about["version"] or ("not installed" if about["not_run"] else "")
        counts.append([f"{title(name)} {version}".rstrip(), *counted(report, subjects)])
        errors.append([title(name), *(largest(report, subjects, measured) for measured in MEASURED)])
    tables = table(("clauses", *COUNTS), counts), table(("largest errors", *ERRORS), errors)
    return "\n\n".join(tables)


def matrix(report: Report) -> str:
    found = implementations(report)
    rows = []
    for clause, about in report["clauses"].items():
        level = about["level"] + ", draft" * (about["status"] == "draft")
        statuses = [joined(report, subjects, clause)["status"] for subjects in found.values()]
        marks = [MARKS[status] for status in statuses]
        rows.append([f"**[{clause}](#{clause.lower()})** ({level})<br>{opening(about['text'])}", *marks])
    return table(("clause", *map(title, found)), rows)


def with_anchors(prose: str, target: str = "({})=") -> str:
    """Return the specification as a page with a link target for each clause, by default in MyST's syntax."""
    return CLAUSE.sub(lambda match: f"{target.format(match[1].lower())}\n{match[0]}", prose)


def opening(text: str) -> str:
    """Return the first sentence of a clause, as plain text."""
    return re.sub(r"[`*]", "", text).partition(". ")[0].rstrip(".").replace("|", "&#124;") + "."


def by_implementation(report: Report, statuses: Sequence[str]) -> str:
    """Return the reasons with their clauses, for each implementation."""
    parts = []
    for name, subjects in implementations(report).items():
        groups: dict[str, list[str]] = {}
        for clause in report["clauses"]:
            result = joined(report, subjects, clause)
            if result["status"] in statuses:
                groups.setdefault("; ".join(sorted(result["reasons"])), []).append(clause)
        lines = [f"- {', '.join(of)}: {reasons}" for reasons, of in groups.items()]
        none = "Nothing." if report["results"].keys() & {*subjects} else "It was not run."
        parts.append("\n".join([f"### {title(name)}", "", *(lines or [none])]))
    return "\n\n".join(parts)


def engines(report: Report) -> str:
    """Return a section with one line for each array library and kernel of xplstm, if there is any."""
    subjects = implementations(report).get("xplstm", ())
    if not subjects:
        return ""
    counts, errors = [], []
    for subject in subjects:
        about = report["subjects"][subject]
        label = f"{about['library']}, {about['kernel']}"
        counts.append([label, *counted(report, [subject]), about["not_run"] or ""])
        if subject in report["results"] and not about["not_run"]:
            errors.append([label, *(largest(report, [subject], measured) for measured in MEASURED)])
    tables = (
        table(("clauses", *COUNTS, "not run because"), counts),
        table(("largest errors", *ERRORS), errors),
    )
    return "\n\n".join(("## xplstm by array library and kernel", *tables))
