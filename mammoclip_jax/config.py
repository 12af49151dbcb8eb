"""Every field of a config with its default. A config file starts from `defaults()` and changes what it must.

Named parts (encoders, loss terms, evaluators, prepare) are open dictionaries: their builders check the option names.
"""

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mammoclip_jax.errors import raise_all

NAMED_PARTS = (
    "data.folders",
    "data.weights",
    "data.prepare",
    "data.phantom",
    "data.regions.make",
    "model.image",
    "model.text",
    "model.lora",
    "model.heads",
    "warm_start",
    "losses",
    "evaluate.evaluators",
    "evaluate.validation_evaluators",
)


# What every task reads: these fields, and what lies below them. What else it reads, a task says in its `READS`.
READ_BY_ALL = (
    *("name", "seed", "mesh", "sharding", "cpu_devices", "compilation_cache", "image", "augment", "warm_start"),
    *("evaluate", "predict", "slices", "model.image", "model.dtype", "model.matmul"),
    *("data.folders", "data.prepare", "data.phantom", "data.leave_out", "data.text_length", "data.read_threads"),
    *("data.flip_horizontal", "data.flip_vertical"),
    *("task.kind", "task.monitor", "task.better", "task.patience"),
    *("train.steps", "train.batch_size", "train.lr", "train.warmup_steps", "train.schedule", "train.min_lr"),
    *("train.decay_steps", "train.decay_factor", "train.optimizer", "train.layer_decay", "train.weight_decay"),
    *("train.b1", "train.b2", "train.eps", "train.momentum", "train.clip_norm", "train.no_decay", "train.frozen"),
    *("train.ema_decay", "train.log_every", "train.eval_every", "train.checkpoint_every", "train.keep_checkpoints"),
    *("train.watchdog_seconds", "train.watchdog_evaluation_seconds", "train.profile_steps"),
)
# Fields of config.train that only one choice reads.
READ_BY = {
    "optimizer": {"adamw": ("b1", "b2", "eps"), "sgd": ("momentum",)},
    "schedule": {"step": ("decay_steps", "decay_factor")},
}


