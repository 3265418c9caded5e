"""Check the limits of untrusted files: ambiguous archives, budgets, messages, and wrong options."""

from __future__ import annotations

import io as bytesio
import json
import struct
import zipfile

import numpy as np
import pytest

import xplstm
from tests.io.test_io_hostile import entry, npy, pt, safetensors, zipped
from tests.io.test_io_keras import archive, layer, model_of, weights
from tests.support import weightfiles
from xplstm import io
from xplstm._errors import LONGEST_MESSAGE, FormatError, printable


def refusal(content, name, tmp_path):
    """Return the message of the FormatError that `content` causes."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FormatError) as raised:
        io.load(path)
    assert str(raised.value).startswith(str(path))
    return str(raised.value)


WHOLE = weightfiles.whole()["whole.npz"]
END = WHOLE.index(b"PK\x05\x06")
START = WHOLE.index(b"PK\x01\x02")


def with_a_gap():
    """Return an archive of two members with unknown bytes between them."""
    content = bytesio.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("a.npy", npy(np.zeros(3)))
        file.fp.write(b"unknown")
        file.start_dir = file.fp.tell()
        file.writestr("b.npy", npy(np.zeros(3)))
    return content.getvalue()


def shifted(distance):
    """Return an archive whose offsets are all wrong by one number, which some readers correct."""
    content = bytearray(WHOLE)
    place = START
    while (place := content.find(b"PK\x01\x02", place)) >= 0:
        content[place + 42 : place + 46] = struct.pack("<I", read_offset(content, place + 42) + distance)
        place += 4
    content[END + 16 : END + 20] = struct.pack("<I", START + distance)
    return bytes(content)


def read_offset(content, place):
    return struct.unpack("<I", content[place : place + 4])[0]


ARCHIVES = {
    "a gap between members": with_a_gap(),
    "offsets that are wrong together": shifted(9),
    "two archives": zipped([("a.npy", npy(np.zeros(3)))]) + zipped([("a.npy", npy(np.ones(3)))]),
    "bytes before": b"PK" + bytes(998) + WHOLE,
    "a header before": b"PK\x03\x04" + bytes(96) + WHOLE,
    "bytes after": WHOLE + bytes(400),
    "a comment": WHOLE[:-2] + struct.pack("<H", 9) + b"a comment",
    "a gap before the directory": WHOLE[:START] + bytes(9) + WHOLE[START:],
    "a gap before the end": WHOLE[:END] + bytes(9) + WHOLE[END:],
    "a directory that is placed elsewhere": WHOLE[:-6] + struct.pack("<I", START - 9) + WHOLE[-2:],
    "one member before the first": WHOLE[: WHOLE.index(b"PK\x03\x04", 4)] + WHOLE,
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_an_archive_with_two_readings_is_refused(case, tmp_path):
    assert "zip" in refusal(ARCHIVES[case], "given.npz", tmp_path)
    assert "dcp_to_torch_save" in refusal(ARCHIVES["two archives"], "__0_0.distcp", tmp_path)


class Pipe(bytesio.RawIOBase):
    """File that cannot seek, so that the sizes of members follow the members."""

    def __init__(self):
        self.content = b""

    def writable(self):
        return True

    def write(self, data):
        self.content += bytes(data)
        return len(data)


@pytest.mark.parametrize("force_zip64", [False, True])
def test_archives_of_every_honest_form_are_read(force_zip64, tmp_path):
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as file, file.open("a.npy", "w", force_zip64=force_zip64) as member:
        member.write(npy(np.arange(3)))
    path = tmp_path / "streamed.npz"
    path.write_bytes(pipe.content)
    np.testing.assert_array_equal(io.arrays(path)["a"], [0, 1, 2])


def test_what_pytorch_writes_is_without_gaps(tmp_path, torch):
    lstm = torch.nn.LSTM(3, 5)
    torch.save(lstm.state_dict(), tmp_path / "plain.pt")
    torch.save(lstm.state_dict(), tmp_path / "other.pt", pickle_protocol=4)
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(io.load(path).params["weight_hh_l0"], lstm.weight_hh_l0.detach())


def text(word):
    return b"X" + len(word).to_bytes(4, "little") + word


DOUBLED = b")q\0" + b"".join(b"h%c\x86q%c" % (k, k + 1) for k in range(60))
DEEP = b")" + b"\x85" * 200_000
STORAGE = b"\x80\x02(" + text(b"storage") + b"ctorch\nFloatStorage\n"
PICKLES = {
    "a doubled key": STORAGE + DOUBLED + text(b"cpu") + b"K\x01tQ.",
    "a doubled kind": b"\x80\x02(" + DOUBLED + DOUBLED + DOUBLED + text(b"cpu") + b"K\x01tQ.",
    "a doubled name": b"\x80\x04" + DOUBLED + b"\x8c\x01a\x93.",
    "a deep key": STORAGE + DEEP + text(b"cpu") + b"K\x01tQ.",
    "a deep name": b"\x80\x04" + DEEP + b"\x8c\x01a\x93.",
    "a deep argument": b"\x80\x02ctorch\nSize\n" + DEEP + b"\x85R.",
    "an integer of many digits": b"I" + b"9" * 100_000 + b"\n.",
}


@pytest.mark.parametrize("case", PICKLES)
def test_a_value_is_not_shown_before_its_type_is_known(case, tmp_path):
    assert len(refusal(pt(PICKLES[case]), "given.pt", tmp_path)) <= LONGEST_MESSAGE


def many_datasets(file):
    for k in range(200):
        file.create_dataset(f"d{k}", (1 << 18,), "float32", chunks=(1 << 18,), compression="gzip")


@pytest.mark.parametrize("name", ["given.weights.h5", "given.keras"])
def test_datasets_have_one_budget(name, tmp_path):
    content = weights(many_datasets)
    content = archive(content) if name.endswith(".keras") else content
    assert "have more than 100 times as many" in refusal(content, name, tmp_path)


def test_a_text_longer_than_allowed_is_refused(tmp_path):
    """The HDF5 library would allocate 4 GiB."""
    content = bytearray(weightfiles.more()["keras_2.weights.h5"])
    heap = content.rindex(b"GCOL").to_bytes(8, "little")
    place = content.index(heap, content.index(b"model_config\0")) - 4
    content[place : place + 4] = b"\xff" * 4
    assert "'model_config' of 4294967295 bytes" in refusal(bytes(content), "given.weights.h5", tmp_path)


def test_letters_that_are_no_text_are_replaced(tmp_path):
    content = weightfiles.more()["keras_2.weights.h5"]
    damaged = content.replace(b'"use_bias"', b'"use\xf9bias"')
    assert damaged != content
    assert "bias" in refusal(damaged, "given.weights.h5", tmp_path)


@pytest.mark.parametrize("header", [bytes(16), b"\1\0" + bytes(6) + (1 << 40).to_bytes(8, "little")])
def test_a_circle_in_the_heap_of_texts_is_refused(header, tmp_path):
    """The HDF5 library does not return from the first file."""
    content = bytearray(weightfiles.more()["keras_2.weights.h5"])
    assert io.load(bytes(content)).hidden_size == 5
    start = content.rindex(b"GCOL")
    first = 16 + (int.from_bytes(content[start + 24 : start + 32], "little") + 7) // 8 * 8
    content[start + 16 + first : start + 32 + first] = header
    assert "has a damaged global heap" in refusal(bytes(content), "given.weights.h5", tmp_path)


RED = "\x1b[31mred\x1b]0;title\x07\x85"
EMPTY = entry("U8", (0,), (0, 0))
CONTROL = {
    "a layer": ("a.keras", archive(config=model_of(layer(name=RED, activation="gelu")))),
    "an option": ("a.keras", archive(config=model_of(layer(**{RED: RED})))),
    "a long option": ("a.keras", archive(config=model_of(layer(some="x" * 1_000_000)))),
    "an activation": ("a.keras", archive(config=model_of(layer(activation=RED)))),
    "a class": ("a.keras", archive(config={"class_name": RED, "config": {}})),
    "a version": ("a.keras", archive(**{"metadata.json": json.dumps({"keras_version": RED}).encode()})),
    "a record": ("a.npz", zipped([("a.npy", npy(np.zeros(2, [(f"f{k}" * 9, "f4") for k in range(300)])))])),
    "a member": ("a.npz", zipped([(f"{RED}.npy", b"no array")])),
    "many names": (
        "a.safetensors",
        safetensors({f"{RED}{k}" * 30: entry("U8", (0,), (0, 0)) for k in range(30)}),
    ),
    "a module": ("a.pt", pt(b"\x80\x02c" + RED.encode() + b"\nname\n.")),
    "a key": ("a.safetensors", safetensors({RED: {"dtype": RED}})),
}


@pytest.mark.parametrize("case", CONTROL)
def test_a_message_is_printable_and_bounded(case, tmp_path):
    name, content = CONTROL[case]
    message = refusal(content, name, tmp_path)
    assert len(message) <= LONGEST_MESSAGE
    assert all(line.isprintable() for line in message.split("\n"))


def test_a_message_keeps_its_lines_and_letters():
    assert printable("größe\n  量") == "größe\n  量"
    assert printable("a\x1bb\tc") == r"a\x1bb\tc"
    assert printable("x" * 9999) == "x" * 1996 + " ..."
    assert len(printable("\x1b" * 1999)) == LONGEST_MESSAGE
    assert str(FormatError("\x1b" + "x" * 9999)) == printable("\x1b" + "x" * 9999)


def test_inspect_lists_names_that_begin_alike(tmp_path):
    path = tmp_path / "long.safetensors"
    path.write_bytes(safetensors({"a" * 900 + end: EMPTY for end in "bc"}))
    assert len(io.inspect(path).tensors) == 2


def test_inspect_shows_a_problem_as_printable_text(tmp_path):
    path = tmp_path / "a.keras"
    path.write_bytes(CONTROL["a layer"][1])
    assert "\x1b" not in str(io.inspect(path))
    assert "gelu" in str(io.inspect(path))


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": "1e9"},
        {"merge": ["sum"]},
        {"merge": "sum"},
        {"batch_first": 1},
        {"input_dropout": 5},
        {"dropout": -1},
    ],
)
def test_a_wrong_option_of_a_file_is_a_format_error(options, tmp_path):
    arrays = dict(xplstm.LSTM(3, 5).params)
    content = xplstm.io.files.safetensors.pack(arrays, {"xplstm": json.dumps({"": options})})
    assert next(iter(options)) in refusal(content, "given.safetensors", tmp_path)


@pytest.mark.parametrize(
    "option", [{"dropout": 5}, {"recurrent_dropout": "a"}, {"units": [2]}, {"use_bias": 1}]
)
def test_a_wrong_option_of_a_keras_model_is_a_format_error(option, tmp_path):
    assert next(iter(option)) in refusal(archive(config=model_of(layer(**option))), "a.keras", tmp_path)


def metadata(version):
    return {"metadata.json": json.dumps({"keras_version": version}).encode()}


@pytest.mark.parametrize(("version", "slope"), [("2.21.0", 0.2), ("3.15.0", 1 / 6)])
def test_a_hard_sigmoid_is_that_of_the_version_which_wrote_it(version, slope, tmp_path):
    path = tmp_path / "model.keras"
    hard = model_of(layer(recurrent_activation="hard_sigmoid"))
    path.write_bytes(archive(config=hard, **metadata(version)))
    assert io.load(path)._stack.cell.options()["variant"].activations[0] == ("hard_sigmoid", slope, 0.5)
    assert "does not state its version" in refusal(archive(config=hard), "unknown.keras", tmp_path)
    assert "'4.0.0'" in refusal(archive(config=hard, **metadata("4.0.0")), "later.keras", tmp_path)


@pytest.mark.parametrize("time_major", [True, False])
def test_a_layer_that_has_time_first(time_major, tmp_path):
    path = tmp_path / "model.keras"
    path.write_bytes(archive(config=model_of(layer(time_major=time_major)), **metadata("2.15.0")))
    assert io.load(path)._stack.batch_first is not time_major


def test_a_functional_model_of_keras_2(tmp_path):
    """Its archive lists each call as layer, call, output and arguments, like HDF5 files of Keras 2."""
    one, entry = (
        layer(),
        {"class_name": "InputLayer", "config": {"name": "x"}, "name": "x", "inbound_nodes": []},
    )
    one |= {"name": one["config"]["name"], "inbound_nodes": [[["x", 0, 0, {}]]]}
    config = {"layers": [entry, one], "input_layers": [["x", 0, 0]]}
    model = {"class_name": "Functional", "config": config | {"output_layers": [[one["name"], 0, 0]]}}
    path = tmp_path / "model.keras"
    path.write_bytes(archive(config=model, **metadata("2.21.0")))
    assert repr(io.load(path)) == "LSTM(3, 2, num_layers=1, batch_first=True)"
