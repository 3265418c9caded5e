"""Check the demo from end to end on a small text, with Ctrl-C, and its n-gram baseline."""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from xplstm import training
from xplstm.__main__ import main
from xplstm.cli import demo, ngram
from xplstm.plots import plot_history

TEXT = "".join(f"number {n} is {'odd' if n % 2 else 'even'}, and so on.\n" for n in range(120))
SMALL = ["--hidden-size", "8", "--batch-size", "4", "--steps", "16"]


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "some text.txt"
    file.write_text(TEXT, encoding="utf-8")
    return str(file)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "a run"


def run_demo(*arguments, out):
    return main(["demo", *map(str, arguments), "--out", str(out)])


def test_the_whole_job(text, out, capsys):
    assert run_demo("--text", text, "--updates", 40, *SMALL, "--lr", 0.03, out=out) == 0
    shown = capsys.readouterr()
    assert "40/40" in shown.err
    assert "bits per character" in shown.err
    assert f"{len(TEXT):,} characters" in shown.out
    assert "1 layer(s) of 8 units" in shown.out
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "sample.txt").read_text(encoding="utf-8").startswith("number 0 is even, ")
    last = training.load_checkpoint(out / "checkpoint.safetensors")
    assert last.update == 40
    first, *_, final = (value for _, value in last.history.validations)
    share = [n / len(TEXT) for n in Counter(TEXT).values()]
    assert first == pytest.approx(-sum(p * math.log2(p) for p in share), abs=0.1)
    assert final < first - 1
    corpus = demo._corpus(text)
    baseline = ngram.bits_per_character(corpus.text, corpus.split)
    assert f"from {first:.3f} to {final:.3f}" in shown.out
    assert f"5-gram model's {baseline:.3f}" in shown.out


def test_held_out_bits_count_every_character_once(text):
    corpus = demo._corpus(text)
    assert corpus.text[: corpus.split] + corpus.text[corpus.split :] == TEXT
    assert 0 <= len(TEXT) // 10 - (len(TEXT) - corpus.split) < demo.HELD_OUT_STREAMS
    model = demo._model(corpus, demo.Settings(None, 8, 1, 0.0, 4, 16, 0.01, 0, 1, 0.0, 1, None), None)
    characters = len(set(TEXT))
    sure = {name: np.zeros_like(a) for name, a in model.params.items()}
    model.params = sure
    assert demo._held_out_bits(model, corpus) == pytest.approx(math.log2(characters), rel=1e-6)
    share = Counter(corpus.text[corpus.split :])
    bias = np.asarray([math.log(share[c] + 1) for c in model.vocab], dtype=np.float32)
    model.params = sure | {"linear.bias": bias}
    p = {c: (share[c] + 1) / (share.total() + characters) for c in model.vocab}
    expected = sum(-math.log2(p[c]) * n for c, n in share.items()) / share.total()
    assert demo._held_out_bits(model, corpus) == pytest.approx(expected, rel=1e-6)


def interrupt_at(monkeypatch, update):
    """Send Ctrl-C in the middle of an update."""
    work, calls = demo.CharLM.loss_vjp, iter(range(1, 10**6))

    def loss_vjp(*args, **kwargs):
        if next(calls) == update:
            raise KeyboardInterrupt
        return work(*args, **kwargs)

    monkeypatch.setattr(demo.CharLM, "loss_vjp", loss_vjp)


@pytest.mark.slow
def test_ctrl_c_saves_and_says_what_to_type(monkeypatch, text, out, capsys):
    arguments = ["--text", text, "--updates", 30, *SMALL, "--dropout", 0.2, "--layers", 2]
    assert run_demo(*arguments, out=out.with_name("whole")) == 0
    whole = training.load_checkpoint(out.with_name("whole") / demo.CHECKPOINT)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 14)
        assert run_demo(*arguments, "--backend", "numpy", out=out) == 130
    told = capsys.readouterr().out.splitlines()[-1]
    assert training.load_checkpoint(out / demo.CHECKPOINT).update == 13
    python, module, package, *command = shlex.split(told)
    assert (python, module, package) == ("python", "-m", "xplstm")
    assert command[-2:] == ["--backend", "numpy"]
    assert main(command) == 0
    resumed = training.load_checkpoint(out / demo.CHECKPOINT)
    assert resumed.history == whole.history
    assert all(np.array_equal(resumed.params[name], a) for name, a in whole.params.items())


