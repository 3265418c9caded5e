"""Check that the suite calls a program in another process, and neither trusts nor misreads its answers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from spec import command, report
from spec.calls import CASES, given
from spec.offers import TINY, Offered
from spec.records import RECORDS, arrays, errors
from spec.stdio import HANGS, Stdio, read
from spec.subject import Refused, Unsupported

FOLDER = Path(__file__).parent
EXAMPLES = {
    "python": f"{sys.executable} {FOLDER / 'examples' / 'one_layer.py'}",
    "node": f"node {FOLDER / 'examples' / 'one_layer.mjs'}",
}
# A run inside a test loads no plugin that it does not need.
WITHOUT = ("cacheprovider", "xdist", "hypothesispytest")
PYTEST = (sys.executable, "-m", "pytest", "-q", *(f"-pno:{plugin}" for plugin in WITHOUT))
GUIDE = FOLDER.parent / "docs" / "guides" / "specification.md"


@pytest.fixture(params=EXAMPLES)
def program(request: pytest.FixtureRequest) -> Iterator[Stdio]:
    if shutil.which(EXAMPLES[request.param].split()[0]) is None:
        pytest.skip(f"{request.param} is not installed")
    found = Stdio(EXAMPLES[request.param])
    yield found
    found.close()


@pytest.mark.parametrize("name", ["sequence", "extreme-nan", "extreme-infinity"])
def test_program_answers_a_record(program: Stdio, name: str) -> None:
    record = RECORDS[name]
    got = program.call("layer", record["config"], arrays(record["inputs"], "float64"))
    found = errors(got, record["outputs"], "float64")
    assert found.keys() == {"y", "h_n", "c_n"}
    assert max(found.values()) <= record["tolerance"]["outputs"]


def test_program_declares_what_it_lacks(program: Stdio) -> None:
    record = RECORDS["projection"]
    with pytest.raises(Unsupported, match=r"one forward layer|proj_size"):
        program.call("layer", record["config"], arrays(record["inputs"], "float64"))


def answering(answer: str) -> Stdio:
    """Return a program that always gives the same answer."""
    return Stdio(f"{sys.executable} -c \"input(); print('{answer}')\"", patience=20)


def ask(subject: Stdio) -> None:
    try:
        subject.call("layer", {}, arrays(RECORDS["cell"]["inputs"], "float32"))
    finally:
        subject.close()


def test_refusal_travels() -> None:
    with pytest.raises(Refused, match="weight_ih") as refusal:
        ask(answering(r"{\"refused\": \"shape\", \"message\": \"weight_ih\"}"))
    assert refusal.value.kind == "shape"


@pytest.mark.parametrize(
    "answer", ["hello", "[1]", "{}", r"{\"arrays\": {\"y\": {\"shape\": [2], \"data\": [1]}}}"]
)
def test_what_is_no_answer_is_shown(answer: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(answer.replace("\\", "")[:7])):
        ask(answering(answer))


def test_program_that_ends_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ended without an answer, exit status 0"):
        ask(Stdio(f"{sys.executable} -c 'input()'"))


def test_program_that_does_not_flush_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no answer within 1 s; does it flush"):
        ask(Stdio(f"{sys.executable} -c 'import sys; sys.stdin.read()'", patience=1))


ANSWER = (
    "import json, sys\n"
    "{first}\n"
    "for n, line in enumerate(sys.stdin):\n"
    "    q = json.loads(line)\n"
    "    print(json.dumps({{'arrays': {{'y': q['arrays']['x']}}, 'id': {id}}}), flush=True)\n"
)


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Callable[..., Stdio]]:
    """Yield a program that answers with x, after printing something first or with wrong numbers."""
    made: list[Stdio] = []

    def start(first: str = "", number: str = "q['id']") -> Stdio:
        path = tmp_path / "echo.py"
        path.write_text(ANSWER.format(first=first, id=number), encoding="utf-8")
        made.append(Stdio(f"{sys.executable} {path}", patience=20))
        return made[-1]

    yield start
    for program in made:
        program.close()


def test_a_stray_line_fails_one_question_alone(echo: Callable[..., Stdio]) -> None:
    program = echo("print('welcome', flush=True)")
    with pytest.raises(RuntimeError, match="an invalid answer, 'welcome"):
        program.call("layer", {}, {"x": np.ones(2)})
    for value in (3.0, 4.0):
        np.testing.assert_array_equal(program.call("layer", {}, {"x": np.full(2, value)})["y"], value)


def test_a_null_among_the_numbers_is_named() -> None:
    with pytest.raises(ValueError, match="data contain null; NaN and infinities are the strings"):
        read({"shape": [2], "data": [1.0, None]}, "float64")


def test_an_answer_to_another_question_is_an_error(echo: Callable[..., Stdio]) -> None:
    with pytest.raises(RuntimeError, match="its id is 7, expected 1"):
        echo(number="7").call("layer", {}, {"x": np.ones(2)})


def test_a_program_that_hangs_is_given_up() -> None:
    program = Stdio(f"{sys.executable} -c 'import time; time.sleep(60)'", patience=0.05)
    for _ in range(HANGS):
        with pytest.raises(RuntimeError, match=r"no answer within 0\.05 s"):
            program.call("layer", {}, {"x": np.ones(2)})
    with pytest.raises(RuntimeError, match="no further request: 3 requests"):
        program.call("layer", {}, {"x": np.ones(2)})
    program.close()


COUNTED = """\
import json, sys
for line in sys.stdin:
    q = json.loads(line)
    print(q["op"], q["dtype"], len(q["arrays"]["x"]["data"]), file=open({log!r}, "a"))
    offers = q["op"] == "layer" and not q["config"].get("proj_size")
    answer = {{"arrays": {{"y": q["arrays"]["x"]}}}} if offers else {{"unsupported": "only layers"}}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[tuple[Offered, Callable[[], list[str]]]]:
    """Yield a program without gradients, modules and projections, and the requests that it has read."""
    path, log = tmp_path / "counted.py", tmp_path / "log"
    path.write_text(COUNTED.format(log=str(log)), encoding="utf-8")
    program = Stdio(f"{sys.executable} {path}", patience=20)
    yield Offered(program), lambda: log.read_text(encoding="utf-8").splitlines()
    program.close()


