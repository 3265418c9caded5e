"""Check checkpoint files: their contents, and every way in which a file can be damaged."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import xplstm
from xplstm import optim, training
from xplstm.io.files import safetensors
from xplstm.training import Checkpoint, History


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.safetensors"


def a_point(**changes):
    params = {"a.weight": np.arange(6.0).reshape(2, 3), "b": np.ones(2, "float32")}
    optimizer = {"step": 2, "m.b": np.ones(2)}
    history = History([1.5, 0.5], [(0, math.inf), (2, 0.25)])
    state = (np.zeros((1, 2)), np.ones((1, 2)))
    point = Checkpoint(
        2, 1, 0, params, optimizer, state, None, history, dict(params), {"k": 1}, {"class": "A"}
    )
    return point._replace(**changes)


def parts(path):
    """Return tensors and metadata of a file, to change and write them."""
    contents = safetensors.read(str(path))
    return {name: np.array(t.array()) for name, t in contents.tensors.items()}, dict(contents.metadata)


def edited(path, change):
    tensors, metadata = parts(path)
    rest = json.loads(metadata["xplstm"])
    change(tensors, rest)
    path.write_bytes(safetensors.pack(tensors, metadata | {"xplstm": json.dumps(rest)}))


LEFT_OUT = object()
WRONG = [
    ("update", -3),
    ("update", True),
    ("epoch", "x"),
    ("position", LEFT_OUT),
    ("optimizer", LEFT_OUT),
    ("optimizer", {"step": "3"}),
    ("rng", LEFT_OUT),
    ("rng", [1]),
    ("extra", LEFT_OUT),
    ("settings", LEFT_OUT),
    ("final", "last"),
    ("tied", [["a.weight", "c"]]),
    ("tied", [["a.weight", "b"]]),
    ("tied", [3]),
    ("format", "xplstm-checkpoint-1"),
    ("format", LEFT_OUT),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_part_of_the_metadata_is_named(path, name, value):
    training.save_checkpoint(path, a_point())
    edited(path, lambda _, rest: rest.pop(name) if value is LEFT_OUT else rest.update({name: value}))
    with pytest.raises(xplstm.FormatError, match=r"run\.safetensors"):
        training.load_checkpoint(path)


DAMAGE = {
    "no params": lambda t: [t.pop(n) for n in list(t) if n.startswith("params.")],
    "no losses": lambda t: t.pop("history.losses"),
    "no validations": lambda t: t.pop("history.validations"),
    "losses of two axes": lambda t: t.update({"history.losses": np.ones((2, 2))}),
    "losses of integers": lambda t: t.update({"history.losses": np.ones(2, int)}),
    "validations of three columns": lambda t: t.update({"history.validations": np.ones((2, 3))}),
    "validation at a broken update": lambda t: t.update({"history.validations": np.full((1, 2), 0.5)}),
    "validation at update inf": lambda t: t.update({"history.validations": np.full((1, 2), np.inf)}),
    "a gap in the state": lambda t: t.pop("state.0"),
    "a state that is named": lambda t: t.update({"state.h": t.pop("state.0")}),
    "an unknown group": lambda t: t.update({"momentum.b": np.ones(2)}),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_wrong_tensor_is_named(path, kind):
    training.save_checkpoint(path, a_point())
    edited(path, lambda tensors, _: DAMAGE[kind](tensors))
    with pytest.raises(xplstm.FormatError, match=r"run\.safetensors"):
        training.load_checkpoint(path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000])
@pytest.mark.parametrize("key", ["xplstm", "xplstm.model"])
def test_metadata_that_is_no_object_is_named(path, text, key):
    training.save_checkpoint(path, a_point())
    tensors, metadata = parts(path)
    path.write_bytes(safetensors.pack(tensors, metadata | {key: text}))
    with pytest.raises(xplstm.FormatError, match=r"run\.safetensors"):
        training.load_checkpoint(path)


@pytest.mark.slow
def test_every_cut_and_every_changed_byte_of_the_header_is_a_format_error_or_harmless(path):
    training.save_checkpoint(path, a_point())
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(xplstm.FormatError):
            training.load_checkpoint(path)
    for at in range(0, int.from_bytes(whole[:8], "little")):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            training.load_checkpoint(path)
        except xplstm.FormatError:
            continue


BAD = [
    ({"update": -1}, xplstm.ArgumentError, "update=-1"),
    ({"update": None}, xplstm.DTypeError, "update=None"),
    ({"position": True}, xplstm.DTypeError, "position=True"),
    ({"extra": {"a": {1}}}, xplstm.ArgumentError, "JSON"),
    ({"params": {"w": np.ones(1, "complex128")}}, xplstm.DTypeError, "params.w has dtype complex128"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_what_cannot_be_saved_is_named_and_the_old_file_stays(path, changes, error, message):
    training.save_checkpoint(path, a_point())
    before = path.read_bytes()
    with pytest.raises(error, match=message):
        training.save_checkpoint(path, a_point(**changes))
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["a/b", "a.", ".a", "", "a%2Fb", "%00", "a%", "..", "é"])
def test_every_name_comes_back(path, name):
    params = {name: np.ones(1), "w": np.zeros(1)}
    training.save_checkpoint(path, a_point(params=params, best=dict(params)))
    loaded = training.load_checkpoint(path)
    assert loaded.params.keys() == loaded.best.keys() == params.keys()


def test_tied_parameters_are_one_array_again(path):
    shared = np.ones(3)
    training.save_checkpoint(path, a_point(params={"a": shared, "b": shared, "c": np.ones(3)}, best=None))
    loaded = training.load_checkpoint(path).params
    assert loaded["a"] is loaded["b"]
    assert loaded["a"] is not loaded["c"]


class Named:
    """Model with a method `config`."""

    def __init__(self, config=None):
        self.params = {"w": np.zeros(1)}
        self.given = {"class": "Named", "options": {"size": 1}} if config is None else config

    def config(self):
        return self.given

    def loss_vjp(self, *_):
        return np.asarray(1.0), None, lambda: {"w": np.ones(1)}


def fit(model, path, **options):
    settings = {"updates": 6, "checkpoint": path, "progress": False} | options
    return training.fit(model, [(0, 0)], optim.SGD(1.0), **settings)


def test_the_file_says_what_the_model_is_and_which_parameters_it_was_left_with(path):
    model, values = Named(), iter([5.0, 1.0, 2.0, 3.0, 4.0])
    fit(model, path, validate=lambda: next(values), validate_every=1, patience=2)
    loaded = training.load_checkpoint(path)
    assert loaded.model == {"class": "Named", "options": {"size": 1}}
    assert loaded.final == "best"
    assert loaded.best["w"] == model.params["w"] == -1
    assert loaded.params["w"] == -3
    path.unlink()
    fit(Named(), path)
    assert training.load_checkpoint(path).final == "params"


@pytest.mark.parametrize("config", [[1], {"a": {1}}, {"a": np.ones(1)}])
def test_a_config_that_is_no_dict_for_json_is_refused_before_any_work(path, config):
    with pytest.raises(
        xplstm.XplstmError, match=r"model\.config\(\)=.* (must be a dict|cannot be written as JSON)"
    ):
        fit(Named(config), path)
    assert not path.exists()
