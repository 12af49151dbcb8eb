r"""Compile a config's training step for TPUs that are not there: memory, FLOPs, traffic, collectives, largest batch.

Examples:
    python -m mammoclip_jax.compile --config=configs/mammoclip_b5.py:tpu --topology=v5e:4x4 --images_per_chip=8 \
        --config.augment.affine_probability=0 --table=docs/compile.csv
    python -m mammoclip_jax.compile --config=configs/mammoclip_b5.py:tpu --topology=v5e:4x4 \
        --search --remat=none --remat=expand --remat=block --micro_batches=1 --micro_batches=2
    python -m mammoclip_jax.compile --config=configs/mammoclip_b5.py:tpu --topology=v5e:1x1 --images_per_chip=8 \
        --block=3 --config.model.image.kernels=pallas       # one block by itself: two minutes
    python -m mammoclip_jax.compile --parameters=configs/mammoclip_b5.py=1520x912       # counts; compiles nothing

    python -m mammoclip_jax.compile --loss=clip --pairs=1048576 --topology=v5e:16x16    # a loss alone
    python -m mammoclip_jax.compile --config=configs/region_medclip_cxr.py:vit --topology=cpu:6 --height=224 --width=224

TPUs need libtpu (pip install -e .[aot]) and no TPU. `cpu:6` is one device of 6 GiB as this CPU's compiler lays the step out:
an estimate for a GPU of that size, too high for bfloat16, of which a CPU keeps copies in float32.

A whole B5 step takes the better part of an hour on two cores;
what was compiled once is kept in --cache. Exit status 3: it does not fit.
"""

import itertools
import json
import shlex
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from mammoclip_jax import command
from mammoclip_jax.errors import UserError

DOES_NOT_FIT = 3


def define_flags() -> None:
    """The flags of the command."""
    config_flags.DEFINE_config_file("config", None, "The experiment: a Python file with get_config().")
    flags.DEFINE_multi_string("parameters", [], "CONFIG=HEIGHTxWIDTH: count its parameters and FLOPs, compile nothing.")
    flags.DEFINE_enum("loss", "", ["", "clip", "sigmoid"], "Compile this loss alone, value and gradients, of --pairs.")
    flags.DEFINE_integer("pairs", 1_048_576, "Of --loss: the global batch.", lower_bound=1)
    flags.DEFINE_integer("dim", 512, "Of --loss: numbers of a vector.", lower_bound=1)
    flags.DEFINE_enum("form", "auto", ["auto", "plain", "gathered", "ring"], "Of --loss: see docs/losses.md.")
    flags.DEFINE_string(
        "topology", "v5e:4x4", "TPU topology, as v5e:16x16, v6e:4x4, v5p:2x2x2 or v4:2x2x1; or cpu:GIB."
    )
    flags.DEFINE_float("images_per_chip", 0, "Sets config.train.batch_size; 0 leaves it.", lower_bound=0)
    flags.DEFINE_integer("height", 1520, "Rows of the prepared images.", lower_bound=1)
    flags.DEFINE_integer("width", 912, "Columns of the prepared images.", lower_bound=1)
    flags.DEFINE_enum("bits", "8", ["8", "16"], "Of a stored pixel.")
    flags.DEFINE_integer("vocab_size", 28_996, "Of the tokenizer; Bio_ClinicalBERT's by default.", lower_bound=1)
    flags.DEFINE_bool("search", False, "Find the largest batch that fits, for each --remat, --scan, --micro_batches.")
    flags.DEFINE_multi_string("remat", [], "Value(s) of config.model.image.remat; one a stage with commas between.")
    flags.DEFINE_multi_enum("scan", [], ["true", "false"], "Value(s) of config.model.image.scan.")
    flags.DEFINE_multi_integer("micro_batches", [], "Value(s) of config.train.micro_batches.image.", lower_bound=1)
    flags.DEFINE_multi_string("xla", [], "Option(s) of the compiler, NAME=VALUE.")
    flags.DEFINE_string("cache", "~/.cache/mammoclip_jax/compile", "Folder of compiled programs' figures; '' for none.")
    flags.DEFINE_string("json", "", "File for the figures.")
    flags.DEFINE_string("csv", "", "File for one row a program.")
    flags.DEFINE_string("table", "", "CSV file that the rows are added to.")
    flags.DEFINE_multi_integer("block", [], "Compile only these blocks of the EfficientNet, each by itself (from 0).")
    flags.DEFINE_string("hlo", "", "File for the text of the (last) optimised program.")


