"""VinDr-Mammo: linear probe and fine-tuning of Mammo-CLIP's tables; label=mass, suspicious_calcification or density.

    python -m mammoclip_jax.prepare --source=vindr --root=DIR --out=data/vindr --geometry=stretch \
        --intensity=published --crop=published --height=1520 --width=912
    python -m mammoclip_jax.finetune --config=configs/reproduce/vindr_classifier.py:label=mass,fraction=10 \
        --workdir=runs/mass_10 --config.warm_start.image.weights=b5-model-best-epoch-7.tar
    python -m mammoclip_jax.evaluate \
        --config=configs/reproduce/vindr_classifier.py:label=mass,task=linear_probe,fraction=10 \
        --weights=b5-model-best-epoch-7.tar --dataset=data/vindr --out=scores/mass_10

protocol=default: fractions of the patients, stratified; the state, or the probe's C, is chosen on the validation split;
the probe is a logistic regression on features of the encoder in evaluation mode; positives weigh as many negatives as
there are. protocol=published: the released recipe, with its errors: the epoch is chosen on the test split, the positive
weights are its constants, and the encoder of the "linear probe" stays in training mode (finetune runs it too). Not even
then is all as published: a row is an image here and was a finding there (4,095 test rows of 4,000 images), and
fractions are of patients, stratified, where they were of rows, so that a patient's other images are not seen here.
Prepare with --option=val=0 for the published training set of 16,000 images.
"""

from mammoclip_jax.names import check_name
from mammoclip_jax.reproduction import recipes
from mammoclip_jax.reproduction.arguments import config_argument

POS_WEIGHT = {"mass": "15.5733", "suspicious_calcification": "37.2967", "density": ""}
DENSITIES = ("A", "B", "C", "D")
EPOCHS, BATCH_SIZE = 30, 8
IMAGES = {"published": 16_000, "default": 14_400}  # training images: all, or without a tenth for validation


def get_config(argument=""):
    asked = config_argument(argument, label="mass", task="finetune", fraction=100, protocol="default", encoder="b5")
    check_name(asked.label, POS_WEIGHT, "label")
    check_name(asked.task, ("linear_probe", "finetune"), "task")
    config = recipes.start(f"VinDr {asked.label}, {asked.task} {asked.fraction} %, {asked.protocol} protocol", "vindr")
    if asked.task == "linear_probe" and asked.protocol == "default":
        config.evaluate.evaluators.linear_probe = dict(label=asked.label, fractions=(asked.fraction / 100,))
        return config
    classes = asked.label == "density"
    recipes.train(
        config,
        asked.encoder,
        images=IMAGES[asked.protocol],
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        fraction=asked.fraction,
    )
    config.model.labels = DENSITIES if classes else (asked.label,)
    config.model.activation = "softmax" if classes else "sigmoid"
    weight = POS_WEIGHT[asked.label] if asked.protocol == "published" else "" if classes else "balanced"
    config.task.update(kind="classifier", label="density" if classes else "", encoder="train", pos_weight=weight)
    if asked.task == "linear_probe":
        config.model.frozen = ("image",)
    config.evaluate.evaluators.classification = dict()
    metric = f"{asked.label}/{'accuracy_image' if classes else 'auroc_image'}"
    recipes.choose_state(config, "vindr", "classification", metric, asked.protocol)
    return config
