"""Safetensors files as views of the mapped file, bfloat16 and float8 included.

The format (https://github.com/huggingface/safetensors#format): a little-endian uint64 N, N bytes of JSON
{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {text: text}}, then the data, little-endian.
"""

import json
import mmap
from pathlib import Path

import ml_dtypes
import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights.torch_file import mistaken

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "C64": np.complex64,
}


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """({name: read-only array}, metadata).

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    try:
        with open(path, "rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        if kind := mistaken(data[:512]):
            raise UserError(f"{path}: this is {kind}.")
        length = int.from_bytes(data[:8], "little")
        header = json.loads(bytes(data[8 : 8 + length]))
        metadata = header.pop("__metadata__", {})
        content = memoryview(data)[8 + length :]
        return {name: _array(content, **entry) for name, entry in header.items()}, dict(metadata)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from error
    except Exception as error:  # a damaged header can make any step fail, in any way
        raise UserError(
            f"{path}: no safetensors file, or a damaged one ({type(error).__name__}: {str(error)[:200]}). "
            "Copy or download it again."
        ) from error


def _array(content: memoryview, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    begin, end = data_offsets
    kind, count = np.dtype(_DTYPES[dtype]), 1
    for n in shape:
        count *= n
    if min((begin, *shape)) < 0 or end - begin != count * kind.itemsize:
        raise ValueError(f"{dtype} {shape} at {begin}:{end} in {len(content)} bytes")
    array = np.frombuffer(content[begin:end], kind) if count else np.empty(0, kind)
    return np.require(array.reshape(shape), requirements="A")
