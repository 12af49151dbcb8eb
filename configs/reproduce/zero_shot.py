"""Zero-shot rows of Mammo-CLIP's tables: nothing is trained, weights are evaluated with the published prompts.

    python -m mammoclip_jax.evaluate --config=configs/reproduce/zero_shot.py:label=mass,protocol=published \
        --weights=b5-model-best-epoch-7.tar --dataset=data/vindr --out=scores/mass

label: mass, suspicious_calcification, density (VinDr) or cancer (RSNA). `protocol=published` scores single images by
the raw cosines; "default" breasts and exams besides, with the learned temperature. In both every image is one row,
where the published VinDr values count an image once for each finding. No density prompts were released: ours stand in.
"""

from mammoclip_jax.names import check_name
from mammoclip_jax.reproduction import recipes
from mammoclip_jax.reproduction.arguments import config_argument

PROMPTS = {
    "mass": "mammo_clip_vindr",
    "suspicious_calcification": "mammo_clip_vindr",
    "density": "density_birads",
    "cancer": "mammo_clip",
}


def get_config(argument=""):
    asked = config_argument(argument, label="mass", protocol="default", encoder="b5")
    check_name(asked.label, PROMPTS, "label")
    config = recipes.start(
        f"Zero-shot {asked.label}, {asked.protocol} protocol", "rsna" if asked.label == "cancer" else "vindr"
    )
    config.evaluate.evaluators.zero_shot = dict(
        prompts=PROMPTS[asked.label], labels=(asked.label,), protocol=asked.protocol
    )
    return config
