r"""Published rows measured here: runs what is at hand and prints ours beside the published value.

    python -m mammoclip_jax.reproduce --list
    python -m mammoclip_jax.reproduce vindr_mass 'rsna_cancer/zero_shot' --data=vindr=data/vindr,rsna=data/rsna \
        --weights=b5=b5-model-best-epoch-7.tar,b2=b2-model-best-epoch-10.tar --out=scores/mammo_clip
    python -m mammoclip_jax.reproduce '*/linear_probe_*/b5' --data=vindr=data/vindr --weights=runs/mine \
        --out=scores/mine

Words are rows, TABLE/STEP/MODEL, or patterns of them; none: all. --weights=FILE without a column is for every column
that has no weights of its own. --protocol=published follows the released code, its errors included; default, what
docs/reproduce.md says; both: --protocol=default,published. Runs that were stopped go on, and results whose config, data
and weights are the same are not measured again. Exit status: 0 all rows are measured, 1 some are not, 2 a mistake in
the command, 75 stopped on request.
"""

import logging
import shlex
import sys
from pathlib import Path

from absl import flags

from mammoclip_jax import command
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import check_name
from mammoclip_jax.reproduction import arguments, published

INCOMPLETE = 1


def define_flags() -> None:
    """The flags of the command."""
    flags.DEFINE_list("weights", [], "COLUMN=FILE, FOLDER or hub name, or one alone for all columns.")
    flags.DEFINE_list("data", [], "SOURCE=FOLDER that prepare made: vindr, rsna.")
    flags.DEFINE_list("protocol", ["default"], f"Which of {', '.join(arguments.PROTOCOLS)}.")
    flags.DEFINE_string("out", "", "Folder for runs, results and tables.")
    flags.DEFINE_bool("list", False, "Print the rows, and whether what they need is at hand; run nothing.")
    flags.DEFINE_multi_string("override", [], "FIELD=VALUE of the config of every row, such as train.batch_size=4.")
    flags.DEFINE_string("configs", "", "The folder configs/reproduce, where the program is installed without it.")
    flags.DEFINE_string("json", "", "File for the figures.")


def main(argv) -> int:
    """The command; see --help."""
    values, patterns = flags.FLAGS, argv[1:]
    chosen = published.chosen(patterns)
    weights = arguments.pairs(values.weights, "weights", {row.model for row in published.rows()}, alone=True)
    data = arguments.pairs(values.data, "data", {row.dataset for row in published.rows()})
    overrides = arguments.pairs(values.override, "override")
    overrides = {name: arguments.value(text) for name, text in overrides.items()}
    for protocol in values.protocol:
        check_name(protocol, arguments.PROTOCOLS, "protocol for --protocol")
    if not values.list and not values.out:
        raise UserError("say with --out where runs and results go, or --list to see what there is.")

    from mammoclip_jax.reproduction import jobs, outcome  # not for a mistake in the command: they import jax
    from mammoclip_jax.training.loop import Stopped

    inputs = jobs.open_inputs(weights, data)
    reasons = {
        protocol: {row.name: jobs.lacking(row, inputs, protocol) for row in chosen} for protocol in values.protocol
    }
    if values.list:
        for protocol in values.protocol:
            print(f"protocol {protocol}\n{outcome.listing(chosen, reasons[protocol])}")
        command.write_json(
            values.json,
            {
                "rows": [
                    row._asdict() | {"name": row.name, "protocol": protocol, "lacking": reasons[protocol][row.name]}
                    for protocol in values.protocol
                    for row in chosen
                ]
            },
        )
        return 0
    out, again = Path(values.out), shlex.join(["python", "-m", "mammoclip_jax.reproduce", *sys.argv[1:]])
    records = []
    for protocol in values.protocol:
        ready = [row for row in chosen if not reasons[protocol][row.name]]
        planned = jobs.plan(ready, inputs, protocol, out, overrides, Path(values.configs or jobs.CONFIGS))
        try:
            results = jobs.all_of(planned, protocol, again)
        except Stopped as stopped:
            logging.warning("%s", stopped)
            return command.INTERRUPTED
        records += [outcome.record(row, protocol, reasons[protocol][row.name], results.get(row.name)) for row in chosen]
    outcome.write(out, records)
    print(outcome.text(records))
    command.write_json(values.json, {"rows": records})
    return 0 if all(entry["ours"] is not None for entry in records) else INCOMPLETE


if __name__ == "__main__":
    define_flags()
    command.run(main, words=True)
