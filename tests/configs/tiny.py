"""The demo's whole job in a minute: sixteen small phantom exams, a very small model.

tests/configs/tiny.py                 with all evaluations
tests/configs/tiny.py:training        without those at the end, of which nothing comes back into the training
tests/configs/tiny.py:efficientnet    with the image encoder of the published models, which takes longer to compile
"""

from mammoclip_jax.config import defaults


def get_config(which="all"):
    config = defaults()
    config.name = "tiny"
    data = config.data
    data.folders.phantom = "{workdir}/data"
    data.phantom.phantom = dict(out="{workdir}/exams", exams=16, height=128, width=96, seed=3, workers=1)
    data.prepare.phantom = dict(
        source="phantom",
        root="{workdir}/exams",
        geometry="fit",
        height=64,
        width=48,
        options=dict(test_fraction=0.3, val_fraction=0.2),
        workers=0,  # one that is started imports all that the program does
    )
    data.text_length, data.vocab_size, data.shuffle_sentences, data.flip_horizontal = 64, 600, 0.5, 0.5
    config.image.channels = 1
    config.augment.update(affine_probability=0.5, rotate=10.0)
    if which == "efficientnet":
        config.model.image.update(name="efficientnet", variant="b0", width=0.25, depth=0.3)
    else:
        config.model.image.update(name="resnet", variant="18", width=8, depths=(1, 1, 1, 1))
    config.model.text.update(
        name="bert", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    config.model.dim = 16
    config.losses.mammo_clip = dict(weight=1.0)
    config.train.update(
        steps=12, batch_size=4, warmup_steps=2, lr=1e-3, ema_decay=0.9, log_every=1, checkpoint_every=3, eval_every=6
    )
    config.evaluate.validation_evaluators.zero_shot = dict(prompts="phantom", resamples=0)
    if which != "training":
        config.evaluate.evaluators.zero_shot = dict(prompts="phantom", resamples=20)
        config.evaluate.evaluators.retrieval = dict(resamples=20)
        config.evaluate.evaluators.saliency = dict(prompts="phantom", resamples=20, gallery=1)
    config.evaluate.batch_size = 8
    return config
