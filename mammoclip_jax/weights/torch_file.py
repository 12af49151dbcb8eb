"""Files of torch.save and torch.jit.save read without PyTorch: arrays for tensors, plain values for the rest, no code run.

Two formats exist, by what PyTorch's own `torch/serialization.py` writes. Since 1.6 a zip archive: `X/data.pkl` is a
pickle that names storages, whose bytes are the uncompressed records `X/data/0`, `X/data/1`, ... Before, a stream: three
pickles (magic number, version, system), the object's pickle, a pickle with the list of storage keys, and for each an
int64 count and its elements, little-endian. The file is mapped into memory: nothing is copied that is in order there.
"""

import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights import torch_script
from mammoclip_jax.weights.torch_globals import KNOWN, Storage
from mammoclip_jax.weights.unpickle import HARMLESS, load

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature; lengths of name and extra field
_SPARE = 1 << 24  # bytes that reading may make beyond 4 times the file's
_AGAIN = "Copy or download it again."


def read(path: str | Path) -> Any:
    """The object in a file of torch.save; of torch.jit.save the state dict of the module (torch_script.py).

    Tensors and Parameters are read-only NumPy arrays of their shape and dtype (bfloat16 and float8 by ml_dtypes), views
    of the mapped file where they can be; a storage that two share is one. OrderedDict, Namespace and omegaconf's
    containers are dict and list. An object of a class that is not loaded is an `unpickle.Opaque`.

    Raises:
        UserError: there is no such file, it is no file of torch.save, it is damaged, or it names something that could
            run code ("refused: posix.system").
    """
    path = Path(path)
    data = _mapped(path)
    try:
        if data[:4] == b"PK\x03\x04":
            return _Archive(path, data).read()
        _check_kind(path, data)
        return _read_stream(path, data)
    except UserError as error:
        message = str(error)
        raise (error if message.startswith(f"{path}: ") else UserError(f"{path}: {message}")) from error.__cause__
    except Exception as error:  # a damaged file can make any step fail, in any way
        raise UserError(
            f"{path}: the file is damaged or cut short ({type(error).__name__}: {str(error)[:200]}). {_AGAIN}"
        ) from error


