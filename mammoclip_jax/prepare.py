r"""Files and tables -> data set folder.

Examples:
    python -m mammoclip_jax.prepare --source=mias --root=data/mias --out=prepared/mias --geometry=fit --height=512 \
        --width=320 --workers=2
    python -m mammoclip_jax.prepare --source=vindr --root=data/vindr --check --json=check.json      # a dry run
    python -m mammoclip_jax.prepare --out=prepared/mias --verify --preview

Run again, it goes on where it stopped, or takes over what is new, changed or mended.
"""

import dataclasses
import time
from pathlib import Path

from absl import flags

from mammoclip_jax import command
from mammoclip_jax.data import sources
from mammoclip_jax.data.pixels.preprocessing import CHOICES, Preprocessing
from mammoclip_jax.data.store import CODECS, DEFAULT_CODEC
from mammoclip_jax.errors import UserError


def define_flags() -> None:
    """The flags of the command; not at import, where they would meet those of another command."""
    default = Preprocessing()
    flags.DEFINE_enum("source", None, sorted(sources.SOURCES), "The adapter.")
    flags.DEFINE_string("root", "", "Folder of the source's files.")
    flags.DEFINE_string("out", "", "Data set folder to make.")
    flags.DEFINE_bool("check", False, "Dry run: count what is there and list every mismatch; write nothing.")
    flags.DEFINE_bool("verify", False, "Check every record, count and checksum of the finished folder --out.")
    flags.DEFINE_bool("preview", False, "Write OUT/preview.html, a contact sheet; with --check of the source.")
    flags.DEFINE_bool("names", False, "Print which files are in quarantine, or with --check name them; only for you.")
    help_of = {
        "geometry": "fit keeps the aspect ratio; stretch is Mammo-CLIP's.",
        "intensity": "Stored values to grey values; docs/data.md.",
        "crop": "How the breast is cut out.",
        "bits": "Bits of a stored pixel.",
        "outside": "What lies outside the breast: masked hides burned-in text.",
        "chest_wall": "left mirrors right breasts; centre puts the image in the middle, as of a chest.",
        "frames": "What becomes of a file with several frames.",
        "upright": "Turn MLO views until the edge of the pectoral muscle is vertical.",
        "scale": "image: each as large as fits; breast: its CC and MLO views alike.",
    }
    for name, choices in CHOICES.items():
        if choices == (False, True):
            flags.DEFINE_bool(name, getattr(default, name), help_of[name])
        else:
            flags.DEFINE_enum(name, str(getattr(default, name)), [str(choice) for choice in choices], help_of[name])
    flags.DEFINE_integer("height", default.height, "Rows of the canvas.")
    flags.DEFINE_integer("width", default.width, "Columns of the canvas.")
    flags.DEFINE_integer("voi_item", default.voi_item, "Which VOI LUT or window of several.", lower_bound=0)
    flags.DEFINE_enum("codec", DEFAULT_CODEC, CODECS, "delta is PNG's size, zstd reads fastest, htj2k is smallest.")
    flags.DEFINE_integer("shards", 0, "Number of shards; 0 for one per 256 images.", lower_bound=0)
    flags.DEFINE_integer("workers", None, "Processes; one a core unless given.", lower_bound=0)
    flags.DEFINE_float("max_quarantined", 0.2, "Fraction of bad images from which on the command fails.", 0, 1)
    flags.DEFINE_list(
        "leave_out",
        None,
        "Flags of images to leave out, with commas; the source's own unless given, "
        "none of them with --leave_out= (docs/data.md).",
    )
    flags.DEFINE_integer("vocab_size", 4096, "Upper bound for the vocabulary trained on the texts.")
    flags.DEFINE_string("key", "", "File of the key that hashes private identifiers; data sets may share one.")
    flags.DEFINE_bool("header_identities", True, "Take who and where the DICOM headers name out of private texts.")
    flags.DEFINE_string("recogniser", "", "Folder of a token classification model that finds names in private texts.")
    flags.DEFINE_string("runner", "", "A runner of Apache Beam: DirectRunner, FlinkRunner, SparkRunner, ...")
    flags.DEFINE_multi_string("runner_option", [], "Its flag, e.g. --runner_option=--direct_num_workers=2.")
    flags.DEFINE_multi_string("option", [], "key=value for the adapter; may be repeated.")
    flags.DEFINE_string("json", "", "File for the figures.")


def main(argv) -> int:
    """The command; see --help."""
    del argv
    from mammoclip_jax.data import summary  # not for --help: it imports pandas
    from mammoclip_jax.data.preview import preview
    from mammoclip_jax.data.verify import verify

    values = flags.FLAGS
    started = time.monotonic()
    figures: dict = {"out": values.out}
    good = True
    if values.source:
        _source(values, figures)
    elif not (values.verify or values.preview):
        raise UserError("say what to do: --source=NAME prepares; --verify or --preview look at a finished --out.")
    if not values.out and not values.check:
        raise UserError("--out is missing: the data set folder.")
    if values.verify:
        figures |= {"verified": verify(values.out)}
        good = figures["verified"]["ok"]
        print(summary.verified(values.out, figures["verified"]))
    if values.preview and not values.check:
        print(f"look at {preview(values.out, Path(values.out) / 'preview.html')}")
    command.write_json(values.json, figures | {"seconds": round(time.monotonic() - started, 2)})
    return 0 if good else 1


def _source(values: flags.FlagValues, figures: dict) -> None:
    """What --source asks for: the dry run, the names of quarantined files, or the data set."""
    from mammoclip_jax.data import summary
    from mammoclip_jax.data.check import check
    from mammoclip_jax.data.from_source import prepare, read
    from mammoclip_jax.data.preview import preview_source

    options = command.parse_options(values.option)
    preprocessing = {field.name: values[field.name].value for field in dataclasses.fields(Preprocessing)}
    preprocessing["bits"] = int(preprocessing["bits"])
    if values.check:
        table = read(values.source, values.root, options, values.leave_out)
        figures |= check(
            table,
            values.root,
            names=values.names,
            header_identities=values.header_identities,
            recogniser=values.recogniser,
            frames=preprocessing["frames"],
        )
        print(summary.dry_run(figures, bool(values.json)))
        if values.preview:
            sheet = f"{values.out or 'check'}.preview.html"
            print(f"look at {preview_source(table, values.root, Preprocessing(**preprocessing), sheet)}")
        return
    if not values.out:
        raise UserError("--out is missing: the data set folder to make.")
    if values.names:
        print(summary.names(read(values.source, values.root, options), values.root, values.out, values.key))
        return
    started = time.monotonic()
    figures |= prepare(
        values.source,
        values.root,
        values.out,
        shards=values.shards,
        workers=values.workers,
        codec=values.codec,
        max_quarantined=values.max_quarantined,
        vocab_size=values.vocab_size,
        options=options,
        key=values.key,
        runner=values.runner,
        runner_options=values.runner_option,
        header_identities=values.header_identities,
        recogniser=values.recogniser,
        leave_out=values.leave_out,
        **preprocessing,
    )
    print(summary.prepared(values.out, figures, time.monotonic() - started))


if __name__ == "__main__":
    define_flags()
    command.run(main)
