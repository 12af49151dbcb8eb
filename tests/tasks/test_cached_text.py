"""A frozen text tower computed once: the same vectors, loss and gradients as when it runs at every step."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from mammoclip_jax import models
from mammoclip_jax.config import defaults
from mammoclip_jax.data.batches import breasts, image_text
from mammoclip_jax.data.batches.texts import Augment, TextOptions
from mammoclip_jax.data.text import tokenizer
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks import cached_text
from mammoclip_jax.training import mesh as meshes
from mammoclip_jax.training.step import init_variables

TEXTS = [f"finding {i} in the left breast" + ", with much more to be said of it" * (i % 3) for i in range(21)]


@dataclasses.dataclass
class Trainer:
    """What `prepare` looks at."""

    model: object
    mesh: object


@dataclasses.dataclass
class State:
    params: dict


class FakeDataset:
    """The interface of `shards.Dataset`: a breast of one image for each text."""

    def __init__(self, path, texts=TEXTS):
        self.path, self.info = path, {"preprocessing": {"height": 4, "width": 4, "bits": 8}}
        self.index = pd.DataFrame(
            [
                dict(
                    dataset="fake",
                    patient="p",
                    study=str(i),
                    image=str(i),
                    laterality="L",
                    view="CC",
                    split="train",
                    texts=[text],
                )
                for i, text in enumerate(texts)
            ]
        )

    def read(self, i):
        return np.zeros((4, 4), np.uint8)


def tiny_config(**data):
    config = defaults()
    config.model.image.update(name="resnet", variant="18", width=8, depths=(1, 1, 1, 1))
    config.model.text.update(
        name="bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config.model.update(dim=8, frozen=("text",), cached_text=True)
    config.model.projection.update(kind="mlp", dropout=0.5)
    config.data.update(text_length=24, **data)
    return config


@pytest.fixture(scope="module")
def tokens():
    return tokenizer.Tokenize(tokenizer.train_wordpiece([*TEXTS, "right"], 200))


@pytest.fixture(scope="module")
def trained(tokens):
    """(model, variables), the tower's numbers large enough that texts differ."""
    model = models.build(tiny_config().model, tokens.vocab_size)
    variables = jax.jit(lambda: init_variables(model, jax.random.key(0), (32, 32, 3), 24))()
    return model, variables


def prepare(trained, tokens, folder, config=None, texts=TEXTS):
    model, variables = trained
    trainer = Trainer(model, meshes.make_mesh({"data": -1}))
    cached_text.prepare(
        config or tiny_config(),
        trainer,
        State(variables["params"]),
        {"fake": FakeDataset(folder, texts)},
        tokens,
        folder,
    )
    return cached_text.table(folder)


def test_loss_and_gradients_are_those_of_the_tower_run_at_every_step(trained, tokens, tmp_path):
    model, variables = trained
    stored = prepare(trained, tokens, tmp_path).of(TEXTS[:8])
    assert stored.dtype == np.float32 and np.ptp(stored, axis=0).max() > 1e-3
    ids, mask = tokens.encode(TEXTS[:8], 24)
    images = jax.random.normal(jax.random.key(1), (8, 32, 32, 3))

    def loss(params, text):
        """As in training: dropout in the projections, the same key for both ways."""
        apply = lambda *inputs, method: model.apply(
            variables | {"params": params},
            *inputs,
            train=True,
            method=method,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(2)},
        )[0]
        image, _ = apply(images, method="encode_image")
        logits = jnp.exp(params["logit_scale"]) * image @ text(apply).T
        return -jnp.diagonal(jax.nn.log_softmax(logits)).mean()

    run = lambda apply: apply(ids, mask, method="encode_text")[0]
    cached = lambda apply: apply(stored, method="project_text")
    (one, by_run), (other, by_cache) = (
        jax.jit(jax.value_and_grad(lambda params, text=text: loss(params, text)))(variables["params"])
        for text in (run, cached)
    )
    np.testing.assert_allclose(other, one, rtol=1e-6)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(by_run), jax.tree.leaves(by_cache), strict=True):
        np.testing.assert_allclose(
            b, a, rtol=1e-4, atol=1e-5 * np.abs(a).max() + 1e-7, err_msg=jax.tree_util.keystr(path)
        )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(by_cache["text_encoder"]))
    assert np.any(by_cache["text_projection"]["dense"]["kernel"])


