"""LoRA against PEFT's formula written out in torch, and what a merge and an interceptor promise."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mammoclip_jax.errors import UserError
from mammoclip_jax.models import lora
from mammoclip_jax.models.bert import Bert, BertConfig
from mammoclip_jax.models.efficientnet import EfficientNet
from mammoclip_jax.models.gpt2 import Gpt2, Gpt2Config
from mammoclip_jax.models.layers import Conv

GPT2 = Gpt2Config(vocab_size=97, n_positions=12, n_embd=16, n_layer=2, n_head=2)
IDS = np.array([[2, 5, 17, 3, 0, 0], [2, 40, 41, 42, 43, 3]])
MASK = IDS != 0
C_ATTN = ".*/c_attn/kernel"
ALPHA = 32.0


def _trained(adapters, seed=1):
    """Adapters as after training: lora_b is no longer zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.1 * rng.standard_normal(x.shape)).astype(np.float32), adapters)


def _states(params, config=GPT2, remat="none", train=False, **options):
    """Not jitted here: an interceptor acts while a function is traced."""
    return Gpt2(config, remat=remat).apply({"params": params}, IDS, MASK, train=train, **options)[MASK]


def _close(ours, theirs, tolerance=1e-5):
    """Up to `tolerance` of the greatest absolute value."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: Gpt2(GPT2).init(jax.random.key(0), IDS, MASK, train=False)["params"])()


@pytest.fixture(scope="module")
def adapters(params):
    return lora.init(params, C_ATTN, rank=4, key=jax.random.key(1))


def test_adapters_mirror_the_matched_kernels(params, adapters):
    shapes = {path: x.shape for path, x in flatten_dict(adapters, sep="/").items()}
    assert shapes == {
        f"h_{i}/attn/c_attn/kernel/{part}": shape
        for i in range(2)
        for part, shape in (("lora_a", (16, 4)), ("lora_b", (4, 48)))
    }
    a = adapters["h_0"]["attn"]["c_attn"]["kernel"]["lora_a"]
    assert 0.2 < np.abs(a).max() <= 0.25  # kaiming_uniform(a=sqrt(5)): 1 / sqrt(16)
    assert not np.allclose(a, adapters["h_1"]["attn"]["c_attn"]["kernel"]["lora_a"])


def test_training_starts_from_the_base_model_exactly(params, adapters):
    jax.tree.map(np.testing.assert_array_equal, lora.merge(params, adapters, ALPHA), params)


def test_only_the_matched_kernels_change(params, adapters):
    before, after = (flatten_dict(x, sep="/") for x in (params, lora.merge(params, _trained(adapters), ALPHA)))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {"h_0/attn/c_attn/kernel", "h_1/attn/c_attn/kernel"}


@pytest.mark.parity
def test_dense_equals_pefts_formula():
    """result = W x + B A x * alpha / r (peft/tuners/lora/layer.py), and its gradients into A and B."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    base = torch.nn.Linear(10, 6)
    a, b = (torch.randn(shape, requires_grad=True) for shape in ((3, 10), (6, 3)))
    x = torch.randn(5, 10)
    theirs = base(x) + (ALPHA / 3) * torch.nn.functional.linear(torch.nn.functional.linear(x, a), b)
    (theirs**2).sum().backward()

    dense = {"kernel": base.weight.detach().numpy().T, "bias": base.bias.detach().numpy()}
    ours = {"kernel": {"lora_a": a.detach().numpy().T, "lora_b": b.detach().numpy().T}}

    def forward(adapters):
        return nn.Dense(6).apply({"params": lora.merge(dense, adapters, ALPHA)}, x.numpy())

    def inline(adapters):
        with lora.adapted(adapters, ALPHA):
            return nn.Dense(6).apply({"params": dense}, x.numpy())

    for function in (forward, inline):
        _close(jax.jit(function)(ours), theirs.detach().numpy())
        gradients = jax.jit(jax.grad(lambda p, function=function: (function(p) ** 2).sum()))(ours)["kernel"]
        _close(gradients["lora_a"], a.grad.numpy().T)
        _close(gradients["lora_b"], b.grad.numpy().T)