@pytest.mark.slow
def test_a_new_run_keeps_the_old_one(monkeypatch, text, out):
    assert run_demo("--text", text, "--updates", 2, *SMALL, out=out) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert run_demo("--text", text, "--updates", 5, *SMALL, out=out) == 130
    assert training.load_checkpoint(out / demo.CHECKPOINT).update == 1
    assert training.load_checkpoint(out / f"previous-{demo.CHECKPOINT}").update == 2


def test_ctrl_c_before_the_training_has_nothing_to_save(monkeypatch, text, out, capsys):
    interrupt_at(monkeypatch, 1)
    assert run_demo("--text", text, "--seconds", 5, *SMALL, out=out) == 130
    assert "before the first checkpoint" in capsys.readouterr().out
    assert not (out / demo.CHECKPOINT).exists()


def wait_for_training(process):
    """Read the bar, whose first words appear after the first validation."""
    shown, end = "", time.monotonic() + 120
    while "updates/s" not in shown:
        character = process.stderr.read(1)
        assert character, "the demo ended by itself"
        assert time.monotonic() < end, f"the bar shows {shown[-300:]!r}, but no updates/s"
        shown += character
    time.sleep(0.5)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to another process")
@pytest.mark.slow
def test_a_real_ctrl_c(text, out):
    arguments = ["--text", text, "--updates", "1000000", *SMALL, "--out", str(out)]
    with subprocess.Popen(
        [sys.executable, "-m", "xplstm", "demo", *arguments],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A program that a shell put into the background ignores the signal, and so does all it starts.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            wait_for_training(process)
            process.send_signal(signal.SIGINT)
            printed, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert f"--resume --out {shlex.quote(str(out))}" in printed
    assert training.load_checkpoint(out / demo.CHECKPOINT).update >= 0


def test_seconds_choose_how_often_to_validate(monkeypatch, text):
    """The clock advances 2 seconds at each call, so an update and a validation take 2 seconds each."""
    clock = iter(range(0, 10**6, 2))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    settings = timed(text, seconds=100)
    assert demo._measure(settings, None).every == (100 - demo.VALIDATIONS * 2) // 2 // demo.VALIDATIONS
    assert demo._measure(settings._replace(seconds=1), None).every == 1


def timed(text, seconds):
    return demo.Settings(text, 8, 1, 0.0, 4, 16, 0.01, 0, None, seconds, 5, None)


@pytest.mark.slow
def test_the_time_ends_a_run_and_a_resumed_one(monkeypatch, text, out, capsys):
    """The clock advances a second at each call: once at the start, and once for each batch."""
    clock = iter(range(10**6))
    monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(demo, "_settings", lambda _args: timed(text, seconds=30))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 14)
        assert run_demo(out=out) == 130
    stopped = training.load_checkpoint(out / demo.CHECKPOINT)
    assert stopped.update == 13
    assert stopped.extra["spent"] == [15]
    assert run_demo("--resume", out=out) == 0
    whole = training.load_checkpoint(out / demo.CHECKPOINT)
    assert whole.extra["spent"] == [30]
    assert whole.update == 27
    assert whole.history.validations[-1][0] == 27
    assert "complete" not in capsys.readouterr().out
    assert run_demo("--resume", out=out) == 0
    assert "The run is complete after 27 updates; --updates N" in capsys.readouterr().out
    assert run_demo("--resume", "--updates", 40, out=out) == 0
    assert "complete" not in capsys.readouterr().out
    assert training.load_checkpoint(out / demo.CHECKPOINT).update == 40


@pytest.mark.parametrize("updates", [None, 1000])
def test_the_learning_rate_falls_to_zero_at_the_end(text, updates):
    progress = demo.Progress(timed(text, seconds=30)._replace(updates=updates), None)

    def rate(share):
        progress.spent[0] = 30 * share
        return progress.rate(int(1000 * share)) / 0.01

    assert rate(0) < 0.1
    assert rate(0.05) == 1
    assert rate(0.525) == pytest.approx(0.5)
    assert rate(1) == 0