def test_batches_carry_the_features_of_their_texts(trained, tokens, tmp_path):
    stored = prepare(trained, tokens, tmp_path, tiny_config(flip_horizontal=0.5))
    batch = next(
        image_text.train_iterator(
            [FakeDataset(tmp_path)],
            tokens,
            image_text.Options(24, augment=Augment(0.5, 0.0, 0.0)),
            batch_size=16,
            seed=0,
            features=stored,
        )
    )
    model, variables = trained
    pooled, _ = model.apply(
        variables, batch["token_ids"].reshape(32, -1), batch["token_mask"].reshape(32, -1), method="pool_text"
    )
    assert batch["flip_horizontal"].any() and not batch["flip_horizontal"].all()  # "left" and "right" are both there
    np.testing.assert_allclose(batch["text_features"].reshape(32, -1), pooled, atol=2e-6)


def test_they_are_kept_until_weights_tokenizer_or_texts_change(trained, tokens, tmp_path):
    model, variables = trained
    prepare(trained, tokens, tmp_path)
    written = (tmp_path / "text_features.npy").stat().st_mtime_ns

    def made_anew(*arguments, **options):
        nonlocal written
        prepare(*arguments, **options)
        before, written = written, (tmp_path / "text_features.npy").stat().st_mtime_ns
        return written != before

    assert not made_anew(trained, tokens, tmp_path)
    assert not made_anew(trained, tokens, tmp_path, texts=TEXTS[:5])
    other = jax.tree.map(lambda x: 2 * x, variables)
    assert made_anew((model, other), tokens, tmp_path)
    assert made_anew(trained, tokens, tmp_path)
    assert made_anew(trained, tokens, tmp_path, texts=[*TEXTS, "a new one"])
    assert made_anew(trained, tokenizer.Tokenize(tokenizer.train_wordpiece(TEXTS, 120)), tmp_path)
    (tmp_path / "text_features.json").write_text((tmp_path / "text_features.json").read_text()[:50])
    assert made_anew(trained, tokens, tmp_path)


def test_no_text_is_written_down(trained, tokens, tmp_path):
    prepare(trained, tokens, tmp_path)
    assert "finding" not in (tmp_path / "text_features.json").read_text()
    assert len(json.loads((tmp_path / "text_features.json").read_text())["keys"]) == len(TEXTS)


def test_a_text_without_features_is_an_error(trained, tokens, tmp_path):
    with pytest.raises(UserError, match="no row for a text or image that was drawn.*Remove it"):
        prepare(trained, tokens, tmp_path).of(["never seen"])


def test_augmented_and_mirrored_texts_are_counted(tmp_path):
    pd.DataFrame({"text": ["left one", "gone"], "augmented": ["one, left", "x"]}).to_parquet(
        tmp_path / "texts_augmented.parquet"
    )
    dataset = FakeDataset(tmp_path, ["left one", "two"])
    drawable = lambda mirrored, **options: breasts.drawable_texts(
        [dataset], "train", text=TextOptions(**options), mirrored=mirrored
    )
    assert drawable(False) == {"left one", "two"}
    dataset.index["view"] = ["CC", "AT"]
    assert breasts.drawable_texts([dataset], "train", text=TextOptions(), mirrored=False, slots=("AT", "MLO")) == {
        "two"
    }
    dataset.index["view"] = "CC"
    assert drawable(True, augmented=0.5) == {"left one", "right one", "two", "one, left", "one, right"}


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda config: config.model.update(frozen=("image",)),
            "config.model.frozen=.*only a tower that is not trained",
        ),
        (lambda config: config.data.update(shuffle_sentences=0.5), "config.data.shuffle_sentences=0.5"),
        (lambda config: config.data.update(captions="mama"), "config.data.captions='mama'"),
        (lambda config: config.data.update(sentences=5), "config.data.sentences=5"),
    ],
)
def test_what_does_not_go_with_it_is_named(change, message):
    config = tiny_config()
    cached_text.check(config)
    change(config)
    with pytest.raises(UserError, match=message):
        cached_text.check(config)