@pytest.mark.parity
def test_convolution_equals_pefts_formula():
    """There A is a k x k convolution to r channels and B a 1 x 1 one."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    x, weight, a, b = (torch.randn(shape) for shape in ((2, 3, 7, 6), (5, 3, 3, 3), (2, 3, 3, 3), (5, 2, 1, 1)))
    conv = torch.nn.functional.conv2d
    theirs = conv(x, weight, padding=1) + (ALPHA / 2) * conv(conv(x, a, padding=1), b)
    adapters = {"kernel": {"lora_a": a.numpy().transpose(2, 3, 1, 0).reshape(27, 2), "lora_b": b.numpy()[:, :, 0, 0].T}}
    params = lora.merge({"kernel": weight.numpy().transpose(2, 3, 1, 0)}, adapters, ALPHA)
    ours = Conv(5, 3).apply({"params": params}, x.numpy().transpose(0, 2, 3, 1), ((1, 1), (1, 1)))
    _close(ours, theirs.numpy().transpose(0, 2, 3, 1))


def test_a_written_out_sum_is_the_same_in_numpy(params, adapters):
    """W + alpha / r a b, without torch."""
    trained = _trained(adapters)
    pair = trained["h_1"]["attn"]["c_attn"]["kernel"]
    expected = params["h_1"]["attn"]["c_attn"]["kernel"] + ALPHA / 4 * pair["lora_a"] @ pair["lora_b"]
    ours = lora.merge(params, trained, ALPHA)["h_1"]["attn"]["c_attn"]["kernel"]
    np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("remat", ["none", "block"])
def test_the_interceptor_equals_the_merge(params, adapters, remat):
    def merged(adapters):
        return (_states(lora.merge(params, adapters, ALPHA)) ** 3).sum()

    def inline(adapters):
        with lora.adapted(adapters, ALPHA):
            return (_states(params, remat=remat) ** 3).sum()

    trained = _trained(adapters)
    one, two = (jax.jit(jax.value_and_grad(f))(trained) for f in (merged, inline))
    jax.tree.map(lambda a, b: _close(a, b, 1e-4), one, two)


def test_gradient_reaches_the_adapters_alone_and_training_lowers_the_loss(params, adapters):
    """At the start lora_a has no gradient, since lora_b is zero; the base parameters have none at any time."""
    target = np.random.default_rng(3).standard_normal((MASK.sum(), 16)).astype(np.float32)
    step = jax.jit(jax.value_and_grad(lambda p: ((_states(lora.merge(params, p, 8.0)) - target) ** 2).mean()))
    first, gradients = step(adapters)
    assert jax.tree.structure(gradients) == jax.tree.structure(adapters)
    for path, gradient in flatten_dict(gradients, sep="/").items():
        assert np.isfinite(gradient).all() and bool(np.any(gradient)) == path.endswith("lora_b"), path
    for _ in range(10):
        _, gradients = step(adapters)
        adapters = jax.tree.map(lambda p, g: p - 0.5 * g, adapters, gradients)
    assert step(adapters)[0] < 0.99 * first


def test_dropout_acts_on_the_adapters_input_alone(params, adapters):
    still = Gpt2Config(**{**vars(GPT2), "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0})

    @jax.jit
    def run(adapters, seed):
        with lora.adapted(adapters, ALPHA, dropout=0.5):
            return _states(params, still, train=True, rngs={"dropout": jax.random.key(seed)})

    trained = _trained(adapters)
    assert not np.allclose(run(trained, 0), run(trained, 1), atol=1e-3)
    np.testing.assert_array_equal(run(trained, 0), run(trained, 0))
    # At the start lora_b is zero, so only dropout on the base's own input could show.
    np.testing.assert_allclose(run(adapters, 0), jax.jit(_states)(params), atol=1e-5)

    @jax.jit
    def layer(seed):
        with lora.adapted({"kernel": {"lora_a": np.eye(2), "lora_b": np.eye(2)}}, 2.0, dropout=0.25):
            return nn.Dense(2).apply(
                {"params": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}},
                jnp.ones((4000, 2)),
                rngs={"dropout": jax.random.key(seed)},
            )

    values, counts = np.unique(np.asarray(layer(0)), return_counts=True)
    np.testing.assert_allclose(values, [0, 1 / 0.75], rtol=1e-6)
    assert abs(counts[0] / 8000 - 0.25) < 0.02


class Parts(nn.Module):
    """An encoder and a head, which methods of any name run, both or one."""

    def setup(self):
        self.text_encoder, self.head = nn.Dense(3), nn.Dense(2)

    def __call__(self, x, *, train):
        return self.head(self.text_encoder(x))

    of_views = __call__

    def encode_text(self, x, *, train):
        return self.text_encoder(x)

    def pool_text(self, x, *, train):
        return self.text_encoder(x).mean(axis=0)

    def project_text(self, x, *, train):
        return self.head(x[:, :3])


@pytest.mark.parametrize(
    "method",
    [
        None,
        "of_views",
        "encode_text",
        "pool_text",
        "project_text",
        Parts.pool_text,
        lambda module, x, train: module.head(module.text_encoder(x)),
    ],
)
def test_adapters_are_at_work_whatever_the_method_is_called(method):
    """Beside their layers, with a dropout that drops nothing, as merged into them."""
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    model = lora.AdaptedModel(Parts(), ".*kernel", rank=2, dropout=1e-9)
    params = model.init(jax.random.key(0), x, train=False)["params"]
    params = params | {lora.ADAPTERS: _trained(params[lora.ADAPTERS])}
    options = {} if method is None else {"method": method}
    beside = model.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.key(1)}, **options)
    _close(beside, model.apply({"params": params}, x, train=False, **options))
    base = {name: tree for name, tree in params.items() if name != lora.ADAPTERS}
    assert np.abs(beside - Parts().apply({"params": base}, x, train=True, **options)).max() > 0.05


def test_bfloat16_towers_keep_their_dtype(params, adapters):
    def run(params):
        with lora.adapted(_trained(adapters), ALPHA):
            return Gpt2(GPT2, jnp.bfloat16).apply({"params": params}, IDS, MASK, train=False)

    assert jax.eval_shape(run, params).dtype == jnp.bfloat16
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert {x.dtype for x in jax.tree.leaves(lora.merge(half, _trained(adapters), ALPHA))} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    "config, count",
    [
        (Gpt2Config(vocab_size=28896, n_embd=2560, n_layer=32, n_head=20), 2_621_440),  # MaMA's BioMedLM
        (Gpt2Config(), 294_912),  # PEFT's figure for GPT-2 small
    ],
)
def test_published_parameter_counts(config, count):
    shapes = jax.eval_shape(
        lambda: lora.init(
            Gpt2(config).init(jax.random.key(0), IDS, MASK, train=False)["params"], C_ATTN, 8, jax.random.key(1)
        )
    )
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == count


def test_it_fits_every_encoder():
    """By shapes: an adapted BERT and an adapted EfficientNet, convolutions included, merge to their own shapes."""
    bert = Bert(BertConfig(vocab_size=20, hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
    image = EfficientNet("b0", width=0.25, depth=0.3)
    for start, pattern in (
        (lambda: bert.init(jax.random.key(0), IDS, MASK, train=False), ".*/(query|value)/kernel"),
        (lambda: image.init(jax.random.key(0), jnp.zeros((1, 64, 48, 1)), train=False), ".*/kernel"),
    ):
        base = jax.eval_shape(start)["params"]
        merged = jax.eval_shape(
            lambda base=base, pattern=pattern: lora.merge(
                jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), base),
                lora.init(base, pattern, 2, jax.random.key(0)),
                ALPHA,
            )
        )
        assert jax.tree.map(lambda x: (x.shape, x.dtype), merged) == jax.tree.map(lambda x: (x.shape, x.dtype), base)


def test_mistakes_are_named(params, adapters):
    key = jax.random.key(0)
    with pytest.raises(UserError, match="no parameter path matches '.*/q_proj'"):
        lora.init(params, ".*/q_proj", 4, key)
    with pytest.raises(UserError, match="c_attn/bias has the shape"):
        lora.init(params, ".*/c_attn/", 4, key)
    with pytest.raises(UserError, match="rank=0"):
        lora.init(params, C_ATTN, 0, key)
    with pytest.raises(UserError, match="no parameter of that path"):
        lora.merge({"text_encoder": params}, adapters, ALPHA)
    pair = {"lora_a": np.zeros((16, 4)), "lora_b": np.zeros((4, 48))}
    with pytest.raises(UserError, match="kernel maps 16 inputs to 48 outputs"):
        lora.merge({"kernel": np.zeros((8, 24))}, {"kernel": pair}, ALPHA)
    with pytest.raises(UserError, match="no layer met"), lora.adapted({"text_encoder": adapters}, ALPHA):
        jax.eval_shape(_states, params)
    with (
        pytest.raises(UserError, match=r"no layer met its adapter \(elsewhere/kernel\)"),
        lora.adapted({**adapters, "elsewhere": {"kernel": pair}}, ALPHA),
    ):
        jax.eval_shape(lambda params: _states(params), params)  # traced anew
    kernel = {"kernel": np.zeros((3, 3, 2, 5), np.float32)}
    with pytest.raises(UserError, match="lora.merge"), lora.adapted(lora.init(kernel, "kernel", 1, key), ALPHA):
        Conv(5, 3).apply({"params": kernel}, jnp.zeros((1, 4, 4, 2)), ((1, 1), (1, 1)))