def test_a_program_without_gradients_gets_no_large_request_for_them(
    counted: tuple[Offered, Callable[[], list[str]]],
) -> None:
    program, asked = counted
    a = given("wide-i130-h130", "float32")
    for op in ("layer_vjp", "module", "module_vjp"):
        for _ in range(2):
            with pytest.raises(Unsupported, match="only layers"):
                program.call(op, CASES["wide-i130-h130"].config, a)
    assert len(asked()) == sum(len(TINY[op, "lstm"]) for op in ("layer", "module", "module"))
    assert max(int(line.split()[2]) for line in asked()) < 100
    program.call("layer", CASES["wide-i130-h130"].config, a)
    assert asked()[-1] == f"layer float32 {a['x'].size}"


def test_a_program_is_asked_once_for_what_it_declines(
    counted: tuple[Offered, Callable[[], list[str]]],
) -> None:
    program, asked = counted
    a = given("large-projection", "float64")
    for factor in (1, -1):
        with pytest.raises(Unsupported, match="only layers"):
            program.call("layer", CASES["large-projection"].config, {n: factor * v for n, v in a.items()})
    assert [line for line in asked() if int(line.split()[2]) > 100] == [f"layer float64 {a['x'].size}"]


def test_a_failure_of_a_tiny_call_is_no_answer(echo: Callable[..., Stdio]) -> None:
    program = Offered(echo("print('welcome', flush=True)"))
    assert program.call("layer", {}, {"x": np.ones(2)})["y"].tolist() == [1, 1]


