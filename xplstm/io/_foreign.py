"""Describe files and folders in formats that are not supported, and suggest a command."""

from __future__ import annotations

import os
import re
from collections.abc import Collection

from xplstm._errors import FormatError

# First bytes of files that are never a supported format: bytes, description, advice.
_BEGINNINGS = (
    (rb"version https://git-lfs", "a pointer of Git LFS, not the file itself", "run git lfs pull"),
    (
        rb"\s*<(\?xml[^>]*>\s*<)?net[\s>]",
        "a description of OpenVINO, without weights",
        "load the .onnx file that it was made from",
    ),
    (
        rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|!--|\?xml)",
        "a web page, saved in place of the file",
        "download the file itself, such as the raw file of a repository",
    ),
    (rb"GGUF", "a model in GGUF", "convert the original weights, or save the LSTM's arrays as .npz"),
    (rb".{4}TFL3", "a model of TFLite", "save the weights of the original Keras model as .weights.h5"),
    (rb".{4}ORTM", "a model in the format of ONNX Runtime", "load the .onnx file that it was made from"),
    (rb"\x1f\x8b", "packed with gzip", "unpack a copy with gunzip -c FILE > COPY"),
    (rb"BZh[1-9]", "packed with bzip2", "unpack a copy with bunzip2 -c FILE > COPY"),
    (rb"\xfd7zXZ\0", "packed with xz", "unpack a copy with unxz -c FILE > COPY"),
    (rb"\x28\xb5\x2f\xfd", "packed with zstd", "unpack a copy with unzstd -c FILE > COPY"),
)
# The same for first bytes that a supported format may also have; checked last.
_HINTS = (
    (
        rb"[\x81-\x8f][\xa0-\xbf]|\xde..[\xa0-\xbf]",
        "msgpack, as Flax writes it",
        "flatten the params and save them as .npz (the guide of Flax)",
    ),
    (
        rb"\x08\x01\x12",
        "perhaps a SavedModel of TensorFlow",
        "load its folder there and save_weights('x.weights.h5')",
    ),
    (rb"\x80[\x02-\x05]", "a pickle that PyTorch did not write", "save the arrays with numpy.savez"),
    (rb"\s*[{\[]", "JSON", "load the weight file that belongs to it"),
)
_TAR_AT = 257
# Endings of files with weights in a folder, the one to suggest first.
_WEIGHTS = (".index.json", ".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".keras", ".h5", ".onnx", ".npz")
# Members that identify an archive or folder: name, description, advice.
_SIGNS = (
    (
        "saved_model.pb",
        "a SavedModel of TensorFlow",
        "load it there and save_weights('x.weights.h5')",
    ),
    (
        ".metadata",
        "a distributed checkpoint of PyTorch",
        "run python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER new.pt",
    ),
    (
        "_CHECKPOINT_METADATA",
        "a checkpoint of Orbax",
        "restore it there, flatten the params and save them as .npz (the guide of Flax)",
    ),
    ("model.weights.h5", "an unpacked model of Keras", "load model.weights.h5 in it"),
    ("checkpoint", "a folder of checkpoints of TensorFlow", "save the variables by name with numpy.savez"),
    ("policy.pth", "a model of Stable Baselines 3", "unpack it, and load policy.pth"),
    (
        "archive_format",
        "a program of torch.export",
        "save torch.export.load(FILE).state_dict with torch.save, and load that file",
    ),
)


def refuse_irregular(path: str) -> None:
    """Raise an error for a pipe or device, and one that describes a folder by its contents."""
    if os.path.isdir(path):
        names = sorted(os.listdir(path))[:10_000]
        weights = [ascii(name)[:100] for ending in _WEIGHTS for name in names if name.endswith(ending)]
        such = f", such as {weights[0]}" if weights else ""
        msg = f"{path} is {_by_members(names) or f'a folder; name a file in it{such}'}"
        raise FormatError(msg)
    if os.path.exists(path) and not os.path.isfile(path):  # to open a pipe could take forever
        msg = f"{path} is a pipe, socket or device, expected a regular file"
        raise FormatError(msg)


def refuse_foreign(path: str, head: bytes) -> None:
    """Raise an error if the first bytes are those of a format that is not supported."""
    with open(path, "rb") as file:
        file.seek(_TAR_AT)
        is_tar = file.read(5) == b"ustar"
    what = "a tar archive; unpack it with tar -xf, and load the weight file in it" if is_tar else None
    what = what or ("empty; copy or download it again" if not head else _by_beginning(_BEGINNINGS, head))
    if what:
        msg = f"{path} is {what}"
        raise FormatError(msg)


def hint(head: bytes, members: Collection[str]) -> str:
    """Return a message suffix with the probable format of an unknown file; "" without a guess."""
    what = _by_members(members) or _by_beginning(_HINTS, head)
    return f"; it is {what}" if what else ""


def _by_beginning(table: tuple[tuple[bytes, str, str], ...], head: bytes) -> str | None:
    for pattern, what, remedy in table:
        if re.match(pattern, head, re.DOTALL | re.IGNORECASE):
            return f"{what}; {remedy}"
    return None


def _by_members(names: Collection[str]) -> str | None:
    for sign, what, remedy in _SIGNS:
        if any(name == sign or name.endswith(f"/{sign}") for name in names):
            return f"{what}; {remedy}"
    return None
