"""A state dict is found in whatever file or folder people publish: wrapped, sharded, with a config, with metadata."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from mammoclip_jax.errors import UserError
from mammoclip_jax.weights import safetensors_file, torch_writer, weight_files

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.zeros((), np.float32),
    "b": np.array([1.5, -2], ml_dtypes.bfloat16),
    "n": np.array([7], np.int64),
}
NAMES = {"float32": "F32", "bfloat16": "BF16", "int64": "I64", "float16": "F16", "bool": "BOOL"}


def safetensors(path, arrays=None, metadata=None):
    """A safetensors file by the format's description."""
    header, content = {"__metadata__": metadata} if metadata else {}, b""
    for name, value in (ARRAYS if arrays is None else arrays).items():
        header[name] = {
            "dtype": NAMES[value.dtype.name],
            "shape": value.shape,
            "data_offsets": [len(content), len(content) + value.nbytes],
        }
        content += value.tobytes()
    return sealed(path, header, content)


def sealed(path, header, content):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


def index(folder, shards, name="model.safetensors.index.json"):
    """The index of shards {file: keys}."""
    (folder / name).write_text(json.dumps({"weight_map": {key: file for file, keys in shards.items() for key in keys}}))


def same(state, wanted=None):
    wanted = ARRAYS if wanted is None else wanted
    assert set(state) == set(wanted)
    for key, value in wanted.items():
        assert state[key].dtype == value.dtype and state[key].shape == value.shape
        assert state[key].tobytes() == value.tobytes()


@pytest.mark.parametrize("place", ["model", "state_dict", "model_state_dict", "module", "ema", ""])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_state_is_found(tmp_path, place, prefix):
    state = {prefix + key: value for key, value in ARRAYS.items()}
    path = tmp_path / "model-best.tar"
    rest = {"epoch": 7, "config": {"image": "b5"}}
    torch_writer.write(path, {place: state} | rest if place else state | rest)
    file = weight_files.read(path)
    same(file.state)
    assert file.rest == rest and file.config is None and file.path == path


def test_a_prefix_of_some_keys_stays(tmp_path):
    state = {"module.a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    torch_writer.write(tmp_path / "a.pt", state)
    assert set(weight_files.read(tmp_path / "a.pt").state) == set(state)


def test_model_comes_before_ema_and_the_other_is_kept(tmp_path):
    ones, twos = {"a": np.ones(2, np.float32)}, {"a": np.full(2, 2, np.float32)}
    torch_writer.write(tmp_path / "a.pt", {"ema": twos, "model": ones | {"version": 3}})
    file = weight_files.read(tmp_path / "a.pt")
    same(file.state, ones)
    same(file.rest["ema"], twos)
    assert file.rest["model"] == {"version": 3}


def test_predictions_beside_a_state_are_not_the_state(tmp_path):
    torch_writer.write(tmp_path / "a.pth", {"predictions": np.zeros(4), "auroc": 0.9, "model": ARRAYS})
    file = weight_files.read(tmp_path / "a.pth")
    same(file.state)
    assert file.rest["predictions"].shape == (4,) and file.rest["auroc"] == 0.9


def test_files_without_a_state_say_what_they_hold(tmp_path):
    path = tmp_path / "optimiser.pt"
    torch_writer.write(path, {"epoch": 3, "optimizer": {"lr": 0.1}})
    with pytest.raises(UserError, match="optimiser.pt: there is no state dict.*it holds a dict with epoch, optimizer"):
        weight_files.read(path)
    torch_writer.write(path, [1, 2])
    with pytest.raises(UserError, match="it holds list"):
        weight_files.read(path)
    torch_writer.write(path, {})
    with pytest.raises(UserError, match="no state dict"):
        weight_files.read(path)
    with pytest.raises(UserError, match="no-such: there is no such file or folder"):
        weight_files.read(tmp_path / "no-such")


@pytest.mark.parametrize("place", [None, "model", "state_dict"])
def test_a_whole_module_is_refused_with_advice(tmp_path, place, monkeypatch):
    from mammoclip_jax.weights import torch_file
    from mammoclip_jax.weights.unpickle import Opaque

    module = Opaque("torch.nn.modules.linear.Linear")
    monkeypatch.setattr(torch_file, "read", lambda path: {place: module, "epoch": 1} if place else module)
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"whole torch.nn.modules.linear.Linear object.*model.state_dict\(\)"):
        weight_files.read(tmp_path / "a.pt")


@pytest.mark.parity
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_whole_module_saved_by_torch(tmp_path, wrapped):
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(3, 4)
    torch.save({"model": module, "epoch": 1} if wrapped else module, tmp_path / "a.pt")
    with pytest.raises(UserError, match="whole torch.nn.modules.linear.Linear object"):
        weight_files.read(tmp_path / "a.pt")


def test_safetensors(tmp_path):
    path = safetensors(
        tmp_path / "x.safetensors",
        ARRAYS | {"e": np.empty((0, 3), np.float16), "t": np.array([True, False])},
        {"format": "pt"},
    )
    file = weight_files.read(path)
    same(file.state, ARRAYS | {"e": np.empty((0, 3), np.float16), "t": np.array([True, False])})
    assert file.rest == {"metadata": {"format": "pt"}} and file.config is None
    assert not file.state["a.weight"].flags.owndata


