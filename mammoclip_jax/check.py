"""The whole config of a training, before a file is touched: all that is wrong with it, at once.

What only the data can tell is looked at once they are open (`run.check_evaluation`, `tasks.labelled.check_labels`).
"""

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mammoclip_jax import tasks
from mammoclip_jax.data.from_source import check_arguments
from mammoclip_jax.data.leave_out import flags_of
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.errors import UserError, raise_all, together
from mammoclip_jax.evaluation import options as evaluations
from mammoclip_jax.inference import prompt_files, region_methods
from mammoclip_jax.inference.looks import looks
from mammoclip_jax.names import check_name, check_options, lookup
from mammoclip_jax.training import augment, optimizer
from mammoclip_jax.training.best import SIGNS
from mammoclip_jax.training.distributed import MATMUL

NOMINAL = 512, 512  # of an image that nobody has seen yet: its stages have the same names at any size


def check(config) -> None:
    """Raises one UserError with all that is wrong with a config, of its task, model, training, data, evaluation."""
    task = tasks.task_of(config)
    model: list = []  # none, where it cannot be built
    together(
        lambda: tasks.check(config),
        lambda: model.append(task.network(config)),
        lambda: lookup(MATMUL, config.model.matmul, "config.model.matmul"),
        lambda: augment.preprocess_options(config),
        lambda: lookup(optimizer.OPTIMIZERS, config.train.optimizer, "config.train.optimizer"),
        lambda: _schedule(config.train),
        lambda: _stages(config, planned(config, task.MODEL, model)),
        lambda: raise_all(_expressions(config)),
        lambda: raise_all(_monitor(config)),
        *_of_data(config),
        lambda: check_evaluation(config, planned(config, task.MODEL, model)),
    )


def _schedule(train) -> None:
    if 0 <= train.warmup_steps < train.steps and train.lr > 0:  # what else is wrong is said elsewhere
        optimizer.schedule(train)


def _stages(config, model) -> None:
    for stage in config.model.stages if model.stages else ():
        check_name(stage, model.stages, "stage of the image encoder for config.model.stages:")


def planned(config, kind: str, model: list) -> evaluations.Planned:
    """What is known of the model before it is there; of one that cannot be built its kind and labels."""
    about = evaluations.Planned(kind, tuple(config.model.labels))
    if not model:
        return about
    (network,) = model
    network = getattr(network, "model", network)  # of an adapted one its base
    encoder, heads = network.image_encoder, getattr(network, "heads", None)
    return about._replace(
        encoder=encoder,
        stages=tuple(encoder.stage_grids(*NOMINAL)),
        local_heads=tuple(heads.local()) if heads else (),
        attribute_stages=tuple(config.model.stages) if kind == "attributes" else (),
    )


def check_evaluation(config, model) -> None:
    """Raises UserError where the sections evaluate and predict ask for what is not there; `model`: a loaded or planned one."""
    settings, folders = config.evaluate, tuple(config.data.folders)
    together(
        *(
            functools.partial(check_name, name, folders, "data set of config.evaluate.folders:")
            for name in settings.folders
        ),
        lambda: evaluations.check(model, settings.evaluators, split=settings.split, folders=folders),
        lambda: evaluations.check(
            model, settings.validation_evaluators, split=settings.validation_split, folders=folders
        ),
        lambda: _predict(config.predict, model),
    )


def _predict(settings, model) -> None:
    looks(settings.mirror, settings.windows, settings.pool)
    if not settings.exam:
        return
    if "{workdir}" not in settings.exam and not Path(settings.exam).is_dir():
        raise UserError(
            f"config.predict.exam={settings.exam!r} is not a folder; give the folder with the exam's files."
        )
    if model.kind == "dual_encoder":
        prompt_files.load_prompts(settings.prompts)
    if model.stages and model.kind != "detector":  # which shows its boxes
        method = settings.method or ("factor" if model.attribute_stages else "grad_cam")
        model.map_stage(method, settings.stage)


def _expressions(config) -> Iterator[str]:
    """The fields with patterns that are none."""
    patterns = {
        "train.no_decay": config.train.no_decay,
        "train.frozen": config.train.frozen,
        "sharding.rules": [rule for rule, _ in config.sharding.rules],
    }
    for field, rules in patterns.items():
        for rule in rules:
            try:
                re.compile(rule)
            except re.error as error:
                yield f"config.{field}: {rule!r} is no regular expression: {error}."


def _monitor(config) -> Iterator[str]:
    """What keeps config.task.monitor from ever having a figure."""
    task, settings = config.task, config.evaluate
    if task.better not in SIGNS:
        yield f"config.task.better={task.better!r} must be {' or '.join(SIGNS)}."
    if not task.monitor:
        return
    if not config.train.eval_every:
        yield f"config.task.monitor={task.monitor!r} is a figure of the evaluations on the way: set config.train.eval_every."
    start, _, rest = task.monitor.partition("/")
    folder, _, rest = rest.partition("/")
    evaluator, _, metric = rest.partition("/")
    if start != "eval" or not metric:
        yield (
            f"config.task.monitor={task.monitor!r} must be eval/DATASET/EVALUATOR/METRIC, as metrics.jsonl has it: "
            "eval/phantom/classification/mass/auroc_image."
        )
        return
    for name, known, what in (
        (folder, settings.folders or config.data.folders, "data set"),
        (evaluator, settings.validation_evaluators, "entry of config.evaluate.validation_evaluators"),
    ):
        try:
            check_name(name, known, f"{what} for config.task.monitor={task.monitor!r}:")
        except UserError as error:
            yield str(error)


def _of_data(config) -> Iterator[Callable[[], object]]:
    """Checks of what is made first where it is missing, and of what is left out."""
    data = config.data
    yield lambda: flags_of(data.leave_out)
    for name, options in data.phantom.items():
        rest = {key: value for key, value in options.items() if key not in ("out", "exams", "workers")}
        yield functools.partial(check_options, Parameters, rest, f"config.data.phantom.{name}")
    for options in data.prepare.values():
        yield functools.partial(check_arguments, **options)
    for name, options in data.regions.make.items():
        method = region_methods.method_of(options.get("method", name))
        rest = {key: value for key, value in options.items() if key != "method"}
        yield functools.partial(check_options, method, rest, f"config.data.regions.make.{name}")