def _mapped(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise UserError(f"{path}: the file is empty. {_AGAIN}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}.") from error


def mistaken(head: bytes) -> str:
    """What people often have in place of a file of weights, and what to do, by its first bytes; "" if it is neither."""
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself. Run `git lfs pull`, or download it from its page"
    if head.lstrip()[:1] == b"<":
        return "a web page, not the weights: the download asked for a login or failed. Download it again"
    return ""


def _check_kind(path: Path, data: mmap.mmap) -> None:
    """Raises UserError if the first bytes are not those of a pickle."""
    head = data[:512]
    kind = mistaken(head)
    if kind:
        pass
    elif head[257:262] == b"ustar":
        kind = "a tar archive, not what torch.save writes, which may be named .tar too. Unpack it, give a file inside"
    elif head.startswith(b"\x1f\x8b"):
        kind = "compressed with gzip. Unpack it first"
    elif head.startswith(b"\x89HDF"):
        kind = "an HDF5 file. Only PyTorch and safetensors files are read"
    elif head[8:9] == b"{":
        kind = "a safetensors file under another name. Rename it to .safetensors"
    elif head[:1] not in (b"\x80", b"\x8a", b"L"):  # how a pickle of the magic number can begin
        kind = f"no file of torch.save: it begins with {head[:8]!r}. {_AGAIN[:-1]}"
    if kind:
        raise UserError(f"{path}: this is {kind}.")


def _load(
    path: Path, data: mmap.mmap, storage: Callable[[Any], Any], stream=None, harmless: tuple[str, ...] = HARMLESS
) -> Any:
    """The object of the pickle that the stream, by default the file, stands at."""
    return load(stream or data, KNOWN, storage, str(path), _SPARE + 4 * len(data), harmless)


def _no_storage(_: Any) -> None:
    raise ValueError("a storage where there can be none")


def _storage_type(saved: Any, lengths: tuple[int, ...]) -> tuple:
    """(dtype or None, key, count, ...) of a persistent id ("storage", type, key, device, count, ...)."""
    if not isinstance(saved, tuple) or len(saved) not in lengths or saved[0] not in ("storage", b"storage"):
        raise ValueError("a persistent id that is no storage's")
    _, kind, key, _, count, *view = saved
    if not isinstance(kind, Storage) or not isinstance(key, str) or not isinstance(count, int) or count < 0:
        raise ValueError("a storage without type, key or size")
    return kind.dtype, key, count, *view


class _Archive:
    """The zip format."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.left = path, data, len(data)  # `left`: bytes that records may still have
        self.records = {info.filename: info for info in zipfile.ZipFile(data).infolist()}
        inside = min((name for name in self.records if name.split("/")[-1] == "data.pkl"), key=len, default=None)
        if inside is None:
            raise UserError(
                f"{path}: a zip archive without a data.pkl inside, so not of torch.save. "
                "If it holds a checkpoint, unpack it and give that."
            )
        self.prefix = inside[: -len("data.pkl")]
        self.is_script = self.prefix + "constants.pkl" in self.records
        order = self.prefix + "byteorder"
        self.swapped = order in self.records and bytes(self.record(order)) == b"big"
        self.storages: dict[str, memoryview | np.ndarray] = {}

    def read(self) -> Any:
        stream = BytesIO(self.record(self.prefix + "data.pkl"))
        if self.is_script:
            return torch_script.state_dict(_load(self.path, self.data, self.storage, stream, torch_script.CLASSES))
        return _load(self.path, self.data, self.storage, stream)

    def record(self, name: str) -> memoryview:
        """The bytes of a record, a view of the file; checked by their CRC where the writer computed one."""
        if name not in self.records:
            raise UserError(f"{self.path}: the record {name} is not in the archive. {_AGAIN}")
        info = self.records[name]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise UserError(
                f"{self.path}: the record {name} is compressed or encrypted; PyTorch stores it plainly. "
                "Unpack the archive, and pack it without compression (zip -0 -r)."
            )
        start = info.header_offset
        signature, *lengths = _LOCAL_HEADER.unpack_from(self.data, start)
        start += _LOCAL_HEADER.size + sum(lengths)
        if signature != b"PK\x03\x04" or start + info.file_size > len(self.data):
            raise UserError(f"{self.path}: the record {name} reaches beyond the file. {_AGAIN}")
        self.left -= info.file_size
        if self.left < 0:
            raise UserError(f"{self.path}: refused: records that lie over each other.")
        content = memoryview(self.data)[start : start + info.file_size]
        if info.CRC and zlib.crc32(content) != info.CRC:
            raise UserError(f"{self.path}: the record {name} has other bytes than were written. {_AGAIN}")
        return content

    def storage(self, saved: Any) -> Storage:
        dtype, key, count = _storage_type(saved, (5,))
        size = count * (dtype.itemsize if dtype else 1)
        if key not in self.storages:
            content = self.record(f"{self.prefix}data/{key}")
            self.storages[key] = _swapped(content, dtype) if self.swapped else content
        held = self.storages[key].nbytes
        if held < size:
            raise UserError(f"{self.path}: storage {key} has {held} bytes in place of {size}. {_AGAIN}")
        return Storage(key, dtype, self.storages[key])


def _swapped(content: memoryview, dtype: np.dtype | None) -> np.ndarray:
    """A copy of big-endian elements in little-endian order; those of complex numbers are two."""
    if dtype is None:
        raise UserError("an untyped storage in big-endian order. Save the file again on a little-endian machine.")
    width = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    return np.frombuffer(content, f">u{width}").astype(f"<u{width}")


def _read_stream(path: Path, data: mmap.mmap) -> Any:
    """The older format. Its storages lie behind the pickle that names them, so that is read twice."""
    if _load(path, data, _no_storage) != _MAGIC:
        raise UserError(
            f"{path}: a pickle, but not of torch.save. Save the state_dict with torch.save, or as safetensors."
        )
    if _load(path, data, _no_storage) != _VERSION:
        raise UserError(f"{path}: a version of PyTorch's old format that is not known. Save it again with PyTorch.")
    _load(path, data, _no_storage)  # of the machine: byte order is little-endian in any case
    start = data.tell()
    dtypes: dict[str, np.dtype | None] = {}
    contents: dict[str, memoryview] = {}

    def storage(saved: Any) -> Storage | str:
        if isinstance(saved, tuple) and saved and saved[0] in ("module", b"module"):
            return saved[1]  # the class of a pickled module; its source text is left out
        dtype, key, count, view = _storage_type(saved, (6,))
        dtypes.setdefault(key, dtype)
        if not contents:
            return Storage(key, dtype, None)
        width = dtype.itemsize if dtype else 1
        content = contents[key]
        if view is not None:
            _, offset, count = view
            if min(offset, count) < 0 or (offset + count) * width > content.nbytes:
                raise UserError(f"a view of storage {key} reaches beyond it. {_AGAIN}")
            content = content[offset * width : (offset + count) * width]
        return Storage(key, dtype, content)

    _load(path, data, storage)
    keys = _load(path, data, _no_storage)
    if missing := dtypes.keys() - {key for key in keys if isinstance(key, str)}:
        raise UserError(f"{path}: the file is damaged: storage {min(missing)} is not in it. {_AGAIN}")
    at = data.tell()
    whole = memoryview(data)
    for key in keys:
        if not isinstance(key, str) or key not in dtypes:
            raise UserError(f"{path}: it lists a storage that no tensor is of. {_AGAIN}")
        dtype = dtypes[key]
        (count,) = struct.unpack_from("<q", data, at)
        at += 8
        size = count * (dtype.itemsize if dtype else 1)
        if count < 0 or at + size > len(data):
            raise UserError(f"{path}: storage {key} should have {count} elements, but the file ends before. {_AGAIN}")
        contents[key] = whole[at : at + size]
        at += size
    data.seek(start)
    return _load(path, data, storage)
