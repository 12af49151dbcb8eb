"""RSNA malignancy: linear probe and fine-tuning of Mammo-CLIP's tables.

    python -m mammoclip_jax.prepare --source=rsna --root=DIR --out=data/rsna --geometry=stretch --intensity=published \
        --crop=published --height=1520 --width=912 --option=split=folds --option=test_fold=0 --option=val_fold=3
    python -m mammoclip_jax.finetune --config=configs/reproduce/rsna_classifier.py:fraction=10 \
        --workdir=runs/rsna_10 --config.warm_start.image.weights=b5-model-best-epoch-7.tar
    python -m mammoclip_jax.evaluate --config=configs/reproduce/rsna_classifier.py:task=linear_probe \
        --weights=b5-model-best-epoch-7.tar --dataset=data/rsna --out=scores/rsna

The folds are the released ones (train_folds.csv): 1 and 2 train, as hard-coded there, 0 tests, and 3, which they leave
unused, validates. A breast's score is the mean of its images'. protocol=default chooses the state, or the probe's C, on
fold 3. protocol=published chooses the epoch on fold 0, the test fold, with the released constant of fold 0 as positive
weight, and its "linear probe" keeps the encoder in training mode; fractions are of patients, stratified by cancer,
where they were of rows.
"""

from mammoclip_jax.names import check_name
from mammoclip_jax.reproduction import recipes
from mammoclip_jax.reproduction.arguments import config_argument

POS_WEIGHT = "46.48"
EPOCHS, BATCH_SIZE, IMAGES = 20, 6, 27_258


def get_config(argument=""):
    asked = config_argument(argument, task="finetune", fraction=100, protocol="default", encoder="b5")
    check_name(asked.task, ("linear_probe", "finetune"), "task")
    config = recipes.start(f"RSNA cancer, {asked.task} {asked.fraction} %, {asked.protocol} protocol", "rsna")
    if asked.task == "linear_probe" and asked.protocol == "default":
        config.evaluate.evaluators.linear_probe = dict(label="cancer", fractions=(asked.fraction / 100,))
        return config
    recipes.train(config, asked.encoder, images=IMAGES, epochs=EPOCHS, batch_size=BATCH_SIZE, fraction=asked.fraction)
    config.model.labels = ("cancer",)
    config.task.update(
        kind="classifier", encoder="train", pos_weight=POS_WEIGHT if asked.protocol == "published" else "balanced"
    )
    if asked.task == "linear_probe":
        config.model.frozen = ("image",)
    config.evaluate.evaluators.classification = dict()
    recipes.choose_state(config, "rsna", "classification", "cancer/auroc", asked.protocol)
    return config