def defaults() -> ConfigDict:
    """A locked ConfigDict: setting an unknown field raises AttributeError with the nearest known name."""
    config = ConfigDict(
        {
            "name": "",  # what the run is called in the report
            "seed": 0,
            "mesh": {"data": -1, "fsdp": 1, "space": 1},  # devices along each axis; -1 takes what is left
            # How the training state lies on the mesh (training/mesh.py: state_shardings).
            "sharding": {
                "state": "replicated",  # "zero1": optimiser's state over the axis fsdp; "fsdp": parameters too
                "min_size": 2**18,  # elements; smaller arrays are replicated
                "rules": (),  # (regular expression on parameter paths, axis of each dimension), ...
            },
            "cpu_devices": 1,  # devices that a CPU host is split into; one a core keeps all cores busy
            "compilation_cache": "~/.cache/mammoclip_jax/xla",  # "" switches it off
            "data": {
                "folders": {},  # name -> dataset folder; all are trained on, in proportion to their size
                "weights": {},  # name of each -> its part of the batches, where that is not to be by size
                "prepare": {},  # name -> arguments of prepare(), run first where the folder is missing
                "phantom": {},  # name -> out, exams and parameters of a phantom set to generate before that
                "leave_out": (),  # flags (data/leave_out.py) of images that are neither trained nor evaluated on
                "tokenizer": "",  # "" trains a WordPiece on the folders' texts; else a file, folder, hub name
                "vocab_size": 4096,  # of that WordPiece
                "text_length": 256,  # tokens
                "views": 2,  # images drawn from a breast
                "other_views": False,  # also other views than CC and MLO
                "texts": 2,  # texts drawn from a breast
                # Named slots: text t is then of the image in view t (one text: of the first).
                "slots": (),  # such as ("CC", "MLO"): these views of a breast, in this order
                # Instead: any image of an exam and a partner, with these probabilities (published: same_view .5, exam .5).
                "partner": {"same_view": 0.0, "same_side": 0.0, "exam": 0.0},
                "sentences": 0,  # sentences of a text that the batch marks, at most
                "separator": "",  # a token in place of each sentence's stop, or behind it
                "special_tokens": (),  # added to the tokenizer, in this order, where it lacks them
                "frame": (),  # first and last token of a text, of a tokenizer that sets none
                # Labels of each view's breast, for soft targets: "labels" of the data set or read from the "text" drawn, and
                # which, such as ("mass", "calcification", "density", "birads").
                "targets": {"source": "", "fields": ()},
                # Beside pairs: breasts without texts, and texts without image in place of those that breasts lack ("reports"
                # of the data sets, or a lexicon such as "mammo") or, with the probability share, have.
                "unpaired": {"images": False, "texts": "", "share": 0.0},
                "boxes": 0,  # places for boxes in a view, so that crops keep them (config.augment.crop)
                # Regions of each view, in so many places: annotated "boxes" and tables that `python -m
                # mammoclip_jax.regions` made (of a detector: the boxes that it learns from); of which concepts (a lexicon of
                # data/text/lexicons, or a .json file); and whether a table's regions beside all annotated boxes show the
                # background. "make": name of a table -> method and options, of those that are made first where they are missing.
                "regions": {"places": 0, "sources": ("boxes",), "concepts": "", "background": False, "make": {}},
                # Labels, phrases and reports with the annotated region that each speaks of, of config.data.regions: how many of
                # a row, of how many tokens, and which levels.
                "phrases": {"count": 0, "length": 32, "levels": ("label", "phrase")},
                "shuffle_sentences": 0.0,  # probability that a drawn text has its sentences in another order
                "flip_horizontal": 0.0,  # probability; laterality words in the texts are swapped with it
                "flip_vertical": 0.0,  # probability, only where no text names a position
                "captions": "",  # a template (mama, mammo_clip, findings, a .json path) for labels
                "captions_share": 1.0,  # probability that a caption takes the place of a report's text
                "captions_dropout": -1.0,  # of the template's metadata; below 0: what the template says
                "pairing": "any",  # of two texts; "sections": findings, then impression, where both exist
                "own_side": False,  # leave out the sentences about the other breast
                "augmented": 0.0,  # probability of a text's variant made by data/text/augment_text.py
                "flip_each_view": False,  # flips of each view, told to its own text; else one for the row
                "read_threads": 4,
            },
            "image": {"mean": 0.3089279, "std": 0.25053555408335154, "channels": 3, "intensity": "minmax"},
            "augment": {
                "affine_probability": 0.0,
                "rotate": 0.0,
                "translate": 0.0,
                "scale": (1.0, 1.0),
                "shear": 0.0,
                "contrast": 0.0,
                "brightness": 0.0,
                "jitter_probability": 1.0,  # that an image's contrast and brightness vary
                "crop": (1.0, 1.0),  # share of the image's area that a random crop keeps, enlarged to its size
                "crop_ratio": (3 / 4, 4 / 3),  # of the crop's shape (width to height) to the image's
                "blur": 0.0,  # probability of a Gaussian blur
                "blur_sigma": (0.1, 2.0),  # pixels
            },
            "model": {
                "image": {},  # name=..., and the options of that encoder
                "text": {},
                "dim": 512,
                "projection": {"kind": "linear", "dropout": 0.0, "bias": True},
                "projected": (),  # towers (image, text) whose encoder ends in the shared space: they have no projection
                "pooling": "eos",  # of the token states, a name in models.pooling.POOLINGS
                "pooling_token": placeholder(int),  # id of the token that the poolings "eot" and "sep" look for
                "frozen": (),  # towers (image, text) that stay as they are; their projections are trained
                "cached_text": False,  # run a frozen text tower once, before training, over all training texts
                "lora": {},  # pattern of the adapted kernels, rank, alpha, dropout; their towers are frozen
                "heads": {},  # name -> kind (models.HEADS) and options: vectors for terms beside the global ones
                "image_head": "",  # one of kind regions that makes the images' vectors too, of the region that is all of it
                "logit_scale": 1 / 0.07,
                "logit_bias": placeholder(float),  # initial, of the sigmoid loss (SigLIP: -10, with logit_scale=10)
                # Of a classifier or detector (config.task.kind) alone, which have no text, dim, projection, ...
                "labels": (),  # names of the outputs
                "activation": "sigmoid",  # softmax: the labels are classes
                "combine": "mean",  # or max, attention: of the features of a breast's or exam's views
                "features": 256,  # channels of that pyramid, and of a detector's subnets
                # Of a detector with dim above 0: classes are the cosines to texts, whose vectors [labels, dim] a dual
                # encoder makes of the prompts of a lexicon (data/text/lexicons); config.warm_start names its weights.
                "text_classifier": {"dim": 0, "temperature": 0.07, "concepts": ""},
                # Of attributes: the length of their vectors, which the dual encoder in config.warm_start makes of the positive
                # texts of a prompt file; units between an adapter's two products (0: as many as cells), and how many numbers
                # are learnt of each channel, so that adapters know which they see (0: they do not, as published).
                "attributes": {"dim": 512, "prompts": "", "hidden": 0, "channel_code": 0},
                "input_size": (),  # height and width that a detector stretches images to; (): as they are
                # Of the image encoder. Three: C3, C4 and C5 of the pyramid of a detector or segmentation; of attributes any,
                # whose channels they are looked for in.
                "stages": (),
                "dtype": "float32",  # of computation; parameters, statistics and the loss stay float32
                # Of float32 products: "default" is the platform's own (CPU float32, TPU bfloat16, GPU TF32); "bf16": operands of
                # linear layers and 1 x 1 convolutions rounded to bfloat16, sums in float32, on a CPU too; "tf32"; "float32".
                "matmul": "default",
            },
            # What is learnt from the data: texts and images together, or labels.
            "task": {
                # classifier, detector, segmentation, attributes: config.model.labels from the data sets' labels
                "kind": "pretrain",
                "label": "",  # of a classifier: whose values its labels are, as density of A, B, C, D
                "unit": "image",  # breast, exam: with as many views (classifier)
                "encoder": "train",  # eval: without dropout, and with the batch statistics that it came with
                # Of a yes/no label, or of the pixels of a segmentation's channel: "" is 1, "balanced" negatives / positives,
                # "root" the square root of that, or a number.
                "pos_weight": "",
                "sampling": "uniform",  # balanced: as many of each class
                "fraction": 1.0,  # of the training patients, stratified
                "folds": 0,  # instead of the data sets' splits: patients in so many parts, stratified
                "fold": 0,  # the part that is tested, the next is for validation; -1: all in turn (finetune)
                "focal_alpha": 0.25,
                "focal_gamma": 2.0,  # of a detector
                "force_match": False,  # of a detector: a box that no anchor overlaps enough gets its nearest one
                # Images without boxes teach a detector what background is; "zero": nothing; "leave_out": it sees none, as
                # published.
                "without_boxes": "count",
                "dice_weight": 1.0,  # of a segmentation: of the soft Dice beside the cross-entropy of the pixels
                "temperature": 0.007,  # of attributes: what cosines are divided by in the loss
                "cached_maps": True,  # of attributes: run the frozen encoder once, before training, over all images
                "monitor": "",  # name in metrics.jsonl, eval/DATASET/EVALUATOR/METRIC: keeps the best state
                "better": "higher",  # or lower, as of a Brier score: which figure of the monitor is the best
                "patience": 0,  # evaluations without a better one, after which training ends; 0: never
            },
            # What a new run starts from instead of random numbers, in the order of the names. A resumed run goes on from
            # its checkpoint.
            "warm_start": {},  # name -> weights (a run, folder, file, hub name), load, skip, override
            "losses": {},  # name -> kind (where it is not the name), weight, start_step, options
            "train": {
                "steps": 1000,
                "batch_size": 8,  # breasts, over all devices
                # Parts that the images and texts of a step are encoded in, to save memory (training/gradient_caching.py).
                # Negatives are counted over the whole batch; batch statistics are those of a part.
                "micro_batches": {"image": 1, "text": 1},
                "lr": 5e-5,
                "warmup_steps": 100,  # linear, from 0
                "schedule": "cosine",  # after it: cosine or linear to min_lr, constant, or step
                "min_lr": 0.0,  # from which the rate rises, and to which it falls
                "decay_steps": (),
                "decay_factor": 0.1,  # of the schedule step: the rate is multiplied at each
                "optimizer": "adamw",  # or sgd
                "layer_decay": 1.0,  # factor on the rate of each layer of the image encoder, from the last down
                "weight_decay": 1e-4,
                "b1": 0.9,
                "b2": 0.999,
                "eps": 1e-8,  # of adamw
                "momentum": 0.9,  # of sgd
                "clip_norm": 0.0,  # 0: no clipping
                "no_decay": (),  # regular expressions on parameter paths
                "frozen": (),  # the same: no gradient, no update, no decay
                "logit_scale_max": 100.0,  # clamp of the factor on cosines, as CLIP; 0: none, as Mammo-CLIP
                "ema_decay": 0.0,  # 0: no average
                "log_every": 10,  # steps, as the two below; 0: only at the end
                "eval_every": 0,
                "checkpoint_every": 500,
                "keep_checkpoints": 2,
                "watchdog_seconds": 1800.0,  # without a step done, after which the run ends itself; 0: never
                "watchdog_evaluation_seconds": 14400.0,  # of one evaluation, the same
                "profile_steps": (),  # the first and last step to trace; see training/profile.py
            },
            "evaluate": {
                "folders": (),  # names of data.folders; () takes all that have the split
                "split": "test",  # of the evaluation at the end
                "validation_split": "val",  # of the evaluations during training
                "evaluators": {},  # name -> options
                "validation_evaluators": {},  # the same, during training: keep them cheap
                "batch_size": 64,
            },
            "predict": {
                "exam": "",  # an exam folder to score into the report
                "prompts": "mammo_clip",
                "stage": "",  # of the image encoder, for the overlays; "" leaves it to the method
                "method": "",  # of the overlays: one of explain.METHODS, such as occlusion; "": grad_cam, of attributes factor
                "mirror": False,  # each image is scored as it is and mirrored
                "windows": 0.0,  # how much larger than the model's images the canvas is whose windows are scored; 0: none
                "pool": "",  # of the windows: max ("" too), mean, noisy_or, lse
                "calibrated": False,  # scores as `calibrate` made them probabilities; not at the end of the training
                "percentile": False,  # the place of each score among those that `calibrate` kept; not there either
            },
            # Of `python -m mammoclip_jax.slices --config` alone, which trains this classifier and a dual encoder first.
            "slices": {
                "language": "",  # argument of the config file's get_config that makes the config of the dual encoder
                "start": "",  # entry of config.warm_start whose weights are the dual encoder's; "": the classifier begins alone
                "dataset": "",  # name in data.folders
                "label": "",  # of the classifier's
                "known": "",  # a label that is a known slice
            },
        }
    )
    config.lock()
    for part in NAMED_PARTS:
        operator.attrgetter(part)(config).unlock()
    return config


