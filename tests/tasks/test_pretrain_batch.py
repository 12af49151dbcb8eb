"""The program of a training expects the batches that the config's iterator makes."""

import json

import jax
import pytest
from fake_sets import FakeDataset, H, W

from mammoclip_jax.config import defaults
from mammoclip_jax.data.text import tokenizer
from mammoclip_jax.tasks import pretrain
from mammoclip_jax.training import mesh as meshes

BOXES = json.dumps([{"label": "mass", "box": [0, 0, 2, 2]}])
ROWS = [
    dict(study=f"s{exam}", laterality=side, view=view, texts=[f"A mass. Exam {exam}; {side} side."], boxes_canvas=BOXES)
    for exam in range(4)
    for side in "LR"
    for view in ("CC", "MLO")
]
NAMED = {"sentence", "boxes", "box_classes"}


@pytest.mark.parametrize(
    "data, more",
    [
        (dict(), set()),
        (dict(slots=("CC", "MLO"), sentences=4, boxes=2, separator="[SEP]"), NAMED | {"view_mask"}),
        (dict(slots=("CC", "MLO"), flip_each_view=True), {"view_mask"}),
        (dict(partner=dict(same_view=0.5, exam=0.5), texts=1, sentences=4, boxes=1), NAMED),
    ],
)
def test_a_program_expects_what_the_batches_hold(data, more, tmp_path):
    config = defaults()
    config.data.update(text_length=16, vocab_size=200, read_threads=0)
    config.data.update(data)
    config.train.batch_size = 4
    config.model.image.update(name="vit", variant="tiny", width=16, depth=1, heads=2, patch=2)
    config.model.text.update(
        name="bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config.losses.mammo_clip = dict(weight=1.0)
    pretrain.check(config)
    datasets = {"fake": FakeDataset(ROWS)}
    tokens = pretrain.load_tokenizer(config, tmp_path, datasets)
    assert isinstance(tokens, tokenizer.Tokenize)
    mesh = meshes.make_mesh({}, jax.devices()[:1])
    trainer = pretrain.make_trainer(config, tokens.vocab_size, {"height": H, "width": W, "bits": 8}, mesh)
    batch = next(pretrain.train_iterator(config, datasets, tokens, mesh, tmp_path))
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in trainer.batch.items()
    }
    usual = {"image", "record", "source", "token_ids", "token_mask", "flip_horizontal", "flip_vertical", "mask"}
    assert set(batch) == usual | more
    if "sentence" in more:
        assert batch["sentence"].max() == 2
