"""The program of a training expects the batches that the config's iterator makes."""

import json

import jax
import pytest
from fake_sets import FakeDataset, H, W

from mammoclip_jax.config import defaults
from mammoclip_jax.data.pixels.geometry import fit
from mammoclip_jax.data.text import tokenizer
from mammoclip_jax.errors import UserError
from mammoclip_jax.tasks import pretrain
from mammoclip_jax.training import mesh as meshes

BOXES = json.dumps([{"label": "mass", "box": [0, 0, 2, 2]}])
ROWS = [
    dict(
        study=f"s{exam}",
        laterality=side,
        view=view,
        texts=[f"A mass. Exam {exam}; {side} side."],
        boxes=BOXES,
        boxes_canvas=BOXES,
        labels=json.dumps({"density": "ABCD"[exam], "calcification": int(side == "L")}),
        transform=fit((H, W), (0, 0, H, W), (H, W), chest_wall="left", laterality="").to_json(),
    )
    for exam in range(4)
    for side in "LR"
    for view in ("CC", "MLO")
]
NAMED = {"sentence", "boxes", "box_classes"}
ALONE = {"paired", "has_text", "text_target", "text_known"}
UNPAIRED = dict(images=True, texts="phantom:presence", share=0.5)
SPOKEN = dict(
    regions=dict(places=2, sources=("boxes",), concepts="phantom"), phrases=dict(count=4, length=8, levels=("label",))
)
PHRASES = {"boxes", "box_classes", "region_allowed", "region_cosines"} | {
    f"phrase_{name}" for name in ("ids", "mask", "region", "negated", "level", "findings")
}
LABELS = dict(source="labels", fields=("mass", "calcification", "density"))


def _config(data):
    config = defaults()
    config.data.update(text_length=16, vocab_size=200, read_threads=0)
    config.data.update(data)
    config.train.batch_size, config.model.dim = 4, 16
    config.model.image.update(name="vit", variant="tiny", width=16, depth=1, heads=2, patch=2)
    config.model.text.update(
        name="bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config.losses.term = dict(kind="soft_targets" if "targets" in data else "mammo_clip")
    if "phrases" in data:
        config.losses.spoken = dict(kind="region_phrase")
        config.model.heads.regions = dict(stages=("last",), size=2, dim=16)
    return config


def _trainer(config, tokens, devices):
    mesh = meshes.make_mesh({"data": -1}, jax.devices()[:devices])
    return pretrain.make_trainer(config, tokens.vocab_size, {"height": H, "width": W, "bits": 8}, mesh)


@pytest.mark.parametrize(
    "data, more",
    [
        (dict(), set()),
        (dict(slots=("CC", "MLO"), sentences=4, boxes=2, separator="[SEP]"), NAMED | {"view_mask"}),
        (dict(slots=("CC", "MLO"), flip_each_view=True), {"view_mask"}),
        (dict(partner=dict(same_view=0.5, exam=0.5), texts=1, sentences=4, boxes=1), NAMED),
        (dict(slots=("CC", "MLO"), targets=LABELS), {"target", "known", "view_mask"}),
        (dict(targets=dict(source="text", fields=("mass",))), {"target", "known"}),
        (dict(targets=LABELS, unpaired=UNPAIRED), {"target", "known"} | ALONE),
        (dict(unpaired=dict(images=True)), {"paired", "has_text"}),
        (SPOKEN | dict(slots=("CC", "MLO")), PHRASES | {"view_mask"}),
    ],
)
def test_a_program_expects_what_the_batches_hold(data, more, tmp_path):
    config = _config(data)
    pretrain.check(config)
    datasets = {"fake": FakeDataset(ROWS)}
    tokens = pretrain.load_tokenizer(config, tmp_path, datasets)
    assert isinstance(tokens, tokenizer.Tokenize)
    trainer = _trainer(config, tokens, 1)
    batch = next(pretrain.train_iterator(config, datasets, tokens, trainer.mesh, tmp_path))
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        name: (x.shape, x.dtype) for name, x in trainer.batch.items()
    }
    usual = {"image", "record", "source", "token_ids", "token_mask", "flip_horizontal", "flip_vertical", "mask"}
    assert set(batch) == usual | more
    if "sentence" in more:
        assert batch["sentence"].max() == 2


