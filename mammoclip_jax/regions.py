r"""Find the regions of a data set's images once, for training and evaluation: boxes, masks, models, a teacher.

    python -m mammoclip_jax.regions --data=data/vindr --method=sliding
    python -m mammoclip_jax.regions --data=data/vindr --method=detector --weights=runs/detector --option=threshold=0.2
    python -m mammoclip_jax.regions --data=data/vindr --method=teacher --weights=runs/mine --regions=sliding \
        --concepts=mammo --name=pseudo --json=pseudo.json

Writes DIR/regions-NAME.parquet and .json, which config.data.regions.sources may name, and DIR/regions-NAME.html, some
images to look at. Run again, it goes on where it stopped. The methods and their options are in docs/regions.md.
"""

import functools
import inspect

from absl import flags

from mammoclip_jax import command
from mammoclip_jax.errors import UserError
from mammoclip_jax.inference.region_methods import METHODS, method_of, opened
from mammoclip_jax.names import check_options

FLAGS = {
    "model": "weights",
    "regions": "regions",
    "concepts": "concepts",
}  # argument of a method: the flag that gives it


def define_flags() -> None:
    """The flags of the command; not at import, where they would meet those of another command."""
    flags.DEFINE_string("data", None, "Data set folder.", required=True)
    flags.DEFINE_enum("method", None, list(METHODS), "How regions are found.", required=True)
    flags.DEFINE_string("name", "", "What the table is called; by default as its method.")
    flags.DEFINE_string("weights", "", "A run, a model folder, ...: of methods detector, unet, factor and teacher.")
    flags.DEFINE_string("regions", "", "Name of the table whose regions the teacher labels.")
    flags.DEFINE_string("concepts", "", "The lexicon, or its JSON file, that the teacher compares regions with.")
    flags.DEFINE_multi_string("option", [], "key=value for the method; may be repeated.")
    flags.DEFINE_string("override_licence", "", "Why the weights may be used although their terms forbid it; recorded.")
    flags.DEFINE_integer("batch_size", None, "Images at a time on the devices; no result depends on it.")
    flags.DEFINE_integer("preview", 24, "Images on the page; 0 writes none.", lower_bound=0)
    flags.DEFINE_string("json", "", "File for the figures.")


def main(argv) -> int:
    """The command; see --help."""
    del argv
    from mammoclip_jax.data.preview.region_page import preview  # not for --help: they import pandas
    from mammoclip_jax.data.regions import job
    from mammoclip_jax.data.store.shards import Dataset

    values = flags.FLAGS
    method, options = method_of(values.method), command.parse_options(values.option)
    given = _given(values, method, options)
    dataset = Dataset.open(values.data)
    name = values.name or values.method
    about = {"batch_size": values.batch_size, "override_licence": values.override_licence}
    info = job.find(dataset, name, functools.partial(opened, dataset, values.method, given | options, **about))
    print(_summary(values.data, name, info))
    figures = {"data": values.data} | info
    if values.preview:
        figures["page"] = str(preview(dataset, name, values.preview))
        print(f"look at {figures['page']}")
    command.write_json(values.json, figures)
    return 0


def _given(values: flags.FlagValues, method, options: dict) -> dict:
    """The flags that the method takes, by its arguments. Raises UserError where one lacks, or is of no use to it."""
    parameters = inspect.signature(method).parameters
    for argument, flag in FLAGS.items():
        if argument in parameters and not getattr(values, flag):
            raise UserError(f"--method={values.method} needs --{flag}.")
        if argument not in parameters and getattr(values, flag):
            raise UserError(f"--method={values.method} has no use for --{flag}: leave it out.")
        if argument in options:
            raise UserError(f"write --{flag}=..., not --option={argument}=...")
    for flag in ("override_licence", "batch_size"):
        if getattr(values, flag) and "model" not in parameters:
            raise UserError(f"--method={values.method} has no weights, and no use for --{flag}: leave it out.")
    check_options(method, options, f"--method={values.method}")
    for key, value in options.items():
        number = isinstance(parameters[key].default, (int, float))
        if number != isinstance(value, (int, float)):
            raise UserError(f"--option={key}={value} must be {'a number' if number else 'a list, or text'}.")
    return {argument: getattr(values, flag) for argument, flag in FLAGS.items() if argument in parameters}


def _summary(folder: str, name: str, info: dict) -> str:
    from mammoclip_jax.data.preview.region_page import lines

    counts = info["counts"]
    head = (
        f"{folder}: {counts['regions']} regions {name!r} in {counts['images']} images, "
        f"{counts['without_region']} without any" + (" (as they were)" if info["up_to_date"] else "")
    )
    return "\n".join([head, *(f"  {what}: {number}" for what, number in lines(counts))])


if __name__ == "__main__":
    define_flags()
    command.run(main)
