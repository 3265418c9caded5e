"""``python -m xplstm demo``: train a character model on real text, with a 5-gram baseline."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import itertools
import math
import os
import platform
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from xplstm import ArgumentError, FormatError, XplstmError, _array, _values, optim, training
from xplstm.cli import ngram
from xplstm.models import CharLM
from xplstm.plots import plot_history
from xplstm.training import Checkpoint, History, Streams
from xplstm.training._resumed import keep_earlier

CHECKPOINT, CURVE, SAMPLE = "checkpoint.safetensors", "loss.png", "sample.txt"
EMBEDDING_DIM = 64
VALIDATIONS = 10
MAX_NORM = 1.0
# A run with few updates needs shorter averages than the defaults of Adam.
BETAS = (0.8, 0.99)
# Number of learning-rate steps in a run, and number of rising steps.
PARTS, RISE = 10_000, 500
# BLAS threads synchronise at every step. If other work shares the processor, several threads can be many
# times slower than one. Several are used only if a trial finds them faster by this factor.
GAIN_OF_THREADS = 1.4
# Number of streams of the held-out text; few streams give most characters a long context.
HELD_OUT_STREAMS, HELD_OUT_STEPS = 16, 256
BITS = 1 / math.log(2)


class Settings(NamedTuple):
    """Settings of a run, which its checkpoint stores."""

    text: str | None
    hidden_size: int
    layers: int
    dropout: float
    batch_size: int
    steps: int
    lr: float
    seed: int
    updates: int | None
    """Number of updates; None for a run of `seconds`."""
    seconds: float
    every: int
    """Updates between two validations."""
    threads: int | None


class Progress:
    """Progress of a run in updates or time, which determines the learning rate and the end of the data.

    Parameters
    ----------
    settings : Settings
        Settings of the run.
    begun : Checkpoint or None
        The run to continue.
    """

    def __init__(self, settings: Settings, begun: Checkpoint | None) -> None:
        self._settings, self._begun = settings, begun
        self._rates = optim.warmup_cosine(settings.lr, RISE, PARTS)
        self.spent: list[float] = [0.0] if begun is None else [begun.extra["spent"][0]]
        """Seconds so far; a list, so that each checkpoint stores the current value."""

    def batches(self, streams: Streams) -> Callable[[int], Iterator[tuple[Any, Any]]]:
        """Return the data of the run: the text in every epoch, until the time limit."""

        def of_epoch(epoch: int) -> Iterator[tuple[Any, Any]]:
            done = self._begun.position if self._begun is not None and self._begun.epoch == epoch else 0
            start = time.monotonic() - self.spent[0]
            for number, batch in enumerate(itertools.cycle(streams)):
                if number >= done:
                    self.spent[0] = time.monotonic() - start
                    if self._settings.updates is None and number and self.spent[0] >= self._settings.seconds:
                        return
                yield batch

        return of_epoch

    def rate(self, step: int) -> float:
        """Return the learning rate, which rises linearly and then falls to 0 along a half cosine."""
        elapsed, whole = self.spent[0], self._settings.seconds
        if self._settings.updates is not None:
            elapsed, whole = step, self._settings.updates
        return self._rates(int(elapsed / whole * PARTS))


class Corpus(NamedTuple):
    """Text whose end is held out."""

    text: str
    split: int

    @property
    def vocab(self) -> str:
        """Characters of the text, each once."""
        return "".join(sorted(set(self.text)))

    @property
    def digest(self) -> str:
        """Hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class Given(argparse.Action):
    """Store an option, and record that the user passed it."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        """Store the value of the option."""
        del parser, option
        setattr(namespace, self.dest, values)
        namespace.given = {*getattr(namespace, "given", ()), self.dest}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    default = "default: %(default)s"
    backends = [*_array.BACKENDS, "auto"]
    add = partial(parser.add_argument, action=Given)
    add("--text", metavar="FILE", help="UTF-8 training text; default: the help topics of Python")
    add("--backend", choices=backends, help="array library; default: XPLSTM_BACKEND, else numpy")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--seconds",
        action=Given,
        type=float,
        default=90,
        help=f"approximate training time in seconds; {default}",
    )
    length.add_argument(
        "--updates", action=Given, type=int, help="exact number of updates, including those before --resume"
    )
    add("--hidden-size", type=int, default=192, help=f"units of each layer; {default}")
    add("--layers", type=int, default=1, help=default)
    add("--dropout", type=float, default=0.05, help=f"dropout probability in training; {default}")
    add("--batch-size", type=int, default=8, help=f"parallel streams of text; {default}")
    add("--steps", type=int, default=64, help=f"characters of truncated backpropagation; {default}")
    add("--lr", type=float, default=8e-3, help=f"largest learning rate; {default}")
    add("--seed", type=int, default=0, help=default)
    add("--out", metavar="FOLDER", type=Path, default=Path("runs/demo"), help=default)
    resume_help = "continue the run in --out with its settings; --updates extends the run"
    parser.add_argument("--resume", action="store_true", help=resume_help)
    add("--temperature", type=float, default=0.6, help=f"0 selects the most probable character; {default}")
    add("--prompt", help="text that the sample continues; default: the start of the text")


def run(args: argparse.Namespace) -> int:
    """Train, compare, draw and write; return 130 after Ctrl-C and 1 after an error."""
    checkpoint = args.out / CHECKPOINT
    try:
        _check(args)
        _demo(args, training.load_checkpoint(checkpoint) if args.resume else None)
    except KeyboardInterrupt:
        how = f"; the run is saved. To continue:\n  {_resume_command(args)}"
        print("\nInterrupted" + (how if checkpoint.exists() else " before the first checkpoint."))
        return 130
    except BrokenPipeError:
        raise
    except (XplstmError, OSError, ImportError, FloatingPointError) as error:
        print(f"python -m xplstm demo: {error}", file=sys.stderr)
        return 1
    return 0


def _check(args: argparse.Namespace) -> None:
    """Check the options before any work."""
    _values.positive("seconds", args.seconds)
    for name in ("hidden_size", "layers", "batch_size", "steps"):
        _values.size(name, getattr(args, name))
    if args.updates is not None:
        _values.size("updates", args.updates)
    _values.seed("seed", args.seed)
    _values.probability("dropout", args.dropout)
    _values.positive("lr", args.lr)
    _values.at_least_zero("temperature", args.temperature)
    if importlib.util.find_spec("tqdm") is None:
        msg = "the demo needs the package tqdm for its progress bar: pip install 'xplstm[demo]'"
        raise ImportError(msg)


def _make_room(checkpoint: Path) -> None:
    """Keep the checkpoint of an earlier run under an unused name."""
    kept = keep_earlier(checkpoint)
    if kept is not None:
        print(f"The run that was in {checkpoint.parent} is kept as {os.path.basename(kept)}.")


def _resume_command(args: argparse.Namespace) -> str:
    """Return the command that continues the run."""
    command = ["python", "-m", "xplstm", "demo", "--resume", "--out", str(args.out)]
    return shlex.join([*command, "--backend", args.backend] if args.backend else command)


def _demo(args: argparse.Namespace, begun: Checkpoint | None) -> None:
    """Run the demo, or the rest of a run."""
    args.out.mkdir(parents=True, exist_ok=True)
    settings = _settings(args) if begun is None else _resume_settings(args, begun)
    corpus = _corpus(settings.text)
    if begun is not None:
        _check_same_text(corpus, begun)
    model = _model(corpus, settings, args.backend)
    prompt = _opening(corpus.text) if args.prompt is None else args.prompt

    def write(length: int) -> str:
        return prompt + model.generate(prompt, length, temperature=args.temperature, rng=settings.seed)

    write(1)  # checks the characters of the prompt before training
    _training_batches(model, corpus, settings)
    baseline = ngram.bits_per_character(corpus.text, corpus.split)
    _introduce(model, corpus, settings, baseline)
    if begun is None:
        print(f"Untrained, it writes {write(40)!r}.")
        _make_room(args.out / CHECKPOINT)
    elif _is_complete(begun, settings):
        print(f"The run is complete after {begun.update:,} updates; --updates N trains up to N updates.")
    with _blas(settings.threads):
        history = _fit(model, corpus, settings, args, begun)
    _conclude(history, baseline)
    sample = write(600)
    print(f"\n{sample}\n")
    (args.out / SAMPLE).write_text(sample + "\n", encoding="utf-8")
    drawn = _draw(history, baseline, args.out / CURVE)
    print(f"Wrote {f'{CURVE}, ' if drawn else ''}{SAMPLE} and {CHECKPOINT} to {args.out}.")
    _show_how_to_use(args.out / CHECKPOINT, prompt, args.temperature)


def _is_complete(begun: Checkpoint, settings: Settings) -> bool:
    """Return whether a run has all its updates, or is the one epoch of a run with a time limit."""
    return begun.epoch > 0 if settings.updates is None else begun.update >= settings.updates


def _opening(text: str) -> str:
    """Return the whole words in the first 20 characters, or these characters if a word is longer."""
    start = text[:20]
    return start[: start.rfind(" ") + 1] or start


def _settings(args: argparse.Namespace) -> Settings:
    """Return the settings of a new run; with a time limit, the number of updates is measured."""
    settings = Settings(
        text=None if args.text is None else os.path.abspath(args.text),
        hidden_size=args.hidden_size,
        layers=args.layers,
        dropout=args.dropout,
        batch_size=args.batch_size,
        steps=args.steps,
        lr=args.lr,
        seed=args.seed,
        updates=args.updates,
        seconds=args.seconds,
        every=math.ceil((args.updates or 1) / VALIDATIONS),
        # With one thread, repeated runs have the same bits and no thread waits for another.
        threads=None if importlib.util.find_spec("threadpoolctl") is None else 1,
    )
    return settings if args.updates else _measure(settings, args.backend)


def _resume_settings(args: argparse.Namespace, begun: Checkpoint) -> Settings:
    """Return the settings of the run to continue, with more updates if requested."""
    try:
        settings = Settings(**begun.extra["settings"])
    except (KeyError, TypeError) as error:
        msg = f"{args.out / CHECKPOINT} is a checkpoint, but not of this demo"
        raise FormatError(msg) from error
    for name in sorted(getattr(args, "given", set()) & {*Settings._fields, "seconds"} - {"updates"}):
        given = getattr(args, name)
        given = os.path.abspath(given) if name == "text" else given
        if name == "seconds" or given != getattr(settings, name):
            before = "--updates prolongs a run" if name == "seconds" else f"{getattr(settings, name)!r} there"
            msg = f"{name}={given!r} cannot be changed when a run is resumed ({before}); omit --resume"
            raise ArgumentError(msg)
    if args.updates is None:
        return settings
    _values.size("updates", args.updates, settings.updates or begun.update)
    return settings._replace(updates=args.updates)


def _measure(settings: Settings, backend: str | None) -> Settings:
    """Choose the number of threads and the updates between validations in a trial with another model."""
    seconds = settings.seconds
    print(f"Measuring about how many updates fit into {seconds:g} seconds ...", flush=True)
    corpus = _corpus(settings.text)
    model = _model(corpus, settings, backend)
    batches, adam = _training_batches(model, corpus, settings), optim.Adam(settings.lr)

    def update() -> None:
        training.fit(model, batches, adam, updates=1, rng=settings.seed, max_norm=MAX_NORM, progress=False)

    threads, of_update = None, _seconds(update, least=2)
    if importlib.util.find_spec("threadpoolctl") is not None:
        with _blas(1):
            alone = _seconds(update, least=2)
        if alone < GAIN_OF_THREADS * of_update:
            threads, of_update = 1, alone
    with _blas(threads):
        of_validation = _seconds(lambda: _held_out_bits(model, corpus), least=0)
    updates = int((seconds - VALIDATIONS * of_validation) / of_update)
    return settings._replace(every=max(1, math.ceil(updates / VALIDATIONS)), threads=threads)


def _blas(threads: int | None) -> contextlib.AbstractContextManager[object]:
    """Limit BLAS in the block to a number of threads; None keeps its default."""
    if threads is None:
        return contextlib.nullcontext()
    from threadpoolctl import threadpool_limits

    limits: contextlib.AbstractContextManager[object] = threadpool_limits(threads, user_api="blas")
    return limits


def _seconds(work: Callable[[], object], least: float) -> float:
    """Return the median time of a call over `least` seconds, without the first call, which may compile."""
    work()
    times: list[float] = []
    while not times or sum(times) < least:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def _corpus(file: str | None) -> Corpus:
    """Read the text, and hold out the last tenth."""
    if file is None:
        from pydoc_data.topics import topics

        text = "".join(_without_tables(topics[name]) for name in sorted(topics))
    else:
        try:
            text = Path(file).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            msg = f"{file} is not UTF-8: {error.reason} at byte {error.start}; convert it to UTF-8"
            raise FormatError(msg) from error
    held_out = len(text) // 10 // HELD_OUT_STREAMS * HELD_OUT_STREAMS
    if held_out == 0:
        msg = f"the text has {len(text)} characters; at least {10 * HELD_OUT_STREAMS} are needed"
        raise ArgumentError(msg)
    return Corpus(text, len(text) - held_out)


def _without_tables(text: str) -> str:
    """Remove the lines of tables, which are mostly blanks and would dominate the samples."""
    lines = [line.rstrip() for line in text.split("\n") if not line.lstrip().startswith(("|", "+"))]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _check_same_text(corpus: Corpus, begun: Checkpoint) -> None:
    """Check that the run continues with the same text."""
    if begun.extra["digest"] != corpus.digest:
        msg = (
            "the text has changed since the run began"
            f" (with Python {begun.extra['python']}, whose help topics may differ from those of this version)"
        )
        raise FormatError(msg)


def _model(corpus: Corpus, settings: Settings, backend: str | None) -> CharLM:
    """Create the untrained model, whose initial logits give the character frequencies.

    Training then does not need updates to learn the frequencies.
    """
    model = CharLM(
        corpus.vocab,
        settings.hidden_size,
        settings.layers,
        embedding_dim=EMBEDDING_DIM,
        dropout=settings.dropout,
        xp=backend,
        rng=settings.seed,
    )
    counts = Counter(corpus.text[: corpus.split])
    bias = np.log([counts[character] + 0.5 for character in model.vocab])
    bias -= np.log(np.exp(bias).sum())
    model.load_state_dict({**model.state_dict(), "linear.bias": bias.astype(np.float32)})
    return model


def _training_batches(model: CharLM, corpus: Corpus, settings: Settings) -> Streams:
    """Return the batches of the training text."""
    return Streams(model.encode(corpus.text[: corpus.split]), settings.batch_size, settings.steps)


def _held_out_bits(model: CharLM, corpus: Corpus) -> float:
    """Return the bits per character of the held-out text, with each character counted once."""
    ids = model.encode(corpus.text[corpus.split - 1 :])
    total, state = 0.0, None
    for inputs, targets in Streams(ids, HELD_OUT_STREAMS, HELD_OUT_STEPS):
        loss, state = model.loss(inputs, targets, state)
        total += float(loss) * math.prod(targets.shape)
    return total / (len(corpus.text) - corpus.split) * BITS


def _introduce(model: CharLM, corpus: Corpus, settings: Settings, baseline: float) -> None:
    """Print the text, the baseline and the model."""
    held_out = len(corpus.text) - corpus.split
    parameters = sum(math.prod(a.shape) for a in model.params.values())
    backend = _array.backend_name(_array.namespace(model.params["linear.bias"], "linear.bias"))
    print(f"Text: {len(corpus.text):,} characters, the last {held_out:,} of them held out.")
    print(f"5-gram model (interpolated Kneser-Ney): {baseline:.3f} bits per held-out character.")
    print(
        f"LSTM: {settings.layers} layer(s) of {settings.hidden_size} units, {parameters:,} parameters"
        f" on {backend} arrays; {_length(settings)} of {settings.batch_size} x {settings.steps} characters."
    )


def _length(settings: Settings) -> str:
    """Format the length of a run."""
    if settings.updates is None:
        return f"{settings.seconds:g} seconds, about {settings.every * VALIDATIONS:,} updates"
    return f"{settings.updates:,} updates"


def _fit(
    model: CharLM, corpus: Corpus, settings: Settings, args: argparse.Namespace, begun: Checkpoint | None
) -> History:
    """Train with a progress bar that shows bits per character."""
    progress = Progress(settings, begun)

    def text(history: History) -> str:
        recent = history.losses[-50:]
        learnt = sum(recent) / len(recent) * BITS
        time_spent = (
            f"{progress.spent[0]:.0f} of {settings.seconds:g} s, " if settings.updates is None else ""
        )
        return f"{time_spent}bits per character {learnt:.3f}, held out {history.validations[-1][1]:.3f}"

    return training.fit(
        model,
        progress.batches(_training_batches(model, corpus, settings)),
        optim.Adam(progress.rate, betas=BETAS),
        updates=settings.updates,
        epochs=1 if settings.updates is None else None,
        carry=True,
        max_norm=MAX_NORM,
        rng=settings.seed,
        validate=lambda: _held_out_bits(model, corpus),
        validate_every=settings.every,
        checkpoint=args.out / CHECKPOINT,
        checkpoint_every=settings.every,
        resume=args.resume,
        extra={
            "settings": settings._asdict(),
            "spent": progress.spent,
            "digest": corpus.digest,
            "python": platform.python_version(),
        },
        progress=text,
    )


def _conclude(history: History, baseline: float) -> None:
    """Print the result and the baseline."""
    first, last = history.validations[0][1], history.validations[-1][1]
    verdict = "better" if last < baseline else "worse"
    print(
        f"Held-out text: from {first:.3f} to {last:.3f} bits per character,"
        f" {abs(baseline - last):.3f} {verdict} than the 5-gram model's {baseline:.3f}."
    )


def _show_how_to_use(checkpoint: Path, prompt: str, temperature: float) -> None:
    """Print how to use the trained model from the shell and from Python."""
    command = ["python", "-m", "xplstm", "generate", str(checkpoint), "--prompt", prompt]
    print(
        f"\nTo write more text with this model:\n  {shlex.join(command)}\n\nIn Python:\n"
        f"  from xplstm.models import CharLM\n"
        f"  model = CharLM.load({str(checkpoint)!r})\n"
        f"  print(model.generate({prompt!r}, 300, temperature={temperature:g}))"
    )


def _draw(history: History, baseline: float, file: Path) -> bool:
    """Draw the loss curve in bits per character; return False if matplotlib is missing."""
    bits = History([loss * BITS for loss in history.losses], history.validations)
    try:
        figure = plot_history(bits)
    except ImportError:
        print(f"No {file.name}: that needs matplotlib, pip install 'xplstm[plot]'.")
        return False
    (axes,) = figure.axes
    axes.axhline(baseline, color="#444444", linestyle="--", label=f"5-gram model, held out: {baseline:.3f}")
    axes.set(title="Character model", ylabel="bits per character", yscale="linear")
    axes.legend()
    figure.savefig(file, dpi=150)
    return True