@pytest.mark.parametrize(("alone", "threads"), [(1.0, 1), (1.3, 1), (1.6, None), (0.01, 1)])
def test_threads_are_used_where_they_pay(monkeypatch, text, alone, threads):
    pytest.importorskip("threadpoolctl")
    times = iter([1.0, alone, 0.0])
    monkeypatch.setattr(demo, "_seconds", lambda _work, **_least: next(times))
    settings = timed(text, seconds=100)
    measured = demo._measure(settings, None)
    every = math.ceil(int(100 / (alone if threads else 1)) / demo.VALIDATIONS)
    assert measured == settings._replace(every=every, threads=threads)


def test_the_training_runs_on_the_threads_that_were_chosen(monkeypatch, text, out):
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def blas_threads():
        return [pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]

    before, during, work = blas_threads(), [], training.fit
    if not before:
        pytest.skip("threadpoolctl finds no BLAS here")

    def fit(*args, **kwargs):
        during.append(blas_threads())
        return work(*args, **kwargs)

    chosen = timed(text, seconds=1)._replace(updates=2, threads=1)
    monkeypatch.setattr(demo, "_settings", lambda _args: chosen)
    monkeypatch.setattr(training, "fit", fit)
    assert run_demo(out=out) == 0
    assert during == [[1] * len(before)]
    assert blas_threads() == before


@pytest.mark.slow
def test_another_text_is_not_resumed(text, out, capsys):
    assert run_demo("--text", text, "--updates", 2, *SMALL, out=out) == 0
    Path(text).write_text(TEXT + "more", encoding="utf-8")
    assert run_demo("--resume", out=out) == 1
    assert "the text has changed since the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "checkpoint.safetensors"),
        (["--text", "no such file"], "no such file"),
        (["--updates", "3", "--hidden-size", "0"], "hidden_size=0 must be at least 1"),
        (["--updates", "3", "--prompt", "漢"], "not in vocab: '漢'"),
        (["--updates", "3", "--temperature", "-1"], "temperature=-1.0"),
        (["--updates", "0"], "updates=0 must be at least 1"),
    ],
)
def test_bad_input_is_one_line_on_stderr(out, capsys, arguments, message):
    assert run_demo(*arguments, out=out) == 1
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith("python -m xplstm demo: ")
    assert message in shown


def test_a_text_that_is_too_short(tmp_path, out, capsys):
    file = tmp_path / "short.txt"
    file.write_text("ab" * 70, encoding="utf-8")
    assert run_demo("--text", file, "--updates", 2, out=out) == 1
    assert "the text has 140 characters; at least 160 are needed" in capsys.readouterr().err