def test_without_reports_the_vocabulary_is_that_of_the_captions(tmp_path):
    datasets = {"fake": FakeDataset([row | dict(texts=[]) for row in ROWS])}
    with pytest.raises(UserError, match="config.data.captions=findings"):
        pretrain.load_tokenizer(_config({}), tmp_path, datasets)
    config = _config(dict(captions="findings", vocab_size=600))
    tokens = pretrain.load_tokenizer(config, tmp_path, datasets)
    ids, mask = tokens.encode(
        ["There are calcifications in the left breast.", "The breast is heterogeneously dense."], 24
    )
    assert mask.sum(1).tolist() == [10, 8]  # a token a word, the stop, and the two at the ends
    again = _config(dict(captions="findings", vocab_size=600))
    (tmp_path / "again").mkdir()
    assert pretrain.load_tokenizer(again, tmp_path / "again", datasets).fingerprint == tokens.fingerprint


@pytest.mark.parametrize("more", [dict(), pytest.param(SPOKEN | dict(unpaired=UNPAIRED), marks=pytest.mark.slow)])
def test_a_step_is_the_same_on_one_and_eight_devices(tmp_path, more):
    config = _config(dict(targets=LABELS) | more)
    config.train.batch_size = 8
    assert pretrain._terms(config)[-1].function.keywords == {"ranges": (0.0, 0.0, 3.0)}
    datasets, found, state = {"fake": FakeDataset(ROWS)}, [], None
    tokens = pretrain.load_tokenizer(config, tmp_path, datasets)
    for devices in (1, 8):
        trainer = _trainer(config, tokens, devices)
        state = jax.device_get(state or trainer.init())
        batch = next(pretrain.train_iterator(config, datasets, tokens, trainer.mesh, tmp_path))
        placed = jax.device_put((state, batch), jax.tree.map(lambda x: x.sharding, (trainer.state, trainer.batch)))
        loss = jax.jit(lambda state, batch, trainer=trainer: trainer.gradient(state, batch)[:2])
        found.append(jax.device_get(loss(*placed)))
    (one, metrics), (eight, _) = found
    assert one == pytest.approx(eight, rel=1e-5)
    soft = (metrics["term/image_to_text"] + metrics["term/text_to_image"]) / 2
    if more:
        assert metrics["spoken/phrases"] > 8
        soft += (metrics["spoken/region_to_phrase"] + metrics["spoken/phrase_to_region"]) / 2
    assert one == pytest.approx(soft)


@pytest.mark.parametrize(
    "unpaired, terms, message",
    [
        (dict(images=True), dict(clip={}, view_text={}), "no term of config.losses sees .* clip, view_text leave out"),
        (dict(share=0.5, texts="phantom"), dict(mammo_clip={}), "compares texts with other images than their own"),
        (dict(texts="phantom"), dict(soft_targets={}), "nothing reads config.data.unpaired.texts='phantom'"),
        (dict(share=0.5), dict(soft_targets={}), "share=0.5 is the part of the rows that get texts without image"),
        (dict(images=True, share=2.0, texts="phantom"), dict(soft_targets={}), "share=2.0 is a probability"),
        (dict(image=True), dict(soft_targets={}), "no field config.data.unpaired: 'image'. Did you mean 'images'"),
    ],
)
def test_what_nothing_reads_is_refused(unpaired, terms, message):
    config = _config(dict(targets=LABELS))
    config.losses = terms
    if "soft_targets" not in terms:
        config.data.targets = dict(source="", fields=())
    with config.data.unpaired.unlocked():
        config.data.unpaired.update(unpaired)
    with pytest.raises(UserError, match=message):
        pretrain.check(config)