def test_a_program_that_offers_nothing_fails(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text('import sys\nfor _ in sys.stdin: print(\'{"unsupported": "all"}\', flush=True)\n')
    found = suite("--stdio", f"{sys.executable} {path}", "-k", "test_outputs and cell")
    assert found.returncode == 1, found.stdout
    assert "nothing was tested" in found.stdout


def test_a_selection_without_cases_is_called_so() -> None:
    found = suite("--stdio", "cat", "-k", "no_such_case")
    assert found.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "nothing was tested: no case has a name that matches" in found.stdout


def test_program_that_is_not_there_is_skipped_with_the_reason() -> None:
    assert Stdio("no-such-program --fast").why_unavailable() == "the program 'no-such-program' does not exist"


def suite(*arguments: str, path: str = str(FOLDER.parent)) -> subprocess.CompletedProcess[str]:
    """Run the tests of records in a separate process."""
    files = [str(FOLDER / "test_vectors.py"), str(FOLDER / "test_behaviour.py")]
    env = {**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": "", "XPLSTM_REQUIRE": ""}
    return subprocess.run(
        [*PYTEST, *files, *arguments], capture_output=True, text=True, env=env, cwd=FOLDER.parent
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--stdio", ""), "--stdio needs the command of a program"),
        (("--stdio", "cat 'mine"), "cannot be split into words: No closing quotation"),
        (("--stdio", "no-such-program --fast"), "the program 'no-such-program' does not exist"),
        (
            ("--stdio", "cat", "--deviations", "nowhere.txt"),
            "the list of deviations 'nowhere.txt' does not exist",
        ),
        (("--stdio", "cat", "--deviations", str(FOLDER / "README.md")), "is not of the form"),
        (("--subject", "nowhere:Subject"), "there is no module 'nowhere'"),
        (("--subject", "nowhere.at_all:Subject"), "there is no module 'nowhere.at_all'"),
        (("--subject", ":Subject"), "there is no module ''"),
        (("--subject", "json:Subject"), "the module 'json' has no 'Subject'"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[str, ...], words: str) -> None:
    found = suite(*arguments)
    assert found.returncode == pytest.ExitCode.USAGE_ERROR, found.stdout
    assert words in found.stderr
    assert "Traceback" not in found.stderr


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["frobnicate"])
    assert "there is no command 'frobnicate'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("no-such-program", "the program 'no-such-program' does not exist"),
        ("", "--stdio needs the command of a program"),
        ("cat 'mine", "cannot be split into words"),
    ],
)
def test_a_report_needs_a_program_that_exists(
    program: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        report.main(["--stdio", program, "--out", str(tmp_path / "new")])
    assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


STATES_BIAS = """\
import json, sys
for line in sys.stdin:
    y = {"shape": [], "data": [json.loads(line)["config"]["bias"]]}
    print(json.dumps({"arrays": {"y": y}}), flush=True)
"""


def test_biases_are_stated_in_every_request(tmp_path: Path) -> None:
    """Otherwise a program takes the option as off, although there are biases."""
    (tmp_path / "mine.py").write_text(STATES_BIAS, encoding="utf-8")
    program = Stdio(f"{sys.executable} {tmp_path / 'mine.py'}")
    for more, bias in (({"bias_ih": np.ones(2)}, 1), ({}, 0)):
        assert program.call("layer", {}, {"x": np.ones(2), **more})["y"] == bias
    program.close()


def test_a_stray_line_is_not_taken_for_a_result_of_earlier_calls(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    # The line follows the tiny calls and the first answer, which is then right.
    late = "for n, line in enumerate(sys.stdin):\n    if n == 1:\n        print('welcome', flush=True)\n"
    source = program_of_the_guide().replace("for line in sys.stdin:\n", late)
    path.write_text(source, encoding="utf-8")
    found = suite("--stdio", f"{sys.executable} {path}", "-k", "test_outputs and cell-float64")
    assert found.returncode == 1, found.stdout
    assert "an invalid answer, 'welcome" in found.stdout
    assert "depends on earlier calls" not in found.stdout


def program_of_the_guide() -> str:
    blocks = re.findall(r"```\{code-block\} python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


def test_program_of_the_guide_passes(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(program_of_the_guide(), encoding="utf-8")
    found = suite("--stdio", f"{sys.executable} {path}")
    assert found.returncode == 0, found.stdout
    assert re.search(r"\d\d passed", found.stdout)


# Each has a change to the right program, and a test that this change must fail.
FAULTS = {
    "c before its gates": ("c = s(f) * c + s(i) * np.tanh(g)", "c = s(i) * c + s(f) * np.tanh(g)", "cell"),
    "initial h ignored": ('h, c, y = a["h_0"],', 'h, c, y = 0 * a["h_0"],', "sequence"),
    "a bias dropped": ("+ a[\"bias_hh\"]", "", "cell"),
    "final state before the last step": (
        '{"y": y, "h_n": h, ', '{"y": y, "h_n": y[-2] if len(y) > 1 else h, ', "sequence"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_program_fails_and_the_snippet_shows_it_alone(fault: str, tmp_path: Path) -> None:
    right, wrong, record = FAULTS[fault]
    source = program_of_the_guide()
    assert source.count(right) == 1
    path = tmp_path / "mine.py"
    path.write_text(source.replace(right, wrong), encoding="utf-8")
    found = suite("--stdio", f"{sys.executable} {path}", "-k", f"test_outputs and {record}-float64")
    assert found.returncode == 1, found.stdout
    assert f"FAILED spec/test_vectors.py::test_outputs[stdio-{record}-float64]" in found.stdout
    snippet = re.search(
        r"-+ program that reproduces it -+\n(.*?)\n-+ entry for a deviation list", found.stdout, re.DOTALL
    )
    assert snippet is not None
    alone = subprocess.run(
        [sys.executable, "-c", snippet[1]], capture_output=True, text=True, cwd=FOLDER.parent
    )
    assert alone.returncode == 1
    assert "AssertionError" in alone.stderr
    missed = re.search(r"(\w+) (misses by ([\d.e+]+) u|has NaN)", found.stdout)
    assert missed is not None
    shown = re.search(rf"'{missed[1]}': \(([^,]+),", alone.stdout)
    assert shown is not None
    assert f"{float(shown[1]):.3g}" == (missed[3] or "inf")


def test_own_list_of_deviations(tmp_path: Path) -> None:
    right, wrong, _ = FAULTS["a bias dropped"]
    path, own = tmp_path / "mine.py", tmp_path / "mine.txt"
    path.write_text(program_of_the_guide().replace(right, wrong), encoding="utf-8")
    options = ["--stdio", f"{sys.executable} {path}", "-k", "test_outputs and cell", "--deviations", str(own)]
    own.write_text("test_outputs * cell: it has one bias (XPL-CELL-002)\n", encoding="utf-8")
    assert suite(*options).returncode == 0
    path.write_text(program_of_the_guide(), encoding="utf-8")
    found = suite(*options)
    assert found.returncode == 1
    assert "XPASS(strict)" in found.stdout