def test_without_matplotlib_only_the_picture_is_missing(monkeypatch, text, out, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run_demo("--text", text, "--updates", 2, *SMALL, out=out) == 0
    assert "pip install 'xplstm[plot]'" in capsys.readouterr().out
    assert not (out / demo.CURVE).exists()
    assert (out / demo.SAMPLE).exists()


def test_the_default_text_is_pythons_own():
    corpus = demo._corpus(None)
    assert len(corpus.text) > 200_000
    assert '"lambda"' in corpus.text


# The baseline.


def defined_probability(train, context, character, order, uniform):
    """Return the probability of interpolated Kneser-Ney by its definition, counting each time."""
    p = uniform
    for n in range(1, order + 1):
        counts = Counter(train[i : i + order] for i in range(len(train) - order + 1))
        for _ in range(order - n):
            counts = Counter(gram[1:] for gram in counts)
        ones, twos = (sum(c == k for c in counts.values()) for k in (1, 2))
        discount = (ones + 1) / (ones + 2 * twos + 2)
        before = context[len(context) - n + 1 :]
        following = {gram[-1]: c for gram, c in counts.items() if gram[:-1] == before}
        if not following:
            break
        seen = max(following.get(character, 0) - discount, 0)
        p = (seen + discount * len(following) * p) / sum(following.values())
    return p


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_the_baseline_is_what_its_definition_says(order):
    text = TEXT[:260] + "zebra, and so on"
    split = 260
    bits = [
        -math.log2(defined_probability(text[:split], text[:i], text[i], order, 1 / len(set(text))))
        for i in range(split, len(text))
    ]
    assert ngram.bits_per_character(text, split, order) == pytest.approx(np.mean(bits), rel=1e-12)


@pytest.mark.parametrize("context", ["numb", "n is", "zzzz", "o on"])
def test_the_baseline_is_a_distribution(context):
    levels, characters = ngram._levels(TEXT, 5), sorted(set(TEXT) | set("z漢"))
    p = [ngram._probability(levels, context + c, 4, 1 / len(characters)) for c in characters]
    assert math.fsum(p) == pytest.approx(1, rel=1e-12)
    assert min(p) > 0


def test_longer_contexts_help():
    split = len(TEXT) * 9 // 10
    bits = [ngram.bits_per_character(TEXT, split, order) for order in (1, 2, 3, 5)]
    assert bits == sorted(bits, reverse=True)
    assert bits[-1] < 0.7


@pytest.mark.slow
def test_two_starts_keep_a_finished_run(monkeypatch, text, out):
    for updates in (2, 3):
        assert run_demo("--text", text, "--updates", updates, *SMALL, out=out) == 0
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        assert run_demo("--text", text, "--updates", 5, *SMALL, out=out) == 130
    found = {file.name: training.load_checkpoint(file).update for file in out.glob("*.safetensors")}
    expected = {f"previous-{demo.CHECKPOINT}": 2, f"previous-2-{demo.CHECKPOINT}": 3, demo.CHECKPOINT: 1}
    assert found == expected


WRONG = [
    ("--lr", "nan"),
    ("--lr", "-1"),
    ("--seconds", "nan"),
    ("--seconds", "inf"),
    ("--seconds", "0"),
    ("--updates", "0"),
    ("--seed", "-1"),
    ("--temperature", "nan"),
    ("--prompt", "日本"),
    ("--dropout", "1"),
    ("--hidden-size", "0"),
    ("--steps", "-1"),
    ("--batch-size", str(10**9)),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a text, and a completed run of two updates on it."""
    folder = tmp_path_factory.mktemp("finished")
    text, out = folder / "some text.txt", folder / "a run"
    text.write_text(TEXT, encoding="utf-8")
    assert run_demo("--text", text, "--updates", 2, *SMALL, out=out) == 0
    return str(text), out


@pytest.mark.parametrize(("option", "value"), WRONG)
@pytest.mark.parametrize("resume", [False, True])
def test_a_wrong_option_is_refused_before_any_work(option, value, resume, finished, capsys, monkeypatch):
    text, out = finished
    before = {file: file.read_bytes() for file in out.iterdir()}
    capsys.readouterr()
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("the training began"))
    arguments = [*SMALL, *(("--updates", 3) if option != "--seconds" else ())]
    assert run_demo("--text", text, *arguments, option, value, *(["--resume"] * resume), out=out) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("python -m xplstm demo: ")
    assert shown.count("\n") == 1
    assert {file: file.read_bytes() for file in out.iterdir()} == before


@pytest.mark.slow
def test_resume_prolongs_a_finished_run(text, out, capsys):
    assert run_demo("--text", text, "--updates", 3, *SMALL, out=out) == 0
    assert run_demo("--resume", "--updates", 13, out=out) == 0
    assert training.load_checkpoint(out / demo.CHECKPOINT).update == 13
    assert run_demo("--resume", "--updates", 5, out=out) == 1
    assert "updates=5 must be at least 13" in capsys.readouterr().err
    assert run_demo("--resume", "--hidden-size", 99, out=out) == 1
    assert "hidden_size=99" in capsys.readouterr().err


def test_resume_refuses_what_is_no_run_of_the_demo(text, out, capsys):
    model = demo.CharLM("ab", 4, rng=0)
    out.mkdir()
    batches = training.Streams(model.encode("ab" * 40), 2, 4)
    training.fit(
        model, batches, demo.optim.SGD(0.1), updates=1, checkpoint=out / demo.CHECKPOINT, progress=False
    )
    assert run_demo("--resume", out=out) == 1
    assert "not of this demo" in capsys.readouterr().err


def test_text_that_is_not_utf_8_is_refused_by_name(out, tmp_path, capsys):
    file = tmp_path / "latin.txt"
    file.write_bytes((TEXT + "é").encode("latin-1"))
    assert run_demo("--text", file, "--updates", 2, *SMALL, out=out) == 1
    assert "latin.txt is not UTF-8" in capsys.readouterr().err


def test_a_byte_order_mark_is_no_character(tmp_path):
    file = tmp_path / "windows.txt"
    file.write_text(TEXT, encoding="utf-8-sig")
    assert demo._corpus(str(file)).text == TEXT


@pytest.mark.skipif(os.name != "posix", reason="sends SIGTERM to another process")
@pytest.mark.slow
def test_sigterm_saves_the_run(text, out):
    arguments = ["--text", text, "--updates", "1000000", *SMALL, "--out", str(out)]
    command = [sys.executable, "-m", "xplstm", "demo", *arguments]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            wait_for_training(process)
            process.terminate()
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert training.load_checkpoint(out / demo.CHECKPOINT).update >= 0


@pytest.mark.skipif(os.name != "posix", reason="encodings of terminals are POSIX's")
@pytest.mark.slow
def test_a_terminal_without_the_characters_shows_escapes(out, tmp_path):
    file = tmp_path / "greek.txt"
    file.write_text(TEXT.replace("odd", "ωδδ"), encoding="utf-8")
    command = [sys.executable, "-m", "xplstm", "demo", "--text", str(file), "--updates", "2", *SMALL]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command += ["--out", str(out), "--prompt", "ω"]
    done = subprocess.run(
        command, env=env, cwd=Path(__file__).parents[2], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"\\u03c9" in done.stdout


def test_the_last_lines_use_the_model(text, out, capsys):
    """The commands in the output write the same text as the model in the file."""
    assert run_demo("--text", text, "--updates", 3, *SMALL, "--prompt", "number ", out=out) == 0
    shell, python = capsys.readouterr().out.split("more text with this model:\n")[1].split("\n\nIn Python:\n")
    assert main([*shlex.split(shell)[3:], "--length", "40"]) == 0
    model = demo.CharLM.load(out / demo.CHECKPOINT)
    want = "number " + model.generate("number ", 40, temperature=0.6, rng=0)
    assert capsys.readouterr().out == want + "\n"
    exec(compile(python.replace("\n  ", "\n").strip(), "last lines", "exec"), {})
    assert len(capsys.readouterr().out) == 301


def test_the_default_prompt_ends_with_a_whole_word():
    assert demo._opening('The "assert" statement') == 'The "assert" '
    assert demo._opening("x" * 30) == "x" * 20


def test_generate_refuses_a_file_of_another_kind(text, capsys):
    assert main(["generate", text]) == 2
    assert capsys.readouterr().err.startswith("python -m xplstm generate: ")


def test_the_default_text_has_no_tables():
    assert demo._without_tables("one  \n+--+\n| a |\n+--+\n\n\ntwo\n") == "one\n\ntwo\n"
    lines = demo._corpus(None).text.split("\n")
    assert not [line for line in lines if line.lstrip().startswith(("|", "+"))]


def test_the_curve_has_bits_and_the_baseline(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    drawn = []

    def plotted(history):
        drawn.append(plot_history(history))
        return drawn[0]

    monkeypatch.setattr(demo, "plot_history", plotted)
    history = training.History([math.log(8), math.log(4)], [(0, 3.0), (2, 2.0)])
    assert demo._draw(history, 2.5, tmp_path / "loss.png")
    lines = {line.get_label(): list(line.get_ydata()) for line in drawn[0].axes[0].lines}
    assert lines["loss"] == pytest.approx([3, 2])
    assert lines["validation"] == [3, 2]
    assert lines["5-gram model, held out: 2.500"] == [2.5, 2.5]
