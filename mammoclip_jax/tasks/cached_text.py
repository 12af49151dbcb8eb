"""A frozen text tower runs once over the training texts, instead of at every step (config.model.cached_text)."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from mammoclip_jax.data.batches import breasts, unpaired
from mammoclip_jax.data.batches.texts import text_options
from mammoclip_jax.data.store.side_tables import Arrays
from mammoclip_jax.errors import UserError
from mammoclip_jax.progress import Bar
from mammoclip_jax.training import checkpoint, distributed
from mammoclip_jax.training.mesh import batch_sharding, make_mesh, replicated
from mammoclip_jax.training.processes import barrier

BATCH = 64  # texts at a time, at least one a device
SHORTEST = 16  # tokens; texts are padded to a power of two from here on


def check(config) -> None:
    """Raises UserError, naming the field, where the features of texts are not the same at every step."""
    data, frozen = config.data, tuple(config.model.frozen)
    for wrong, field, remedy in (
        ("text" not in frozen, f"model.frozen={frozen}", "only a tower that is not trained can be computed beforehand"),
        (data.shuffle_sentences > 0, f"data.shuffle_sentences={data.shuffle_sentences}", "every order is another text"),
        (
            data.sentences > 0,
            f"data.sentences={data.sentences}",
            "a sentence needs the states of its tokens, and one vector a text is all that is kept",
        ),
        (bool(data.captions), f"data.captions={data.captions!r}", "captions are rendered anew at every drawing"),
    ):
        if wrong:
            raise UserError(f"config.model.cached_text does not go with config.{field}: {remedy}. Change one of them.")


def prepare(config, trainer, state, datasets, tokenize, workdir) -> None:
    """Sees to it that `workdir` holds the features of every text that training may draw; see `table`.

    They are computed by process 0 on its own devices where they are missing, or of other weights, another tokenizer or
    other texts. Every process has to call, with the state that `trainer.init` made; a run that has a checkpoint
    takes the weights from that.
    """
    params = jax.device_get(jax.jit(lambda x: x, out_shardings=replicated(trainer.mesh))(_text_part(state.params)))
    if checkpoint.steps(workdir / "checkpoints"):
        params = _text_part(checkpoint.load(workdir)[1]["params"])
    if distributed.is_main():
        drawable = breasts.drawable_texts(
            list(datasets.values()),
            "train",
            other_views=config.data.other_views,
            text=text_options(config.data),
            mirrored=config.data.flip_horizontal > 0,
            slots=config.data.slots,
            wanted=unpaired.unpaired(config.data.unpaired),
        )
        made_by = fingerprint(config, tokenize, params)
        if not table(workdir).serves(made_by, drawable):
            logging.info("computing the features of %d training texts once", len(drawable))
            texts = sorted(drawable, key=lambda text: (len(text), text))  # of one length together: less padding
            table(workdir).write(made_by, texts, compute(config, trainer.model, params, tokenize, texts))
    barrier("text features")


def table(workdir) -> Arrays:
    """The features of a run's texts, by text."""
    return Arrays(workdir, "text_features")


def fingerprint(config, tokenize, params) -> str:
    """Of all that the features of a text depend on."""
    model = config.model
    options = {
        "text": model.text.to_dict(),
        "pooling": model.pooling,
        "pooling_token": model.pooling_token,
        "dtype": model.dtype,
        "text_length": config.data.text_length,
        "tokenizer": tokenize.fingerprint,
    }
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["text_encoder"]):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def compute(config, model, params, tokenize, texts: Sequence[str]) -> Iterator[np.ndarray]:
    """The pooled states of the texts, float32 [n, C] at a time, on this process's devices."""
    model = getattr(model, "model", model)  # adapters are those of the image tower
    mesh = make_mesh({"data": -1}, jax.local_devices())
    size = -(-BATCH // mesh.size) * mesh.size
    variables = jax.device_put({"params": params}, replicated(mesh))

    @jax.jit
    def pooled(variables, ids, mask):
        return model.apply(variables, ids, mask, train=False, method="pool_text")[0]

    with jax.set_mesh(mesh), Bar(len(texts), "text", "text features") as bar:
        for start in range(0, len(texts), size):
            part = texts[start : start + size]
            ids, mask = tokenize.encode([*part, *[part[-1]] * (size - len(part))], config.data.text_length)
            longest, length = int(mask.sum(axis=1).max()), SHORTEST
            while length < longest:
                length *= 2  # few lengths, so that few programs are compiled
            inputs = jax.device_put((ids[:, :length], mask[:, :length]), batch_sharding(mesh))
            yield np.asarray(pooled(variables, *inputs))[: len(part)]
            bar.update(len(part))


def _text_part(params) -> dict:
    """What the text tower needs of the parameters."""
    return {name: value for name, value in params.items() if name not in ("image_encoder", "image_projection", "lora")}
