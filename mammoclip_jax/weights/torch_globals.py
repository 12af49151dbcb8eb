"""The names that a PyTorch file may hold, and the plain value that we make of each: arrays, dicts, lists, texts."""

import re
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights.unpickle import Known, Opaque, Pending, checked_key, with_keys

DTYPES = {
    name: np.dtype(getattr(np, name))
    for name in (
        "float64",
        "float32",
        "float16",
        "int64",
        "int32",
        "int16",
        "int8",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "complex64",
        "complex128",
    )
}
DTYPES |= {"bool": np.dtype(np.bool_)} | {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
}
DTYPES |= {
    "double": DTYPES["float64"],
    "float": DTYPES["float32"],
    "half": DTYPES["float16"],
    "long": DTYPES["int64"],
    "int": DTYPES["int32"],
    "short": DTYPES["int16"],
}
_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexDouble": "complex128",
    "ComplexFloat": "complex64",
}
_NUMPY_DTYPE = re.compile(r"[<>=|]?[?biufcSUOMm]\d{0,6}")
_EXPANDED = 1 << 20  # elements that a tensor may have beyond its storage, by strides of 0


class Storage(NamedTuple):
    """The elements that tensors are views of.

    Attributes:
        key: its name in the file.
        dtype: of its elements; None for an untyped one, which counts bytes.
        data: its bytes in native order; None where they are not known yet, and tensors get no real elements.
    """

    key: str
    dtype: np.dtype | None
    data: memoryview | np.ndarray | None


def tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *_: Any, dtype: np.dtype | None = None):
    """The array of a tensor: a view of its storage where that is aligned, with PyTorch's strides (in elements).

    Raises:
        UserError: it reaches beyond its storage.
    """
    if not isinstance(storage, Storage):
        raise TypeError("a tensor without a storage")
    dtype = dtype or storage.dtype or np.dtype(np.uint8)
    size, stride = tuple(int(n) for n in size), tuple(int(n) for n in stride)
    if len(size) != len(stride) or min((offset, *size, *stride)) < 0:
        raise ValueError(f"a tensor of size {size}, stride {stride}, offset {offset}")
    if storage.data is None:
        return np.broadcast_to(np.zeros((), dtype), size)
    count, held = 1, storage.data.nbytes // dtype.itemsize
    for n in size:
        count *= n
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
    if count and last >= held:
        raise UserError(
            f"storage {storage.key} has {held} elements of {dtype}, but a tensor of size {size} and stride "
            f"{stride} at {offset} needs {last + 1}. The file is damaged; copy or download it again."
        )
    if count > max(held, _EXPANDED):
        raise UserError(
            f"a tensor of size {size} repeats the {held} elements of storage {storage.key}; that is no "
            "weight. Save it in full (.contiguous()), or leave it out."
        )
    if not count:
        return np.empty(size, dtype)
    array = np.ndarray(size, dtype, storage.data, offset * dtype.itemsize, tuple(s * dtype.itemsize for s in stride))
    return np.require(array, requirements="A")


def _tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, *_):
    return tensor(storage, offset, size, stride, dtype=dtype)


def _parameter(data, *_):
    return data


def _subclass(function, kind, args, state):
    """torch._tensor._rebuild_from_type_v2: a tensor with attributes or of a subclass; the plain tensor."""
    if not isinstance(function, Known) or not function.name.startswith("torch._utils._rebuild"):
        raise TypeError("a tensor subclass of an unknown kind")
    return function.make(*args)


class _Dtype(Pending):
    """numpy.dtype(text, ...), then its state, whose second entry is the byte order."""

    def __init__(self, text: str, *_: Any):
        if not isinstance(text, str) or not _NUMPY_DTYPE.fullmatch(text):
            raise ValueError(f"a NumPy dtype {text!r:.40}")
        self.value = np.dtype(text)

    def build(self, state):
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])

    def finish(self):
        return self.value


