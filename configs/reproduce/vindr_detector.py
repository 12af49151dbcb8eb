"""VinDr-Mammo: detection of Mammo-CLIP's tables, a RetinaNet for label=mass or suspicious_calcification.

    python -m mammoclip_jax.finetune --config=configs/reproduce/vindr_detector.py:label=mass,fraction=10 \
        --workdir=runs/mass_boxes_10 --config.warm_start.image.weights=b5-model-best-epoch-7.tar

Prepare the data as for vindr_classifier.py. `frozen=1` keeps the encoder as it is.

protocol=published: images with a box of the label alone, stretched to 512 x 512, 120 epochs of batches of 7 at a constant
rate, no weight decay, gradients clipped at 0.1, the pads of the released detector, the epoch with the best AP on the
test images with a box. It differs where it must: fractions are of patients, not of boxes (there an image could lose
some of its boxes to the background); the warp's elastic part is left out. protocol=default: all images, as many with as
without the finding, at 1280 x 768 (the canvas's proportions), as many steps; the state is chosen on the validation
split, and AP counts false positives on images without the finding, so that it is lower than the published one by
construction: compare it with other models, not with the table.
"""

from mammoclip_jax.names import check_name
from mammoclip_jax.reproduction import recipes
from mammoclip_jax.reproduction.arguments import config_argument

IMAGES = {"mass": 894, "suspicious_calcification": 337}  # training images with a box
EPOCHS, BATCH_SIZE = 120, 7


def get_config(argument=""):
    asked = config_argument(argument, label="mass", frozen=0, fraction=100, protocol="default", encoder="b5")
    check_name(asked.label, IMAGES, "label")
    published = asked.protocol == "published"
    how = "frozen" if asked.frozen else "finetune"
    config = recipes.start(f"VinDr {asked.label} boxes, {how} {asked.fraction} %, {asked.protocol} protocol", "vindr")
    recipes.train(
        config, asked.encoder, images=IMAGES[asked.label], epochs=EPOCHS, batch_size=BATCH_SIZE, fraction=asked.fraction
    )
    config.model.labels = (asked.label,)
    config.task.update(kind="detector", focal_alpha=0.25, focal_gamma=2.0)
    config.train.clip_norm = 0.1
    if asked.frozen:
        config.model.frozen = ("image",)
    if published:
        config.train.update(weight_decay=0.0, schedule="constant", warmup_steps=0)
        config.model.input_size = (512, 512)
        config.task.update(encoder="train", without_boxes="leave_out")
    else:
        config.model.input_size = (1280, 768)
        config.task.update(encoder="eval" if asked.frozen else "train", sampling="balanced")
    recipes.detector_stages(config, published)
    config.evaluate.evaluators.detection = dict(protocol=asked.protocol)
    recipes.choose_state(config, "vindr", "detection", f"{asked.label}/ap@0.5", asked.protocol)
    config.evaluate.validation_evaluators.detection.update(protocol=asked.protocol, gallery=0)
    return config