def complete(config) -> ConfigDict:
    """A config, or the sections of one that a model folder holds, with the defaults of all other fields."""
    whole = defaults()
    with whole.unlocked():
        whole.update(ConfigDict(config))
    return whole


def fields(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train.lr": value} of all fields; of an empty part nothing."""
    values = {}
    for name, value in config.items():
        values |= (
            fields(value, f"{prefix}{name}.") if isinstance(value, (Mapping, ConfigDict)) else {prefix + name: value}
        )
    return values


def reads(names: Iterable[str], field: str) -> bool:
    """Whether one of `names` is that field, or a part of the config that it lies in."""
    return any(f"{field}.".startswith(f"{name}.") for name in names)


def check_common(config: ConfigDict, read: Iterable[str]) -> None:
    """Raises UserError when no task could train this config, or where it sets a field beside those that its task has `read`
    and those that all read."""
    raise_all(_common(config, (*READ_BY_ALL, *read)))


def _common(config: ConfigDict, read: tuple[str, ...]) -> Iterator[str]:
    """The faults of `check_common`."""
    usual, train = fields(defaults()), config.train
    idle = [
        f"config.{name}={value!r}"
        for name, value in fields(config).items()
        if value != usual.get(name) and not reads(read, name)
    ]
    if idle:
        yield (
            f"nothing reads {', '.join(idle)} where config.task.kind is {config.task.kind!r}: take it out, "
            "or set another kind."
        )
    if not config.data.folders:
        yield "config.data.folders is empty: name at least one dataset folder to train on."
    if not train.warmup_steps < train.steps:
        yield f"config.train.warmup_steps={train.warmup_steps} must be below config.train.steps={train.steps}."
    for choice, table in READ_BY.items():
        for value, names in table.items():
            for name in names:
                if value != train[choice] and train[name] != usual[f"train.{name}"]:
                    yield (
                        f"nothing reads config.train.{name}={train[name]!r} where config.train.{choice} is "
                        f"{train[choice]!r}: take it out, or set another."
                    )
    if train.keep_checkpoints < 1:
        yield (
            f"config.train.keep_checkpoints={train.keep_checkpoints} must be 1 or more: a run goes on from the newest."
        )
    traced = train.profile_steps
    if traced and (len(traced) != 2 or not 1 <= traced[0] <= traced[1]):
        yield (
            f"config.train.profile_steps={tuple(traced)} must be the first and the last step to trace, or () for none."
        )