class _Array(Pending):
    """numpy's _reconstruct, then the state (version, shape, dtype, column-major, bytes or list of objects)."""

    def __init__(self, *_: Any):
        self.value: Any = None

    def build(self, state):
        _, shape, dtype, column_major, data = state
        if dtype.value.hasobject:
            self.value = list(data)  # an array of objects says no more than a list
        else:
            data = data.encode("latin1") if isinstance(data, str) else data
            self.value = np.frombuffer(data, dtype.value).reshape(shape, order="F" if column_major else "C")

    def finish(self):
        return self.value


def _array_of_buffer(data, dtype, shape, order):
    array = _Array()
    array.build((1, shape, dtype, order == "F", data))
    return array.value


def _scalar(dtype, data=b""):
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.value)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Protocol 2 writes bytes as a text and this call."""
    if encoding not in ("latin1", "latin-1", "utf-8", "utf8", "ascii"):
        raise ValueError(f"the encoding {encoding!r:.40}")
    return text.encode(encoding)


def _items(kind: type):
    """`kind` of what is a container already; numbers would ask for that much memory."""

    def make(items=(), *_):
        if not isinstance(items, (list, tuple, set, frozenset, dict, bytes)):
            raise TypeError(f"a {kind.__name__} of a {type(items).__name__}")
        if kind is dict:
            return with_keys({}, items.items() if isinstance(items, dict) else items)
        return kind(map(checked_key, items) if kind in (set, frozenset) else items)

    return make


def _bytearray(data=b"", encoding="latin1"):
    return bytearray(data if isinstance(data, bytes) else _encode(data, encoding))


def _layout(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError("a layout without a name")
    return name


def _device(kind: str, index: int | None = None) -> str:
    return kind if index is None else f"{kind}:{index}"


def _known() -> dict[tuple[str, str], Any]:
    calls: dict[tuple[str, str], Any] = {
        ("torch._utils", "_rebuild_tensor"): tensor,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        ("torch._tensor", "_rebuild_from_type_v2"): _subclass,
        ("torch", "Size"): lambda items=(): tuple(items),
        ("torch", "device"): _device,
        ("torch.serialization", "_get_layout"): _layout,
        ("collections", "OrderedDict"): _items(dict),
        ("collections", "Counter"): _items(dict),
        ("collections", "defaultdict"): lambda factory=None, items=(): _items(dict)(items),
        ("collections", "deque"): _items(list),
        ("argparse", "Namespace"): None,
        ("_codecs", "encode"): _encode,
        ("numpy", "dtype"): _Dtype,
        ("torch.jit._pickle", "restore_type_tag"): lambda value, kind: value,  # TorchScript's, of a typed container
    }
    for kind in ("int", "double", "bool", "tensor"):
        calls["torch.jit._pickle", f"build_{kind}list"] = _items(list)
    for module in ("numpy.core", "numpy._core"):
        calls[f"{module}.multiarray", "_reconstruct"] = _Array
        calls[f"{module}.multiarray", "scalar"] = _scalar
        calls[f"{module}.numeric", "_frombuffer"] = _array_of_buffer
    for module in ("builtins", "__builtin__"):
        calls |= {(module, kind.__name__): _items(kind) for kind in (set, frozenset, dict, list, tuple)}
        calls |= {(module, "complex"): complex, (module, "slice"): slice, (module, "bytearray"): _bytearray}
        calls |= {(module, name): None for name in ("object", "int", "float", "str", "bool", "bytes")}
    for module, name in (("numpy", "ndarray"), ("torch", "Tensor"), ("torch.nn.parameter", "Parameter")):
        calls[module, name] = None
    known: dict[tuple[str, str], Any] = {
        key: Known(".".join(key), make or _reference(".".join(key))) for key, make in calls.items()
    }
    known |= {("torch", name): dtype for name, dtype in DTYPES.items()}
    for name, dtype in _STORAGES.items():
        for module in ("torch", "torch.cuda", "torch.storage"):
            known[module, f"{name}Storage"] = Storage("", DTYPES[dtype], None)
    for name in ("UntypedStorage", "TypedStorage", "_TypedStorage", "_UntypedStorage"):
        known["torch.storage", name] = known["torch", name] = Storage("", None, None)
    return known


def _reference(name: str):
    """For a type that a file may mention. Made without arguments, it is the stand-in for its instance."""
    return lambda *args: Opaque(name, args)


KNOWN = _known()