def test_safetensors_of_their_library(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    arrays = {key: value for key, value in ARRAYS.items() if key != "b"} | {"h": np.ones((3, 1), np.float16)}
    library.save_file(arrays, tmp_path / "x.safetensors", {"a": "b"})
    state, metadata = safetensors_file.read(tmp_path / "x.safetensors")
    same(state, arrays)
    assert metadata == {"a": "b"}


@pytest.mark.parity
def test_safetensors_of_torch(tmp_path):
    torch, library = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    values = {
        str(dtype): torch.arange(5).to(dtype)
        for dtype in (
            torch.bfloat16,
            torch.float16,
            torch.float64,
            torch.int8,
            torch.uint16,
            torch.bool,
            torch.float8_e5m2,
        )
    }
    library.save_file(values, tmp_path / "x.safetensors")
    state = weight_files.read(tmp_path / "x.safetensors").state
    for key, value in values.items():
        assert f"torch.{state[key].dtype.name}" == key
        np.testing.assert_array_equal(state[key].astype(np.float32), value.float().numpy())


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(data_offsets=[0, 16])},
        {"a": entry(shape=[3])},
        {"a": entry(data_offsets=[-8, 0])},
        {"a": entry(shape=[-1, -2])},
        {"a": entry(dtype="F31")},
        {"a": {"dtype": "F32"}},
        {"a": 3},
        [1],
        {"a": entry(shape=[1], data_offsets=[-8, -4])},
        {"a": entry(shape=[0])},
        {"a": entry(shape=[-2], data_offsets=[8, 0])},
        {"a": entry(shape=[1 << 40], data_offsets=[0, 1 << 42])},
    ],
)
def test_damaged_safetensors(tmp_path, header):
    with pytest.raises(UserError, match="x.safetensors: no safetensors file, or a damaged one"):
        weight_files.read(sealed(tmp_path / "x.safetensors", header, bytes(8)))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_in_place_of_the_weights(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(UserError, match=f"{name}: this is a git-lfs pointer.*git lfs pull"):
        weight_files.read(tmp_path)


def test_cut_safetensors(tmp_path):
    path = safetensors(tmp_path / "x.safetensors")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            weight_files.read(path)
    path.write_bytes(struct.pack("<Q", 1 << 62) + whole[8:])
    with pytest.raises(UserError):
        weight_files.read(path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "anything.ckpt"])
def test_folders(tmp_path, name):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "vocab.txt").write_text("a")
    if name.endswith(".safetensors"):
        safetensors(tmp_path / name)
    else:
        torch_writer.write(tmp_path / name, ARRAYS)
    file = weight_files.read(tmp_path)
    same(file.state)
    assert file.config == {"model_type": "bert"} and file.path == tmp_path
    assert weight_files.in_folder(tmp_path) == [tmp_path / name]


def test_safetensors_come_before_pytorch(tmp_path):
    safetensors(tmp_path / "model.safetensors")
    torch_writer.write(tmp_path / "pytorch_model.bin", {"other": np.zeros(1, np.float32)})
    same(weight_files.read(tmp_path).state)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards(tmp_path, kind):
    stem = "model" if kind == "safetensors" else "pytorch_model"
    keys = list(ARRAYS)
    shards = {f"{stem}-00001-of-00002.{kind}": keys[:2], f"{stem}-00002-of-00002.{kind}": keys[2:]}
    index(tmp_path, shards, f"{stem}.{kind}.index.json")
    for name, part in shards.items():
        write = safetensors if kind == "safetensors" else torch_writer.write
        write(tmp_path / name, {key: ARRAYS[key] for key in part})
    (tmp_path / "training_args.bin").write_bytes(b"not read")
    same(weight_files.read(tmp_path).state)
    assert [file.name for file in weight_files.in_folder(tmp_path)] == sorted(shards)
    (tmp_path / f"{stem}-00002-of-00002.{kind}").unlink()
    with pytest.raises(UserError, match=f"names 2 shards; missing: {stem}-00002-of-00002.{kind}"):
        weight_files.read(tmp_path)


def test_shards_that_do_not_fit_their_index(tmp_path):
    safetensors(tmp_path / "s1.safetensors")
    index(tmp_path, {"s1.safetensors": [*ARRAYS, "gone"]})
    with pytest.raises(UserError, match="names gone and 0 more keys that no shard has"):
        weight_files.read(tmp_path)
    safetensors(tmp_path / "s2.safetensors")
    index(tmp_path, {"s1.safetensors": ["a.weight"], "s2.safetensors": ["b"]})
    with pytest.raises(UserError, match="s2.safetensors: a.bias is also in another shard"):
        weight_files.read(tmp_path)
    index(tmp_path, {"../s1.safetensors": ["a.weight"]})
    with pytest.raises(UserError, match=r"'\.\./s1.safetensors' is no name of a file beside it"):
        weight_files.read(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError, match='has no "weight_map"'):
        weight_files.read(tmp_path)


def test_folders_that_leave_a_choice_or_none(tmp_path):
    with pytest.raises(UserError, match="there is no weights file"):
        weight_files.read(tmp_path)
    for name in ("b2.tar", "b5.tar"):
        torch_writer.write(tmp_path / name, ARRAYS)
    with pytest.raises(UserError, match=r"there are 2 weights files \(b2.tar, b5.tar\). Give the path of one"):
        weight_files.read(tmp_path)


@pytest.mark.parametrize("content,wanted", [("{", "no JSON"), ("[1]", "holds a list")])
def test_a_damaged_config_is_named(tmp_path, content, wanted):
    safetensors(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=f"config.json: {wanted}"):
        weight_files.read(tmp_path)
