"""Writes what `torch.load(path, weights_only=True)` opens, without PyTorch: its zip format (see torch_file.py)."""

import hashlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.files import whole

_ALIGNMENT = 64  # of a storage in the file, so that it can be mapped
_ZIP64 = 1 << 31  # from this size on, zipfile adds a field of 20 bytes to a record's header
_LOCAL_HEADER = 30  # bytes before the name
_PREFIX = "archive"
_STORAGES = {
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int16): "ShortStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.bool_): "BoolStorage",
}


def write(path: str | Path, value: Any) -> None:
    """Writes nested dicts, lists, tuples, texts, numbers, None and NumPy arrays; the arrays become tensors on the CPU.

    A NumPy scalar becomes a tensor without axes. An array that occurs twice is stored once. The file appears under its
    name only when it is whole, and the same value always gives the same bytes.

    Raises:
        UserError: a value of another kind, or an array of a dtype that PyTorch has not; the message says where it is.
    """
    path = Path(path)
    arrays: list[np.ndarray] = []
    pickled = bytearray(pickle.PROTO + b"\x02")
    try:
        _append(value, "", pickled, arrays, {})
    except RecursionError:
        raise UserError(f"{path}: the value holds itself, or is nested too deeply to be written.") from None
    pickled += pickle.STOP
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial, partial.open("wb") as stream:
        _write_archive(stream, bytes(pickled), arrays)


def _write_archive(stream, pickled: bytes, arrays: list[np.ndarray]) -> None:
    with zipfile.ZipFile(stream, "w") as archive:

        def add(name: str, content: bytes | memoryview) -> None:
            record = zipfile.ZipInfo(f"{_PREFIX}/{name}")  # dated 1980
            big = len(content) >= _ZIP64
            start = stream.tell() + _LOCAL_HEADER + len(record.filename) + (20 if big else 0) + 4
            padding = -start % _ALIGNMENT
            record.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding  # the field PyTorch pads with
            record.file_size = len(content)
            with archive.open(record, "w", force_zip64=big) as target:
                target.write(content)

        add("data.pkl", pickled)
        add(".format_version", b"1")
        add(".storage_alignment", str(_ALIGNMENT).encode())
        add("byteorder", b"little")
        for i, array in enumerate(arrays):
            plain = np.ascontiguousarray(array, dtype=_ordered(array.dtype, "<")).reshape(-1)
            add(f"data/{i}", memoryview(plain.view(np.uint8)))
        add("version", b"3\n")
        records = sorted((info.filename, info.CRC) for info in archive.infolist())
        identity = int(hashlib.sha256(repr(records).encode()).hexdigest(), 16)
        add(".data/serialization_id", f"{identity % 10**40:040d}".encode())


def _append(value: Any, where: str, out: bytearray, arrays: list, keys: dict[int, int]) -> None:
    """Appends the opcodes of `value`, and its arrays to `arrays`; `keys` are {id: number} of those already there."""
    if isinstance(value, np.generic) and not isinstance(value, str):
        value = np.asarray(value)  # what NumPy's arithmetic makes of an array without axes
    if value is None:
        out += pickle.NONE
    elif isinstance(value, bool):
        out += pickle.NEWTRUE if value else pickle.NEWFALSE
    elif isinstance(value, int):
        out += _integer(value)
    elif isinstance(value, float):
        out += pickle.BINFLOAT + struct.pack(">d", value)
    elif isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        out += pickle.BINUNICODE + struct.pack("<I", len(text)) + text
    elif isinstance(value, Mapping):
        out += pickle.EMPTY_DICT + pickle.MARK
        for name, item in value.items():
            _append(name, where, out, arrays, keys)
            _append(item, f"{where}[{name!r}]", out, arrays, keys)
        out += pickle.SETITEMS
    elif isinstance(value, (list, tuple)):
        is_list = isinstance(value, list)
        out += pickle.EMPTY_LIST + pickle.MARK if is_list else pickle.MARK
        for i, item in enumerate(value):
            _append(item, f"{where}[{i}]", out, arrays, keys)
        out += pickle.APPENDS if is_list else pickle.TUPLE
    elif isinstance(value, np.ndarray):
        _append_tensor(value, where, out, arrays, keys)
    else:
        raise UserError(
            f"the value{where} is a {type(value).__name__}, which is not written to PyTorch files: "
            "dict, list, tuple, str, int, float, bool, None and NumPy arrays are."
        )


def _append_tensor(array: np.ndarray, where: str, out: bytearray, arrays: list, keys: dict[int, int]) -> None:
    native = _ordered(array.dtype, "=")
    if native not in _STORAGES:
        raise UserError(
            f"the array{where} is of {array.dtype}, which is not written to PyTorch files. "
            f"Convert it to one of {', '.join(str(dtype) for dtype in _STORAGES)}."
        )
    if id(array) not in keys:
        keys[id(array)] = len(arrays)
        arrays.append(array)
    stride, step = [], 1
    for n in reversed(array.shape):
        stride.insert(0, step)
        step *= max(n, 1)

    def plain(*items: Any) -> None:
        for item in items:
            _append(item, where, out, arrays, keys)

    out += _name("torch._utils", "_rebuild_tensor_v2") + pickle.MARK + pickle.MARK
    plain("storage")
    out += _name("torch", _STORAGES[native])
    plain(str(keys[id(array)]), "cpu", array.size)
    out += pickle.TUPLE + pickle.BINPERSID
    plain(0, array.shape, tuple(stride), False)  # offset; no gradient
    out += _name("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE  # backward hooks
    out += pickle.TUPLE + pickle.REDUCE


def _ordered(dtype: np.dtype, order: str) -> np.dtype:
    """`dtype` in that byte order; those of ml_dtypes (isbuiltin 2) have only the native one."""
    return dtype if dtype.isbuiltin == 2 else dtype.newbyteorder(order)


def _name(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _integer(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return pickle.BININT + struct.pack("<i", value)
    content = pickle.encode_long(value)
    if len(content) > 255:
        raise UserError(f"a whole number of {len(content)} bytes is not written to PyTorch files.")
    return pickle.LONG1 + bytes((len(content),)) + content
