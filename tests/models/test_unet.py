"""The U-Net equals the plain one of PyTorch, by its own names, at sizes that do not halve evenly; the pyramid's masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close
from flax.traverse_util import flatten_dict, unflatten_dict

from mammoclip_jax import models
from mammoclip_jax.errors import UserError
from mammoclip_jax.models import unet
from mammoclip_jax.weights.names.unet import write

SIZE = (2, 27, 38, 1)


def options(upsampling="transposed", **image):
    image = {"name": "unet", "width": 4, "depth": 3, "upsampling": upsampling} | image
    return {"image": image, "labels": ("breast", "mass"), "dtype": "float32"}


@functools.cache
def drawn(upsampling):
    """(model, variables in which everything is different, images)."""
    model, rng = models.segmenter(options(upsampling)), np.random.default_rng(0)
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1))))
    values = {}
    for name, leaf in flatten_dict(like, sep="/").items():
        kind = name.rpartition("/")[2]
        value = rng.normal(size=leaf.shape) * (2 / max(np.prod(leaf.shape[:-1]), 1)) ** 0.5
        values[name] = (rng.uniform(0.5, 1.5, leaf.shape) if kind in ("scale", "var") else value).astype(np.float32)
    return model, unflatten_dict(values, sep="/"), rng.normal(size=SIZE).astype(np.float32)


def twin(upsampling):
    """The same in torch, with the names of most code of it."""
    import torch
    from torch import nn

    def double(inner, outer, middle=0):
        middle, layers = middle or outer, []
        for a, b in ((inner, middle), (middle, outer)):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()]
        return nn.Sequential(*layers)

    class Wrapped(nn.Module):
        def __init__(self, **parts):
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

    class Net(nn.Module):
        def __init__(self, width=4, depth=3):
            super().__init__()
            linear = upsampling == "bilinear"
            self.depth, self.inc = depth, Wrapped(double_conv=double(1, width))
            for i in range(1, depth + 1):
                half = 2 if linear and i == depth else 1
                block = Wrapped(double_conv=double(width * 2 ** (i - 1), width * 2**i // half))
                setattr(self, f"down{i}", Wrapped(maxpool_conv=nn.Sequential(nn.MaxPool2d(2), block)))
                joined = width * 2 ** (depth - i + 1)
                half = 2 if linear and i < depth else 1
                up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
                up = up if linear else nn.ConvTranspose2d(joined, joined // 2, 2, stride=2)
                block = Wrapped(double_conv=double(joined, joined // 2 // half, joined // 2 if linear else 0))
                setattr(self, f"up{i}", Wrapped(up=up, conv=block))
            self.outc = Wrapped(conv=nn.Conv2d(width, 2, 1))

        def forward(self, x):
            maps = [self.inc.double_conv(x)]
            for i in range(1, self.depth + 1):
                pool, block = getattr(self, f"down{i}").maxpool_conv
                maps.append(block.double_conv(pool(maps[-1])))
            x = maps.pop()
            for i in range(1, self.depth + 1):
                level, skip = getattr(self, f"up{i}"), maps.pop()
                x = level.up(x)
                dy, dx = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
                x = nn.functional.pad(x, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2))
                x = level.conv.double_conv(torch.cat([skip, x], 1))
            return self.outc.conv(x)

    return Net()


@pytest.mark.parity
@pytest.mark.parametrize("upsampling", unet.UPSAMPLINGS)
def test_it_is_the_plain_u_net_of_torch(upsampling):
    """Logits in evaluation and in training, gradients, and running statistics."""
    torch = pytest.importorskip("torch")
    model, variables, x = drawn(upsampling)
    theirs = twin(upsampling)
    theirs.load_state_dict({name: torch.tensor(value) for name, value in write(variables).items()}, strict=True)
    theirs.eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)

    @jax.jit
    def ours(params, stats):
        logits, updated = model.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
        return (logits**2).mean(), updated["batch_stats"]

    close(jax.jit(model.apply)(variables, x), expected, 1e-5)
    (value, stats), slopes = jax.value_and_grad(ours, has_aux=True)(variables["params"], variables["batch_stats"])
    theirs.train()
    loss = (theirs(torch.tensor(x.transpose(0, 3, 1, 2))) ** 2).mean()
    loss.backward()
    close(value, loss.detach().numpy(), 1e-5)
    gradients = {name: value.grad.numpy() for name, value in theirs.named_parameters()}
    state = theirs.state_dict()
    for name, array in write({"params": slopes, "batch_stats": stats}).items():
        if not name.endswith("tracked"):
            close(array, gradients.get(name, state[name].numpy()), 1e-3, 1e-5)


@pytest.mark.parametrize("upsampling", unet.UPSAMPLINGS)
def test_every_pixel_of_any_image_has_its_logits(upsampling):
    model, variables, x = drawn(upsampling)
    logits = jax.jit(model.apply)(variables, x)
    assert logits.shape == (*SIZE[:3], 2) and logits.dtype == jnp.float32
    highest, maps = jax.jit(functools.partial(model.apply, method="encode_image"))(variables, x)
    np.testing.assert_allclose(highest, logits.max(axis=(1, 2)), rtol=1e-5, atol=1e-5)
    grids = model.image_encoder.stage_grids(*SIZE[1:3])
    assert {name: maps[name].shape[1:3] for name in grids} == {
        name: (SIZE[1] // stride, SIZE[2] // stride) for name, (stride, _) in grids.items()
    }


def test_doubling_equals_a_naive_loop():
    rng = np.random.default_rng(1)
    x, layer = rng.normal(size=(1, 2, 3, 4)).astype(np.float32), unet.Doubled(5)
    kernel, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 2, 4, 5), (5,)))
    found = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    for row, column in np.ndindex(4, 6):
        expected = x[0, row // 2, column // 2] @ kernel[row % 2, column % 2] + bias
        np.testing.assert_allclose(found[0, row, column], expected, rtol=1e-4, atol=1e-5)
    corners = unet.enlarged(jnp.array([[0.0, 1.0], [2.0, 3.0]])[None, :, :, None], (4, 3))[0, :, :, 0]
    np.testing.assert_allclose(corners, np.linspace(0, 2, 4)[:, None] + np.linspace(0, 1, 3), atol=1e-6)


def test_any_encoder_with_a_pyramid_gives_masks_of_the_image():
    image = {"name": "resnet", "variant": "18", "width": 8, "depths": (1, 1, 1, 1)}
    model = models.segmenter(options() | {"image": image, "stages": ("stage2", "stage3", "stage4"), "features": 8})
    logits = jax.eval_shape(
        lambda: model.apply(model.init(jax.random.key(0), jnp.zeros((1, 40, 56, 1))), jnp.zeros((1, 40, 56, 1)))
    )
    assert logits.shape == (1, 40, 56, 2)
    with pytest.raises(UserError, match="three stages"):
        models.segmenter(options() | {"image": image, "stages": ("stage2",)})
    wrong = models.segmenter(options() | {"image": image, "stages": ("stage2", "stage3", "stag4")})
    with pytest.raises(UserError, match="Did you mean 'stage4'"):
        jax.eval_shape(wrong.init, jax.random.key(0), jnp.zeros((1, 40, 56, 1)))


@pytest.mark.parametrize(
    "changes, message", [({"upsampling": "bilnear"}, "Did you mean 'bilinear'"), ({"widht": 4}, "Did you mean 'width'")]
)
def test_wrong_options_of_a_u_net_name_the_right_ones(changes, message):
    with pytest.raises(UserError, match=message):
        models.segmenter(options(**changes))
