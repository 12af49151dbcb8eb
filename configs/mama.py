"""MaMA (Du et al. 2024, arXiv:2409.18119): multi-view and multi-scale alignment of DINOv2's ViT-B/14 and BioMedLM with LoRA.

    python -m mammoclip_jax.prepare --source=embed --root=DIR --out=data/embed --geometry=fit --height=518 --width=518
    python -m mammoclip_jax.pretrain --config=configs/mama.py --workdir=runs/mama \
        --config.warm_start.image.weights=facebook/dinov2-with-registers-base \
        --config.warm_start.text.weights=hf://stanford-crfm/BioMedLM

`--config=configs/mama.py:full` is for images of full resolution with their aspect kept (`--height=1512 --width=910` above),
`:bert` has a BERT in place of BioMedLM, as its successor GLAM, and `:compact` ViT-S/14 and six layers of BERT: less than
half of the parameters of the largest baseline (docs/losses.md has the table).

What differs from the released code, because that is wrong there: negatives are those of the whole batch and not of one
device; the partner has its own caption, which names its side and view, in place of the first image's; flips are told to
the captions; texts are pooled over their real tokens; a crop keeps the boxes that are known; the heads' statistics are of
the batch and not of one caption. Of its colour jitter the gain is here: hue and saturation do nothing to grey images, and a
contrast about the mean would lift the air.
"""

from mammoclip_jax.config import defaults
from mammoclip_jax.names import check_name

VARIANTS = ("", "full", "bert", "compact")
LATE = 8_000  # the step from which on the second view and the local terms count


def get_config(variant=""):
    check_name(variant, VARIANTS, "variant of MaMA")
    config = defaults()
    config.name = "MaMA" + f" ({variant})" * bool(variant)
    config.seed = 42
    data = config.data
    data.folders.embed = "data/embed"
    data.captions, data.text_length, data.sentences = "mama", 144, 10
    data.views = data.texts = 2
    data.partner.update(same_view=0.5, exam=0.5)
    data.flip_horizontal = data.flip_vertical = 0.5
    data.flip_each_view = True
    data.boxes = 4
    config.augment.update(crop=(0.1, 1.0), contrast=0.8, jitter_probability=0.8, blur=0.4)
    config.image.update(mean=0.5, std=0.5, intensity="range")

    config.model.image.update(name="dinov2", variant="base", registers=4, pooling="all", remat="block")
    config.model.pooling = "mean"
    config.model.heads.simclr = dict(dim=512)
    config.model.heads.local = dict(stage="last", hidden=2048, dim=512)
    if variant in ("bert", "compact"):
        data.tokenizer = "hf://emilyalsentzer/Bio_ClinicalBERT"
        config.model.text.update(
            name="bert", hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
        )
    else:
        data.tokenizer = "hf://stanford-crfm/BioMedLM"
        tokens = ("startoftext", "padtext", "masktext", "separatetext", "unknowntext", "keytext")
        data.special_tokens = tuple(f"<|{token}|>" for token in tokens)
        data.frame, data.separator = ("<|startoftext|>", "<|endoftext|>"), "<|separatetext|>"
        config.model.text.update(name="gpt2", n_embd=2560, n_layer=32, n_head=20, scale_attn_by_inverse_layer_idx=True)
        config.model.lora = dict(pattern=r"text_encoder/.*/c_attn/kernel", rank=8, alpha=32.0, dropout=0.1)
    if variant == "compact":
        config.model.image.variant, config.model.text.num_hidden_layers = "small", 6
        config.model.heads.local.update(hidden=512)
    config.warm_start.image = dict(weights="")
    config.warm_start.text = dict(weights="")

    config.losses.view_text = dict(weight=1.0)
    config.losses.partner_text = dict(kind="view_text", view=1, weight=1.0, start_step=LATE)
    config.losses.nt_xent = dict(weight=1.0, temperature=0.5, start_step=LATE)
    config.losses.local_alignment = dict(weight=1.0, start_step=LATE)
    train = config.train
    train.batch_size, train.steps, train.warmup_steps = 288, 40_000, 4_000
    train.lr, train.min_lr, train.weight_decay, train.logit_scale_max = 4e-5, 1e-8, 0.1, 0.0
    train.frozen = (r"image_encoder/layernorm/.*",)
    train.eval_every = train.checkpoint_every = 1_000

    config.evaluate.evaluators.zero_shot = dict(prompts="mama")
    config.evaluate.evaluators.retrieval = dict()
    return config
