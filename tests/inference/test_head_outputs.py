"""What a named head makes of the views of breasts, against the module called by hand."""

import jax
import numpy as np
import pytest
from test_image_features import HEIGHT, WIDTH, base_config, meta_of

from mammoclip_jax import models
from mammoclip_jax.data.text import tokenizer
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.dual_encoder import DualEncoder
from mammoclip_jax.training import augment
from mammoclip_jax.training.step import init_variables


@pytest.fixture(scope="module")
def model():
    config = base_config()
    config.data.text_length = 8
    config.model.text.update(
        name="bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config.model.dim = 8
    config.model.heads.columns = dict(kind="cross_view", stage="stage2", cell=(2, 2), heads=2)
    config.model.heads.local = dict(stage="stage2", hidden=8, dim=8)
    words = tokenizer.Tokenize(tokenizer.train_wordpiece(["a mass", "no mass"], 200))
    module = models.build(config.model, words.vocab_size)
    variables = jax.jit(lambda key: init_variables(module, key, (HEIGHT, WIDTH, 1), 8))(jax.random.key(1))
    return DualEncoder(variables, meta_of(config, tokenizer=words.to_json()), 0, batch_size=2)


def test_outputs_are_those_of_the_head_over_the_stage_maps_of_each_pair(model):
    pairs = np.random.default_rng(0).integers(0, 255, (3, 2, HEIGHT, WIDTH), dtype=np.uint8)
    found = model.head_outputs("columns", pairs)
    assert set(found) == {"cells", "rebuilt", "there", "column_cosines"} and found["there"].all()
    encoder = models.image_encoder(model.config.model.image.to_dict())
    head = models.heads_of(model.config.model.heads.to_dict()).makers["columns"](parent=None)
    params = model._variables["params"]
    towers = {kind: tree["image_encoder"] for kind, tree in model._variables.items() if "image_encoder" in tree}

    @jax.jit
    def by_hand(pixels):
        maps = encoder.apply(towers, pixels, train=False)[1]["stage2"]
        inputs = {"image/stage2": maps.reshape(3, 2, *maps.shape[1:])}
        inputs |= {"mask": np.ones(3, bool), "view_mask": np.ones((3, 2), bool)}
        return head.apply({"params": params["heads"]["columns"]}, inputs, False)

    expected = by_hand(augment.eval_images(pairs.reshape(6, HEIGHT, WIDTH), augment.preprocess_options(model.config)))
    for part in ("cells", "rebuilt", "column_cosines"):
        np.testing.assert_allclose(found[part], expected[part], atol=1e-4)


def test_heads_that_cannot_be_asked_are_named(model):
    pairs = np.zeros((1, 2, HEIGHT, WIDTH), np.uint8)
    with pytest.raises(UserError, match="head in config.model.heads 'column'. Did you mean 'columns'"):
        model.head_outputs("column", pairs)
    with pytest.raises(UserError, match="text/states"):
        model.head_outputs("local", pairs)
    with pytest.raises(UserError, match="two views CC and MLO, got 1"):
        model.head_outputs("columns", pairs[:, :1])


def test_the_grid_of_a_stage(model):
    stride, row, column = model.stage_grid("stage2")
    assert (stride, row, column) == (8, 0.5, 0.5)
    with pytest.raises(UserError, match="Did you mean 'stage2'"):
        model.stage_grid("stage_2")