def main(argv) -> int:
    """The command; see --help."""
    del argv
    values = flags.FLAGS
    if values.parameters:
        return _parameters(values)
    if values.loss:
        return _loss(values)
    if unread := [name for name in ("pairs", "dim", "form") if values[name].present]:
        raise UserError(f"--{unread[0]} is of a loss alone: give --loss too, or take it out.")
    if values.config is None:
        raise UserError("give a --config to compile, a --loss, or --parameters=CONFIG=HEIGHTxWIDTH to count.")
    from mammoclip_jax.aot import topology

    topology.prepare(values.topology)  # before jax is used
    from mammoclip_jax import tasks
    from mammoclip_jax.aot import session, table

    tasks.check(values.config)
    if values.block:
        return _blocks(values, topology.load(values.topology))

    job = session.Session(
        topology.load(values.topology),
        {"height": values.height, "width": values.width, "bits": int(values.bits)},
        values.vocab_size,
        values.cache,
        dict(_option(item) for item in values.xla),
    )
    programs = []
    for options in itertools.product(values.remat or [None], values.scan or [None], values.micro_batches or [None]):
        config = session.variant(values.config, *options)
        if values.search:
            programs.append(job.search(config, values.images_per_chip))
        else:
            programs.append(job.compile(session.with_images(config, values.images_per_chip, job.target)))
        print(table.text(programs[-1].figures), flush=True)
    figures = {
        "programs": [each.figures | {"config": json.loads(each.config.to_json_best_effort())} for each in programs],
        "command": shlex.join(["python", "-m", "mammoclip_jax.compile", *sys.argv[1:]]),
    }
    print(f"again: {figures['command']}")
    command.write_json(values.json, figures)
    if values.hlo:
        Path(values.hlo).write_text(programs[-1].text)
    if values.csv:
        table.write(values.csv, [row for each in programs for row in each.rows])
    if values.table:
        table.update(values.table, [each.rows[-1] for each in programs])
    return 0 if all(each.figures["fits"] for each in programs) else DOES_NOT_FIT


def _blocks(values, target) -> int:
    """The table that --block asks for."""
    from mammoclip_jax.aot import blocks

    images, rows = int(values.images_per_chip or 8), []
    for index in values.block:
        rows.append(blocks.compile_block(values.config, index, images, values.height, values.width, target))
    print(blocks.text(rows))
    command.write_json(values.json, {"blocks": rows})
    return 0


def _parameters(values) -> int:
    """The table that --parameters asks for."""
    from mammoclip_jax.aot import parameters

    rows = [parameters.sizes(item, values.vocab_size) for item in values.parameters]
    print(parameters.markdown(rows))
    command.write_json(values.json, {"parameters": rows})
    return 0


def _loss(values) -> int:
    """What --loss asks for."""
    if values.config is not None:
        raise UserError("--loss is compiled alone: take out --config.")
    from mammoclip_jax.aot import topology

    topology.prepare(values.topology)  # before jax is used
    from mammoclip_jax.aot import loss

    options = dict(_option(item) for item in values.xla)
    target = topology.load(values.topology)
    found = loss.compile_loss(values.loss, values.pairs, values.dim, values.form, target, values.cache, options)
    print(loss.text(found))
    command.write_json(values.json, found)
    return 0 if found["fits"] else DOES_NOT_FIT


def _option(item):
    name, equals, value = item.partition("=")
    if not equals:
        raise UserError(f"--xla={item}: write NAME=VALUE.")
    return name, value


if __name__ == "__main__":
    define_flags()
    command.run(main)
