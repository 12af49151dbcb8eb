"""Measure what a model's scores mean, and store it with the model: probabilities, percentiles, figures before and after.

    python -m mammoclip_jax.calibrate --weights=runs/classifier
    python -m mammoclip_jax.calibrate --weights=runs/classifier --mirror --out=scores/mirrored
    python -m mammoclip_jax.calibrate --weights=runs/a,runs/b,runs/c --dataset=data/phantom --method=isotonic
    python -m mammoclip_jax.calibrate --weights=runs/classifier --windows=1.5 --dataset=data/phantom_large

Fitted on the split --fit_on, tested on --test_on, for the scores as these options make them: `predict` and
`mammoclip_jax.load` need the same. calibration.json goes into the folder of the model, of several of the first. Windows
need a data set prepared with the height and width of their canvas. --out also has all predictions, for `compare`.
"""

from pathlib import Path
from typing import Any

from absl import flags

from mammoclip_jax import command
from mammoclip_jax.errors import UserError


def define_flags() -> None:
    """The flags of the command."""
    flags.DEFINE_string(
        "weights", None, "A run, a checkpoint of it or a model folder; several with commas between.", required=True
    )
    flags.DEFINE_string("dataset", "", "A data set folder; by default that of the run's config.")
    flags.DEFINE_string("fit_on", "val", "The split that is fitted on; the model has not learnt from it.")
    flags.DEFINE_string("test_on", "test", "The split whose figures are given, before and after.")
    flags.DEFINE_string("method", "", "platt, temperature or isotonic; by default platt, of classes temperature.")
    flags.DEFINE_string("prompts", "", "Of a dual encoder: a prompt file. Default: config.predict.prompts of the run.")
    flags.DEFINE_bool("mirror", False, "Of scores of each image as it is and mirrored.")
    flags.DEFINE_float("windows", 0.0, "Of scores in windows of a canvas so much larger; 0: none.")
    flags.DEFINE_string("pool", "", "Of the windows' scores: max, mean, noisy_or, lse.")
    flags.DEFINE_integer("patients", 2000, "Of each split whose scores percentiles are of, at most; 0: all.")
    flags.DEFINE_integer("resamples", 2000, "Of the patients, for intervals; 0: none.")
    flags.DEFINE_integer("batch_size", 32, "Images at a time on the devices; no result depends on it.")
    flags.DEFINE_bool("store", True, "Whether calibration.json is written.")
    flags.DEFINE_string("out", "", "Folder for the figures and all predictions.")
    flags.DEFINE_string("json", "", "File for the entry that is stored.")


def main(argv) -> int:
    """The command; see --help."""
    del argv
    from mammoclip_jax.evaluation import console, result  # not for --help: they import jax
    from mammoclip_jax.evaluation.meaning import measure
    from mammoclip_jax.inference import loading
    from mammoclip_jax.inference.prompt_files import load_prompts
    from mammoclip_jax.weights import calibration_file, opening

    values = flags.FLAGS
    first = str(loading.listed(values.weights)[0])
    if values.store and not opening.is_ours(first):
        raise UserError(
            f"{first} is no folder of this program, where calibration.json could lie: import it first (`weights import`), or "
            "measure with --nostore."
        )
    options = {"mirror": values.mirror, "windows": values.windows, "pool": values.pool}
    model = loading.load(values.weights, batch_size=values.batch_size, **options)
    prompts = values.prompts or model.config.predict.prompts
    folder = calibration_file.folder_of(first)
    entry, found = measure(
        model,
        open_dataset(model, folder, values.dataset),
        pairs=load_prompts(prompts) if model.kind == "dual_encoder" else {},
        fit_on=values.fit_on,
        test_on=values.test_on,
        method=values.method,
        patients=values.patients or None,
        resamples=values.resamples,
    )
    print(console.long_table([found]))
    if values.out:
        result.save([found], Path(values.out))
    if values.store:
        print(f"stored: {calibration_file.store(folder, entry)}")
    command.write_json(values.json, entry)
    return 0


def open_dataset(model, folder: Path, path: str) -> Any:
    """The data set at `path`, or that of the run's config, split as the model was trained.

    Raises:
        UserError: the config has none, or several.
    """
    from mammoclip_jax.data import leave_out  # not for --help
    from mammoclip_jax.data.store.shards import Dataset
    from mammoclip_jax.tasks import split_as_trained

    folders = [path] if path else [one.format(workdir=folder) for one in model.config.data.folders.values()]
    if len(folders) != 1:
        raise UserError(
            f"say which data set: --dataset=FOLDER ({', '.join(folders) or 'the model does not name the one it learnt from'})."
        )
    dataset = leave_out.unused(Dataset.open(folders[0]), model.config.data.leave_out)
    return split_as_trained(model, {dataset.info["name"]: dataset})[dataset.info["name"]]


if __name__ == "__main__":
    define_flags()
    command.run(main)
