"""Check untrusted files: each error is a FormatError with the path, no code runs, and memory is bounded."""

from __future__ import annotations

import builtins
import contextlib
import importlib.util
import io as bytesio
import json
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import xplstm
from tests.support import weightfiles
from tests.support.weightfiles import OLD, in_dict, old_tensor, tensor
from xplstm import io
from xplstm._errors import ArgumentError, FormatError
from xplstm.io.files.archive import Archive


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(8, 3), place=(0, 96)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


def zipped(members, method=zipfile.ZIP_STORED):
    content = bytesio.BytesIO()
    with zipfile.ZipFile(content, "w", method) as file:
        for name, data in members:
            file.writestr(name, data)
    return content.getvalue()


def npy(a):
    content = bytesio.BytesIO()
    np.save(content, a)
    return content.getvalue()


def brackets(depth, end=b""):
    """Return a header of a NumPy array whose shape has `depth` nested tuples, each closed by `end`."""
    text = b"{'descr':'<f4','fortran_order':False,'shape':(" + b"(" * depth + end * depth + b"),}"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def pt(program, *, folder="archive", extra=()):
    members = [(f"{folder}/data.pkl", program), (f"{folder}/data/0", bytes(96)), *extra]
    return zipped(members)


# A tuple of two equal tuples of two equal tuples, and so on.
DOUBLED = b")q\0" + b"".join(b"h%c\x86q%c" % (k, k + 1) for k in range(60))

GOOD = {"weight_ih_l0": entry(), "weight_hh_l0": entry("F32", (8, 2), (96, 160))}

