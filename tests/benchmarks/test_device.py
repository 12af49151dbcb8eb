"""One device's measurement: the order of its parts, what full memory and time make of it, its checks and its advice."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mammoclip_jax.benchmarks import device, device_command, device_parts, device_process
from mammoclip_jax.errors import UserError
from mammoclip_jax.models import depthwise, image_encoder

CHECK = {"what": "depthwise sums 3x3 stride 1", "dtype": "float32", "error": 1e-7, "limit": 5e-5, "right": True}
SHAPE = {"where": "stage 2", "map": "8x4x4x8", "kernel": 3, "stride": 1, "blocks": 4, "bound_ms": None}
TIMES = [
    SHAPE | {"form": "native", "forward_ms": 1.0, "dx_ms": 2.0, "dk_ms": 9.0},
    SHAPE | {"form": "sums", "forward_ms": 1.5, "dx_ms": 3.0, "dk_ms": 4.0},
    SHAPE | {"form": "shifted", "forward_ms": 3.0, "dx_ms": 4.0, "dk_ms": None},
]


class Fake:
    """Stands for `device_process.part`: ours takes 10 ms an image up to `most` images, PyTorch 12.5 and 9 compiled."""

    def __init__(self, most=40, checks=(CHECK,), platform="gpu"):
        self.most, self.checks, self.platform, self.calls = most, list(checks), platform, []

    def __call__(self, module, name, specification, limit, variables):
        side = "torch" if module == device.PEER else "jax"
        assert 0 < limit <= device.LIMITS[name]
        if name != "step":
            self.calls.append(name)
            return self.checks if name == "right" else TIMES, ""
        image, batch = specification["image"], specification["batch"]
        kind = [image[key] for key in ("remat", "depthwise", "attention") if key in image]
        kind += ["compiled"] * specification["compiled"] + ["triton"] * (
            device.TRITON in variables.get("XLA_FLAGS", "")
        )
        self.calls.append(" ".join([side, image["name"], str(batch), *kind]))
        lines = [{"device": "NVIDIA H200", "platform": self.platform, "form": "auto: sums", "parameters": 100}]
        lines += [{"flops": 10**12, "peak_flops": 1e15}] * specification["count"]
        lines.append({"forward_seconds": 0.002 * batch})
        if batch > self.most:
            return lines, device_process.FULL
        each = 0.01 if side == "jax" else 0.009 if specification["compiled"] else 0.0125
        return [
            *lines,
            {"seconds": each * batch, "p90": each * batch, "peak_bytes": 2**30 * batch, "peak_of": "device"},
        ], ""


def measure(fake, monkeypatch, seconds=480.0, peer=True, **options):
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: peer or None)
    monkeypatch.setattr(device, "gpu_facts", lambda: {"driver": "580.1", "power_cap": "700 W"})
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    said = []
    whole = device.plan(steps=3, warm_up=1)
    return device.measure(whole, seconds=seconds, run=fake, say=said.append, **options), said


def test_batches_grow_until_memory_is_full_and_then_maps_are_computed_again(monkeypatch):
    fake = Fake()
    found, said = measure(fake, monkeypatch)
    assert fake.calls == [
        "right",
        "depthwise",
        *("jax efficientnet 8", "torch efficientnet 8", "jax dinov2 8", "torch dinov2 8"),
        *("jax efficientnet 32", "torch efficientnet 32", "jax dinov2 32", "torch dinov2 32"),
        *("jax efficientnet 64", "jax efficientnet 64 expand", "torch efficientnet 64"),
        *("jax dinov2 64", "jax dinov2 64 block", "torch dinov2 64"),
        *("torch efficientnet 32 compiled", "jax efficientnet 8 native", "jax efficientnet 8 triton"),
        *("torch dinov2 32 compiled", "jax dinov2 8 chunked"),
    ]
    assert len(said) == len(fake.calls) and "right: 1 rows, 0 wrong" in said[0] and "64 images" in said[10]
    first, full = found["rows"][0], found["rows"][8]
    assert (first["images_per_second"], first["forward_images_per_second"], first["ms"]) == (100.0, 500.0, 80.0)
    assert (
        first["mfu"] == 0.3 and found["rows"][1]["mfu"] == 0.24
    )  # three passes of 1e12 at 100 images a second, of 1e15
    assert (first["peak_gib"], first["power_cap"], first["driver"]) == (8.0, "700 W", "580.1")
    assert first["size"] == "1520x912" and first["dtype"] == "bfloat16" and "jax " in first["versions"]
    assert (full["status"], full["images_per_second"], full["forward_images_per_second"]) == (
        "out of memory",
        None,
        500.0,
    )
    assert {tuple(row) for row in found["rows"]} == {tuple(first)}  # the columns of one table
    assert not found["wrong"] and not found["unfinished"]


def test_the_advice_names_batch_form_and_what_pytorch_does():
    """By hand: 1 / 0.009 images a second compiled, ours 100."""
    model = device.plan(steps=1, warm_up=1).models[0]
    facts = {"driver": "1", "power_cap": "2 W"}

    def row(side, batch, each, form, parameters=100, ended=""):
        specification = {"batch": batch, "image": model.image, "dtype": "bfloat16"}
        found = {"seconds": each * batch, "form": form, "parameters": parameters}
        return device.row(model, side, specification, found, ended, facts)

    rows = [row("jax", 8, 0.012, "auto: sums"), row("jax", 32, 0.01, "auto: sums"), row("torch", 32, 0.02, "eager")]
    (line,) = device.advice(rows, [], [])
    assert line == (
        "EfficientNet-B5: 32 images a step, remat none, auto: sums: 100.0 images/s in training; PyTorch at best 50.0 "
        "(eager, 32 images): ours take 0.50 of its time an image."
    )
    assert "NOT the same work" in device.advice([*rows[:2], row("torch", 8, 0.01, "eager", 110)], [], [])[0]
    assert device.advice([row("jax", 8, 0.01, "", ended="failed: x")], [], []) == [
        "EfficientNet-B5: no step was measured."
    ]


def test_the_fastest_formulation_is_of_each_pass_and_never_a_wrong_one():
    (line,) = device.advice([], TIMES, [])
    assert line == (
        "Depthwise convolutions, all blocks: forward native 4 ms, sums 6 ms, shifted 12 ms; "
        "dx native 8 ms, sums 12 ms, shifted 16 ms; dk sums 16 ms, native 36 ms."
    )
    first, last = device.advice([], TIMES, ["depthwise native 3x3 stride 1 float32"])
    assert first.startswith("WRONG on this device") and "native" not in last and "forward sums 6 ms" in last


def test_what_is_wrong_or_not_done_is_said(monkeypatch):
    fake = Fake(checks=[CHECK, CHECK | {"right": False, "dtype": "bfloat16"}])
    found, _ = measure(fake, monkeypatch, only=["right"])
    assert (
        fake.calls == ["right"] and found["rows"] == [] and found["wrong"] == ["depthwise sums 3x3 stride 1 bfloat16"]
    )
    said = device_command.note(found, str)
    assert "right: 1 of 2 checks" in said and "WRONG: {" in said and "do not train with it" in said
    fake = Fake()
    monkeypatch.setattr(device, "LEAST", 100)
    with pytest.raises(UserError, match="nothing was measured within 99 s"):
        measure(fake, monkeypatch, seconds=99, only=["right"])
    found, _ = measure(fake, monkeypatch, seconds=99, only=["step"], peer=False)
    assert fake.calls == [] and [row["status"] for row in found["rows"]] == ["no time left"] * 2
    with pytest.raises(UserError, match="--parts=speed does not exist"):
        measure(fake, monkeypatch, only=["speed"])


def test_without_pytorch_or_a_gpu_ours_alone_is_measured(monkeypatch):
    fake = Fake(most=8, platform="cpu")
    measure(fake, monkeypatch, peer=False, only=["step"])
    assert not any("torch" in call or "native" in call or "chunked" in call for call in fake.calls)


@pytest.mark.parametrize(
    "how, seconds, lines, ended",
    [
        ("done", 60, [{"a": 1}, {"second": 2}], ""),
        ("full", 60, [{"a": 1}], "out of memory"),
        ("fails", 60, [{"a": 1}], "failed: RuntimeError: no such kernel"),
        ("hangs", 5, [{"a": 1}], "over 5 s"),
    ],
)
def test_a_part_is_a_process_whose_end_is_told(how, seconds, lines, ended):
    variables = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    assert device_process.part("fake_part", how, {"a": 1}, seconds, variables) == (lines, ended)


def test_the_reason_of_an_end():
    assert device_process.why(0, "a warning") == "" and device_process.why(-9, "") == "out of memory"
    assert device_process.why(1, "torch.OutOfMemoryError: CUDA out of memory.") == "out of memory"
    assert device_process.why(3, "") == "failed: ended with status 3"


def test_the_checks_have_a_cpu_beside_the_accelerator(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    variables = device_process.environment(False, "--theirs")
    assert variables["JAX_PLATFORMS"] == "cuda,cpu" and variables["XLA_FLAGS"] == "--mine --theirs"
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert device_process.environment(True)["JAX_PLATFORMS"] == "cpu"
    assert "optimization_level=0" in device_process.environment(True)["XLA_FLAGS"]


@pytest.mark.parametrize(
    "said, facts",
    [
        ("580.95.05, 700.00", ("580.95.05", "700 W")),
        ("535.1, [N/A]", ("535.1", "not known")),
        ("", ("not known", "not known")),
    ],
)
def test_driver_and_power_cap_are_nvidia_smis(said, facts, tmp_path):
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\nprintf '%s' '{said}'\n")
    command.chmod(0o755)
    assert tuple(device_process.gpu_facts((str(command),)).values()) == facts
    assert set(device_process.gpu_facts((str(tmp_path / "absent"),)).values()) == {"not known"}


def test_the_stages_of_b5_at_full_size():
    specification = {"variant": "b5", "options": {}, "height": 1520, "width": 912}
    rows = device_parts.stages(specification)
    found = {(*size, spec.expanded, spec.size, spec.stride): count for _, spec, count, size in rows}
    assert found[380, 228, 240, 3, 1] == 4 and found[190, 114, 384, 5, 1] == 4 and found[95, 57, 768, 3, 1] == 6
    assert found[95, 57, 1056, 5, 1] == 6 and found[48, 29, 1824, 5, 1] == 8 and found[760, 456, 144, 3, 2] == 1
    assert sum(found.values()) == 39 and rows[0][3] == (380, 228)


def test_a_wrong_formulation_or_attention_is_found(monkeypatch):
    monkeypatch.setattr(device_parts, "CASES", device_parts.CASES[:1])
    right = depthwise.depthwise_conv

    def faulty(x, kernel, formulation, **options):
        return right(
            x, kernel * (1.001 if formulation == "sums" else 1), options["stride"], options["padding"], formulation
        )

    monkeypatch.setattr(device_parts.convolution, "depthwise_conv", faulty)
    lines = list(device_parts._right_convolutions(True))
    assert len(lines) == 6 and all(0 < line["limit"] < 0.1 for line in lines)
    wrong = [(line["what"], line["dtype"]) for line in lines if not line["right"]]
    assert wrong == [("depthwise sums 3x3 stride 1", "float32")]  # bfloat16 cannot tell a thousandth
    plain = device_parts.attention

    def swapped(query, key, value, how, chunk=0):
        return plain(query, key, value, "plain") * (np.nan if how == "flash" else 1)

    monkeypatch.setattr(device_parts, "attention", swapped)
    lines = list(device_parts._right_attention(True))
    assert [line["what"] for line in lines if not line["right"]] == ["attention flash"] * 2 and len(lines) == 6


def test_a_depthwise_row_has_all_passes_of_all_formulations():
    specification = dict(
        variant="b0", options=dict(width=0.25, depth=0.25), batch=1, height=8, width=8, dtype="float32"
    )
    lines = list(device_parts.depthwise(specification | {"steps": 1, "first": 1}))
    assert [line["form"] for line in lines] == list(depthwise.FORMULATIONS)
    assert all(line[f"{name}_ms"] > 0 for line in lines for name in device_parts.PASSES)


def test_a_step_is_forward_alone_and_training():
    image = dict(name="vit", variant="tiny", width=16, heads=2, depth=1, size=32)
    specification = dict(image=image, batch=2, height=32, width=32, dtype="bfloat16", steps=2, warm_up=1, count=True)
    found = {}
    for line in device_parts.step(specification):
        found |= line
    assert found["device"] == "cpu" and found["platform"] == "cpu" and found["form"] == "auto"
    assert 0 < found["forward_seconds"] and 0 < found["seconds"] <= found["p90"]
    assert found["peak_bytes"] > 0 and found["peak_of"] == "process" and found["compile_seconds"] > 0
    encoder = image_encoder(image, jnp.float32)
    variables = jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
    assert found["parameters"] == sum(x.size for x in jax.tree.leaves(variables))
    # The patches' product, and of the block's four tokens and class token 12 C^2 each and both products of attention.
    assert found["flops"] == 2 * (4 * 16 * 16**2 * 3 + 5 * 12 * 16**2 + 2 * 5 * 5 * 16)


def test_few_packages_are_enough():
    """As on a machine with jax, flax and optax alone; each command line ends before it measures."""
    absent = (
        "ml_collections",
        "grain",
        "clu",
        "orbax",
        "pandas",
        "pyarrow",
        "cv2",
        "pydicom",
        "transformers",
        "sklearn",
    )
    program = (
        f"import sys\nfor name in {absent}: sys.modules[name] = None\n"
        "import mammoclip_jax.benchmarks.device_parts, mammoclip_jax.benchmark as b, mammoclip_jax.command as c\n"
        "b.define_flags(); c.run(b.main)"
    )
    command = [sys.executable, "-c", program, "--mode=device", "--parts=speed"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "--parts=speed does not exist" in done.stderr, done.stderr


@pytest.mark.parity
def test_pytorch_does_the_same_work():
    """Both encoders of the plan have timm's number of parameters, but for the class token's position."""
    timm = pytest.importorskip("timm")
    pytest.importorskip("torch")
    for model, apart in zip(device.plan(steps=1, warm_up=1).models, (0, 768)):
        encoder = image_encoder(model.image, jnp.bfloat16)
        ours = jax.eval_shape(lambda: encoder.init(jax.random.key(0), jnp.zeros((1, 70, 70, 3)), train=False))
        theirs = timm.create_model(model.peer[0], num_classes=0, **model.peer[1])
        count = sum(x.size for x in jax.tree.leaves(ours["params"]))
        assert count - sum(p.numel() for p in theirs.parameters()) == apart


@pytest.mark.parity
def test_the_peer_is_measured_as_ours_is():
    pytest.importorskip("timm")
    from mammoclip_jax.benchmarks import device_torch_peer

    specification = dict(
        batch=2, height=32, width=32, dtype="bfloat16", steps=2, warm_up=1, compiled=False, platform="cpu"
    )
    peer = ("vit_tiny_patch16_224", dict(depth=1, img_size=32))
    found = {}
    for line in device_torch_peer.step(specification | {"peer": peer}):
        found |= line
    assert found["form"] == "eager" and found["parameters"] > 0
    assert 0 < found["forward_seconds"] and 0 < found["seconds"] <= found["p90"] and found["compile_seconds"] > 0
    with pytest.raises(RuntimeError, match="has no tpu here"):
        next(device_torch_peer.step(specification | {"peer": peer, "platform": "tpu"}))


@pytest.mark.slow
def test_a_trial_on_this_cpu(tmp_path):
    command = [sys.executable, "-m", "mammoclip_jax.benchmark", "--mode=device", "--small", "--steps=2", "--warm_up=1"]
    command.append("--time_limit=1500")
    variables = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([*command, f"--csv={tmp_path}/rows.csv"], capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    assert "right: 19 of 19 checks" in done.stdout and "small EfficientNet: 2 images a step" in done.stdout
    assert "Depthwise convolutions, all blocks: forward" in done.stdout and "jax small ViT" in done.stderr
    assert "its figures say nothing" in done.stdout
    assert (tmp_path / "rows.csv").read_text().startswith("side,model,size,batch,dtype,form,remat,")
