"""Region-aware MedCLIP on chest radiographs: CLIP's ViT-B/16 beside Bio_ClinicalBERT, MIMIC-CXR and CheXpert (docs/chest.md).

    python -m mammoclip_jax.pretrain --config=configs/region_medclip_cxr.py:vit --workdir=runs/cxr_vit \
        --config.warm_start.image.weights=ViT-B-16.pt --config.warm_start.text.weights=hf://emilyalsentzer/Bio_ClinicalBERT
    python -m mammoclip_jax.regions --data=data/mimic_cxr --method=sliding --option='scales=[0.15,0.3,0.5]'
    python -m mammoclip_jax.regions --data=data/mimic_cxr --method=teacher --weights=runs/cxr_vit --regions=sliding \
        --concepts=chest
    python -m mammoclip_jax.pretrain --config=configs/region_medclip_cxr.py --workdir=runs/cxr_regions \
        --config.warm_start.image.weights=runs/cxr_vit --config.warm_start.text.weights=runs/cxr_vit

(the same for data/chexpert). `:vit` is the teacher, and what regions are compared with: the same towers, data and image-text
loss without regions. `:resnet50` and `:swin` are the two of MedCLIP (Wang et al. 2022, arXiv:2210.10163;
run_medclip_pretrain.py): 224 pixels padded to a square, the mean of BERT's layers 1, 2 and last over the tokens, 512 dimensions,
AdamW at 2e-5, batches of 100, 10 % warm-up, cosine, gradients clipped at 1, targets by the cosine of the 14 labels. They start
from resnet50-0676ba61.pth and hf://microsoft/swin-tiny-patch4-window7-224. What differs, and why:

- a target temperature of .2: with the released 1 the targets of a batch are nearly uniform;
- no mirroring: a mirrored chest has its heart at the wrong side (theirs mirrors half of the images, and not the texts);
- texts are pooled over their own tokens (theirs counts padding), and a text is a section of the report, not one sentence.

The list 5x200 is the test of CheXpert, the official test part that of MIMIC-CXR. `--config.data.targets.source=text` reads the
labels from the drawn texts instead. docs/chest.md has the memory of each variant and what fits it to 4 to 6 GB.
"""

from mammoclip_jax.config import defaults
from mammoclip_jax.names import check_name

IMAGES, EPOCHS = 400_000, 10  # frontal views of both training parts, about; config.train.steps is yours to set
LABELS = (
    "no_finding",
    "enlarged_cardiomediastinum",
    "cardiomegaly",
    "lung_opacity",
    "lung_lesion",
    "edema",
    "consolidation",
    "pneumonia",
    "atelectasis",
    "pneumothorax",
    "pleural_effusion",
    "pleural_other",
    "fracture",
    "support_devices",
)
FIVE = ("atelectasis", "cardiomegaly", "consolidation", "edema", "pleural_effusion")
VIT = dict(name="clip_vit", variant="base", remat="none")
ENCODERS = {
    "regions": VIT,
    "vit": VIT,
    "resnet50": dict(name="resnet", variant="50"),
    "swin": dict(name="swin", variant="tiny", remat="none"),
}


def get_config(variant="regions"):
    check_name(variant, ENCODERS, "variant of region_medclip_cxr")
    config = defaults()
    config.name = f"MedCLIP on chest radiographs, {variant}"
    data, model, losses = config.data, config.model, config.losses
    data.folders.update(mimic_cxr="data/mimic_cxr", chexpert="data/chexpert")
    data.tokenizer = "hf://emilyalsentzer/Bio_ClinicalBERT"
    data.text_length = 77
    data.update(views=1, texts=1, other_views=True)
    data.unpaired.images = True  # those of CheXpert, without reports: by their labels any text of the batch is theirs
    data.targets.update(source="labels", fields=LABELS)
    config.image.update(mean=0.5862785803043838, std=0.27950088968644304, intensity="range")
    config.augment.update(
        affine_probability=1.0, rotate=10.0, translate=0.0625, scale=(0.8, 1.1), contrast=0.2, brightness=0.2
    )

    model.image.update(ENCODERS[variant])
    model.text.update(
        name="bert",
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        average_layers=(1, 2, -1),
        remat="none",
    )
    model.pooling = "mean"
    model.projection.bias = False
    config.warm_start.image = dict(weights="", load=("image_encoder/",))
    config.warm_start.text = dict(
        weights="", load=("text_encoder/", "text_projection/") if variant == "regions" else ("text_encoder/",)
    )

    losses.soft_targets = dict(weight=1.0, similarity="cosine", temperature=0.2, pair=0.0)
    if variant == "regions":  # RegionCLIP's two terms, all of weight 1 as published
        data.regions.update(places=16, sources=("teacher",), concepts="chest")
        model.heads.regions = dict(stages=("last",), size=4, dim=512)
        model.image_head = "regions"  # the whole image is one more region
        losses.region_concept = dict(weight=1.0)
        losses.distillation = dict(weight=1.0)
    train = config.train
    train.batch_size = 100
    train.steps = EPOCHS * IMAGES // train.batch_size
    train.warmup_steps = train.steps // 10
    train.lr, train.weight_decay, train.clip_norm = 2e-5, 1e-4, 1.0
    train.no_decay = (r".*/(bias|scale)$",)

    evaluators = config.evaluate.evaluators
    evaluators.five_x = dict(evaluator="zero_shot", prompts="chexpert", labels=("five_x",))
    evaluators.five = dict(evaluator="zero_shot", prompts="chexpert", labels=FIVE, macro="five")
    evaluators.class_retrieval = dict(label="five_x", texts="chexpert")
    evaluators.retrieval = dict(units="image", ks=(1, 2, 5, 10), labels=("five_x",), folders=("mimic_cxr",))
    return config