BROKEN = {
    "empty": (".safetensors", b"", "is empty"),
    "eight bytes": (".safetensors", bytes(8), "not valid JSON"),
    "header longer than the file": (
        ".safetensors",
        safetensors(GOOD, bytes(160), 1 << 40),
        "but a header length of",
    ),
    "header longer than allowed": (
        ".safetensors",
        safetensors(b"{" * 9, b"", (1 << 64) - 1),
        "but a header length of",
    ),
    "header cut": (".safetensors", safetensors(json.dumps(GOOD).encode()[:-9]), "not valid JSON"),
    "header of a list": (".safetensors", safetensors([GOOD]), "not a JSON object"),
    "header nested a thousand deep": (".safetensors", safetensors(b'{"a":' + b"[" * 99999), "not valid JSON"),
    "header of other letters": (".safetensors", safetensors(b'{"\xff": 1}'), "not valid JSON"),
    "name twice": (
        ".safetensors",
        safetensors(b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}"),
        "a occurs twice",
    ),
    "name twice by another spelling": (
        ".safetensors",
        safetensors({"a/b": entry(), "a.b": entry("F32", (8, 3), (96, 192))}, bytes(192)),
        "a.b twice",
    ),
    "name of a million letters": (
        ".safetensors",
        safetensors({"a" * 1_000_000: entry()}, bytes(96)),
        "1000000 characters",
    ),
    "entry of text": (".safetensors", safetensors({"a": "b"}), "dtype, shape and data_offsets"),
    "unknown dtype": (".safetensors", safetensors({"a": entry("F33")}, bytes(96)), "unknown dtype"),
    "dtype that is a list": (".safetensors", safetensors({"a": entry([])}, bytes(96)), "unknown dtype"),
    "negative size": (
        ".safetensors",
        safetensors({"a": entry(shape=(-8, -3))}, bytes(96)),
        "list of integers",
    ),
    "size that is true": (
        ".safetensors",
        safetensors({"a": entry(shape=(True, 24))}, bytes(96)),
        "list of int",
    ),
    "size beyond numbers": (
        ".safetensors",
        safetensors({"a": entry(shape=(10**4000, 10**4000))}, bytes(96)),
        "list of integers",
    ),
    "elements beyond any memory": (
        ".safetensors",
        safetensors({"a": entry(shape=(1 << 40, 1 << 40))}, bytes(96)),
        "more axes or elements",
    ),
    "more bytes than shape": (
        ".safetensors",
        safetensors({"a": entry(place=(0, 97))}, bytes(97)),
        "96 bytes",
    ),
    "place backwards": (".safetensors", safetensors({"a": entry(place=(96, 0))}, bytes(96)), "96 bytes"),
    "place of one number": (".safetensors", safetensors({"a": entry(place=(96,))}, bytes(96)), "96 bytes"),
    "overlap": (
        ".safetensors",
        safetensors({"a": entry(), "b": entry(place=(48, 144))}, bytes(144)),
        "overlaps another",
    ),
    "hole": (".safetensors", safetensors({"a": entry(), "b": entry(place=(100, 196))}, bytes(196)), "a gap"),
    "data cut": (".safetensors", safetensors(GOOD, bytes(159)), "159 bytes of tensors"),
    "data left": (".safetensors", safetensors(GOOD, bytes(161)), "161 bytes of tensors"),
    "metadata of numbers": (
        ".safetensors",
        safetensors({"__metadata__": {"a": 1}}),
        "not an object with text values",
    ),
    "options of ours that are none": (
        ".safetensors",
        safetensors({"__metadata__": {"xplstm": '{"": {"hidden_size": 9}}'}} | GOOD, bytes(160)),
        "hidden_size",
    ),
    "options of ours that are no JSON": (
        ".safetensors",
        safetensors({"__metadata__": {"xplstm": "["}} | GOOD, bytes(160)),
        "is not valid JSON",
    ),
    "a variant of ours that is none": (
        ".safetensors",
        safetensors({"__metadata__": {"xplstm": '{"": {"variant": {"cell_clip": -1}}}'}} | GOOD, bytes(160)),
        "cell_clip",
    ),
    "zip cut": (".npz", zipped([("a.npy", npy(np.ones(9)))])[:-30], "damaged zip"),
    "zip alone": (".npz", b"PK\x03\x04", "damaged zip"),
    "path out": (".npz", zipped([("../a.npy", npy(np.ones(9)))]), "a path outside the archive"),
    "absolute path": (".npz", zipped([("/etc/a.npy", npy(np.ones(9)))]), "a path outside the archive"),
    "path of windows": (".npz", zipped([("C:\\a.npy", npy(np.ones(9)))]), "a path outside the archive"),
    "objects": (
        ".npz",
        zipped([("a.npy", npy(np.asarray([{}], dtype=object)))]),
        "objects or records are not supported",
    ),
    "records": (".npz", zipped([("a.npy", npy(np.zeros(2, "f4,f4")))]), "objects or records"),
    "not a valid NumPy array": (".npz", zipped([("a.npy", b"hello")]), "not a valid NumPy array"),
    "header that ends within brackets": (
        ".npz",
        zipped([("a.npy", brackets(2000))]),
        "not a valid NumPy array",
    ),
    "header nested deep": (".npz", zipped([("a.npy", brackets(300, b")"))]), "not a valid NumPy array"),
    "array cut": (".npz", zipped([("a.npy", npy(np.ones(9))[:-1])]), "has 199 bytes"),
    "array of a shape beyond its bytes": (
        ".npz",
        zipped([("a.npy", npy(np.ones(9)).replace(b"(9,)", b"(9999999999,)").replace(b"       ", b"", 1))]),
        "a.npy",
    ),
    "bomb": (".npz", zipped([("a.npy", npy(np.zeros(1 << 22)))], zipfile.ZIP_DEFLATED), "would unpack to"),
    "packed otherwise": (
        ".npz",
        zipped([("a.npy", npy(np.ones(9)))], zipfile.ZIP_BZIP2),
        "stored or deflated",
    ),
    "no pickle": (".pt", pt(b"\x00hello"), "damaged pickle"),
    "pickle cut": (".pt", pt(in_dict(tensor())[:-9]), "damaged pickle"),
    "pickle that calls": (".pt", pt(b"cos\nsystem\n(X\x04\x00\x00\x00truetR."), "only objects of os.system"),
    "pickle that calls by parts": (
        ".pt",
        pt(b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x04passR."),
        "calls Global, which is not a function",
    ),
    "pickle that makes objects": (
        ".pt",
        pt(b"\x80\x02ccollections\nOrderedDict\n)\x81."),
        "only objects of collections",
    ),
    "pickle that makes instances": (
        ".pt",
        pt(b"(icollections\nOrderedDict\n."),
        "only objects of collections",
    ),
    "pickle of a registered extension": (".pt", pt(b"\x80\x02\x82\x01."), "EXT1"),
    "pickle that calls what it made": (".pt", pt(b"\x80\x02})R."), "calls dict"),
    "pickle that calls a dtype": (".pt", pt(b"\x80\x02ctorch\nFloatStorage\n)R."), "calls a type"),
    "pickle that marks for ever": (".pt", pt(b"(" * 100_000 + b"."), "pops more values"),
    "pickle with a key that is a deep tuple": (
        ".pt",
        pt(b"\x80\x02}N" + b"\x85" * 9 + b"Ns."),
        "a tuple as a key",
    ),
    "pickle whose storage has a doubled tuple for a key": (
        ".pt",
        pt(b"\x80\x02)q\0" + DOUBLED + in_dict(tensor(key=b"h\x3c"))[2:]),
        "a key of type tuple",
    ),
    "pickle that asks for a doubled tuple": (
        ".pt",
        pt(b"\x80\x04" + DOUBLED + b"\x8c\x01a\x93."),
        "has a tuple in place of",
    ),
    "pickle that asks for a tuple nested deep": (
        ".pt",
        pt(b"\x80\x04)" + b"\x85" * 200_000 + b"\x8c\x01a\x93."),
        "has a tuple in place of",
    ),
    "old file with a storage of a doubled tuple": (
        ".pt",
        OLD + b"\x80\x02" + DOUBLED + b"h\x3c\x85Q.",
        "not a storage",
    ),
    "old file that ends": (
        ".pt",
        OLD + old_tensor() + b"]U\x010a." + bytes(8) + b"\x01",
        "storages end at byte",
    ),
    "old file that is cut": (
        ".pt",
        OLD + old_tensor() + b"]U\x010a." + b"\x18" + bytes(7 + 95),
        "ends before the 24",
    ),
    "old file that lists too much": (
        ".pt",
        OLD + old_tensor() + b"](U\x010U\x011e.",
        "are not in its pickle",
    ),
    "pickle with a key that is a long tuple": (
        ".pt",
        pt(b"\x80\x02}(" + b"N" * 17 + b"tNs."),
        "a tuple as a key",
    ),
    "pickle with a key of long texts": (
        ".pt",
        pt(b"\x80\x02}X\xe8\x03\x00\x00" + b"a" * 1000 + b"\x85Ns."),
        "more than 100 characters",
    ),
    "pickle of a counter of a list": (
        ".pt",
        pt(b"\x80\x02ccollections\nCounter\n]\x85R."),
        "a counter is made from",
    ),
    "pickle of a default that is called": (
        ".pt",
        pt(b"\x80\x02c__builtin__\ndict\n)R."),
        "calls a type",
    ),
    "pickle of a default by another name": (
        ".pt",
        pt(b"\x80\x02cos\nsystem\nccollections\ndefaultdict\n\x85R."),
        "only objects of os.system",
    ),
    "pickle of a default that is no function": (
        ".pt",
        pt(b"\x80\x02ccollections\ndefaultdict\n]\x85R."),
        "a defaultdict has a factory of type",
    ),
    "pickle nested a million deep": (
        ".pt",
        pt(b"]" * 1_000_000 + b"a" * 999_999 + b"."),
        "needs a stack of more than",
    ),
    "pickle that remembers far": (
        ".pt",
        pt(b"\x80\x02}r\xff\xff\xff\xffj\xfe\xff\xff\xff."),
        "has no memo entry",
    ),
    "pickle that holds itself": (".pt", pt(b"\x80\x02]q\x00h\x00a."), "nested too deep"),
    "pickle that holds itself doubled": (
        ".pt",
        pt(
            b"\x80\x02"
            + b"".join(b"]q%c" % k + (b"(h%ch%ce" % (k - 1, k - 1) if k else b"") for k in range(60))
            + b"."
        ),
        "nested too deeply, or has too many objects",
    ),
    "tensor without storage": (".pt", pt(in_dict(tensor(key=b"X\x01\x00\x00\x001"))), "missing storage: '1'"),
    "tensor outside its folder": (
        ".pt",
        pt(in_dict(tensor(key=b"X\x0b\x00\x00\x00../data.pkl"))),
        "missing storage: '../data.pkl'",
    ),
    "tensor upon itself": (".pt", pt(in_dict(tensor(strides=b"K\x01K\x01"))), "overlaps itself"),
    "tensor of negative strides": (
        ".pt",
        pt(in_dict(tensor(strides=b"K\x03J\xff\xff\xff\xff"))),
        "list of integers",
    ),
    "tensor with a stride too many": (".pt", pt(in_dict(tensor(strides=b"K\x03K\x01K\x01"))), "3 strides"),
    "tensor of text": (".pt", pt(in_dict(tensor(offset=b"X\x01\x00\x00\x00a"))), "list of integers"),
    "two pickles": (".pt", pt(in_dict(tensor()), extra=[("b/data.pkl", b".")]), "has 2 pickles"),
    "byte order of neither end": (
        ".pt",
        pt(in_dict(tensor()), extra=[("archive/byteorder", b"middle")]),
        "byte order",
    ),
    "written before 1.6": (".pt", bytes.fromhex("80028a0a6cfc9c46f9206aa850192e"), "damaged pickle"),
    "a picture": (".png", b"\x89PNG\r\n\x1a\n" + bytes(99), "has none of the formats"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_by_name(case, tmp_path):
    suffix, content, words = BROKEN[case]
    path = tmp_path / f"given{suffix}"
    path.write_bytes(content)
    for call in (io.load, io.inspect):
        if case.startswith(("options", "a variant")) and call is io.inspect:
            assert words in str(call(path))
            continue
        with pytest.raises(FormatError) as raised:
            call(path)
        assert str(path) in str(raised.value)
        assert words in str(raised.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_a_member_that_stands_twice_is_refused(suffix, tmp_path):
    members = {
        ".npz": [("a.npy", npy(np.ones(9))), ("a.npy", npy(np.zeros(9)))],
        ".pt": [("archive/data.pkl", in_dict(tensor())), ("archive/data/0", bytes(96))] * 2,
    }
    path = tmp_path / f"twice{suffix}"
    path.write_bytes(zipped(members[suffix]))
    with pytest.raises(FormatError, match="twice"):
        io.load(path)


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN)
def test_memory_stays_within_a_multiple_of_the_file(case, tmp_path):
    suffix, content, _ = BROKEN[case]
    path = tmp_path / f"given{suffix}"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            io.load(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * len(content) + (1 << 21)


class Trap:
    """Object that would run code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (builtins.open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_that_a_pickle_names_is_called(protocol, tmp_path):
    trap = tmp_path / "sprung"
    program = pickle.dumps({"weight_ih_l0": Trap(trap)}, protocol=protocol)
    path = tmp_path / "trap.pt"
    path.write_bytes(pt(program))
    with pytest.raises(FormatError, match=r"weight_ih_l0 is an object of \w+\.open"):
        io.load(path)
    objects = np.asarray([Trap(trap)], dtype=object)
    np.savez(tmp_path / "trap.npz", weight_ih_l0=objects)
    with pytest.raises(FormatError, match="objects or records are not supported"):
        io.load(tmp_path / "trap.npz")
    assert not trap.exists()
    pickle.loads(program)["weight_ih_l0"].close()
    assert trap.exists()  # the trap does work


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
def test_containers_of_every_protocol_are_read(protocol, tmp_path):
    held = {"a": [1, 2.5, None, True, "x", ("y", (), [])], "b": {3: {"c": set()}}, "n": -(1 << 40)}
    path = tmp_path / "held.pt"
    path.write_bytes(pt(pickle.dumps(held, protocol=protocol)))
    assert io.inspect(path).tensors == {}


@pytest.mark.parametrize("name", ["whole.npz", "whole.pt"])
def test_a_flipped_bit_of_a_weight_is_seen(name, tmp_path):
    weight = weightfiles.lstm().params["weight_hh_l0"].tobytes()
    content = bytearray(weightfiles.whole()[name])
    content[content.index(weight) + 5] ^= 1
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"CRC|zip"):
        io.load(path)


def test_a_flipped_bit_of_a_packed_weight_is_seen(tmp_path):
    """The checksum detects bytes that unpack to other numbers without an error."""
    path = tmp_path / "packed.npz"
    np.savez_compressed(path, **weightfiles.lstm(hidden_size=64).params)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("weight_hh_l0.npy")
    start = info.header_offset + 100  # behind the name and the rest of the header
    for at in range(start, start + info.compress_size - 100, 997):
        content = bytearray(whole)
        content[at] ^= 8
        path.write_bytes(content)
        with pytest.raises(FormatError, match="damaged zip file"):
            io.load(path)


NAMES = ("variant.npz", *(f"whole{suffix}" for suffix in weightfiles.SUFFIXES))
CHANGE = st.tuples(
    st.sampled_from(["flip", "cut", "put", "drop", "number"]),
    st.floats(0, 1),
    st.binary(min_size=1, max_size=9),
)


def changed(content, changes):
    """Return `content` after some changes, each at a relative position between 0 and 1."""
    content = bytearray(content)
    for kind, place, some in changes:
        at = int(place * len(content))
        if kind == "flip" and content:
            content[min(at, len(content) - 1)] ^= some[0] or 1
        elif kind == "cut":
            del content[at:]
        elif kind == "put":
            content[at:at] = some
        elif kind == "drop":
            del content[at : at + len(some)]
        else:
            content[at : at + 8] = some.ljust(8, b"\xff")[:8]
    return bytes(content)


# Without h5py a file that begins as HDF5 asks for it.
UNREADABLE = () if importlib.util.find_spec("h5py") else (ImportError,)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(NAMES), changes=st.lists(CHANGE, min_size=1, max_size=4))
def test_a_changed_file_loads_or_is_refused(name, changes, tmp_path):
    """Only intended errors occur, and the memory is bounded by the file size."""
    content = changed(weightfiles.whole()[name], changes)
    path = tmp_path / name
    path.write_bytes(content)
    tracemalloc.start()
    try:
        io.inspect(path)
        with np.errstate(all="ignore"):
            loaded = io.load(path, dtype="float64")
    except (FormatError, ArgumentError, *UNREADABLE):
        pass
    else:
        assert isinstance(loaded, xplstm.LSTM)
        assert all(a.shape == loaded.shapes[name] for name, a in loaded.params.items())
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 100 * len(content) + (1 << 21)


HEADER = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F4", "I64"]) | HEADER,
        "shape": st.lists(st.integers(-1, 9), max_size=3) | HEADER,
        "data_offsets": st.lists(st.integers(-1, 99), min_size=2, max_size=2) | HEADER,
    }
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.text(max_size=5), ENTRY | HEADER, max_size=4), data=st.binary(max_size=99))
def test_any_header_is_read_or_refused(header, data, tmp_path):
    path = tmp_path / "any.safetensors"
    path.write_bytes(safetensors(json.dumps(header).encode(), data))
    with contextlib.suppress(FormatError):
        io.inspect(path)


SIMPLE = rb"""80 7d 5d 29 28 4e 88 4b05 580100000061 73 75 61 65 74 85 86 87 7101 6801 52 62 51 30 32 2e 94 93
    6c 64 8002 580700000073746f72616765 8f 90"""
INSTRUCTIONS = st.sampled_from(
    [
        *(bytes.fromhex(word.decode()) for word in SIMPLE.split()),
        tensor(),
        b"ccollections\nOrderedDict\n",
        b"ctorch\nFloatStorage\n",
        b"ctorch\nSize\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_parameter\n",
    ]
)


@pytest.mark.slow
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(program=st.lists(INSTRUCTIONS, max_size=30))
def test_any_pickle_is_read_or_refused(program, tmp_path):
    path = tmp_path / "any.pt"
    path.write_bytes(pt(b"".join(program) + b"."))
    with contextlib.suppress(FormatError):
        io.inspect(path)


def test_names_do_not_reach_a_terminal_raw(tmp_path):
    path = tmp_path / "red.safetensors"
    path.write_bytes(safetensors({"\x1b[31mred": entry()}, bytes(96)))
    assert "\x1b" not in str(io.inspect(path))
    with pytest.raises(FormatError) as raised:
        io.load(path)
    assert "\x1b" not in str(raised.value)


def test_a_directory_is_parsed_at_most_twice(tmp_path, monkeypatch):
    """It is parsed to find the format and to read, but not for each member, which takes quadratic time."""
    path = tmp_path / "many.npz"
    np.savez(path, **{f"a{k}": np.full(2, k) for k in range(300)})
    opened = []

    class Counted(zipfile.ZipFile):
        def __init__(self, *args, **kwargs):
            opened.append(args)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(zipfile, "ZipFile", Counted)
    found = io.arrays(path)
    assert [found[f"a{k}"][1] for k in (0, 150, 299)] == [0, 150, 299]
    assert len(opened) == 2


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_of_another_name_than_the_directory_says_is_refused(method, tmp_path):
    path = tmp_path / "named.npz"
    content = zipped([("a.npy", npy(np.ones(9)))], method)
    path.write_bytes(content.replace(b"a.npy", b"b.npy", 1))
    with pytest.raises(FormatError, match=r"is not a\.npy"):
        io.inspect(path)
    path.write_bytes(content.replace(b"PK\x03\x04", b"PK\x03\x05", 1))
    with pytest.raises(FormatError, match=r"is not a\.npy"):
        io.inspect(path)


def test_names_of_members_in_other_letters(tmp_path):
    path = tmp_path / "letters.npz"
    np.savez(path, **{"größe": np.arange(3), "量": np.arange(2)})
    assert {name: a.size for name, a in io.arrays(path).items()} == {"größe": 3, "量": 2}


def many(count, *, size=b"J\x00\x00\x04\x00"):
    """Return a file of `count` tensors on one storage of 2**18 float32 numbers."""
    one = tensor(shape=size, strides=b"K\x01")
    named = b"".join(b"X\x05\x00\x00\x00%05d" % k + one + b"s" for k in range(count))
    return zipped([("archive/data.pkl", b"\x80\x02}" + named + b"."), ("archive/data/0", bytes(1 << 20))])


@pytest.mark.slow
def test_tensors_of_one_storage_are_bounded_together(tmp_path):
    path = tmp_path / "shared.pt"
    content = many(3000)
    path.write_bytes(content)
    assert len(io.inspect(path).tensors) == 3000
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="32 times the bytes"):
            io.arrays(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 * len(content)
    path.write_bytes(many(24))  # layers that share their weights
    assert len(io.arrays(path)) == 24


def test_a_shared_storage_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "shared.pt"
    path.write_bytes(many(500, size=b"K\x02"))
    taken = []

    def read(self, name, most=None, whole=Archive.read):
        taken.append(name)
        return whole(self, name, most)

    monkeypatch.setattr(Archive, "read", read)
    assert len(io.arrays(path)) == 500
    assert taken == ["archive/data.pkl", "archive/data/0"]


def test_a_tensor_expanded_beyond_its_storage_is_refused(tmp_path):
    path = tmp_path / "expanded.pt"
    path.write_bytes(pt(in_dict(tensor(shape=b"J\x00\x00\x00\x40", strides=b"K\x00"))))
    assert io.inspect(path).tensors == {"weight_ih_l0": ((1 << 30,), "float32")}
    with pytest.raises(FormatError, match="32 times the bytes"):
        io.arrays(path)


def test_a_file_of_many_networks_lists_a_few(tmp_path):
    one = {"weight_ih_l0": np.ones((8, 3)), "weight_hh_l0": np.ones((8, 2))}
    given = {f"n{k}": one for k in range(500)}
    with pytest.raises(ArgumentError, match="has 500 networks") as raised:
        io.load(given)
    assert str(raised.value).count("\n") == 13
    assert str(raised.value).endswith("\n  and 488 more")
