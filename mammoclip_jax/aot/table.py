"""The figures of compiled programs for people, and as rows of a table that is kept."""

import csv
from pathlib import Path

from mammoclip_jax.files import whole

GIB, MIB = 2**30, 2**20
KEY = (
    "topology",
    "config",
    "dtype",
    "height",
    "width",
    "remat",
    "scan",
    "kernels",
    "micro_batches",
    "images_per_chip",
    "options",
)
COLUMNS = KEY + (
    "fits",
    "peak_gib",
    "total_gib",
    "temporaries_gib",
    "hbm_gib",
    "gib_per_image",
    "counted_gib_per_image",
    "counted_hbm_gib_per_image",
    "tflop_per_image",
    "model_tflop_per_image",
    "estimated_seconds",
    "bound_images_per_second",
    "collective_mib",
    "collective_ratio",
    "largest_collective_mib",
    "largest_collective",
    "compile_seconds",
    "versions",
)


def text(figures: dict) -> str:
    """All figures of one program, in lines."""
    return "\n".join(_lines(figures))


def row(config, figures: dict, preprocessing: dict, options: dict) -> dict:
    """One line of the table, values as text."""
    image, matmul = config.model.image, config.model.get("matmul", "default")
    matmul = [] if matmul == "default" else [f"model.matmul={matmul}"]
    values = {
        "topology": figures["topology"],
        "config": config.name or image.name,
        "dtype": config.model.dtype,
        "height": preprocessing["height"],
        "width": preprocessing["width"],
        "remat": image.get("remat", "none").replace(",", " "),
        "scan": image.get("scan", False),
        "kernels": image.get("kernels", ""),
        "micro_batches": config.train.micro_batches.image,
        "images_per_chip": f"{figures['images_per_chip']:g}",
        "options": " ".join([*matmul, *(f"{name}={value}" for name, value in options.items())]),
        "fits": figures["fits"],
        "hbm_gib": _gib(figures["hbm_bytes"]),
        "compile_seconds": f"{figures['compile_seconds']:.0f}",
        "versions": " ".join(f"{name} {version}" for name, version in figures["versions"].items()),
    }
    if figures["fits"]:
        moved, memory = figures["collectives"], figures["memory"]
        values |= {
            "peak_gib": _gib(memory["peak"]),
            "total_gib": _gib(memory["total"]),
            "temporaries_gib": _gib(memory["temporaries"]),
            "gib_per_image": _gib(figures["bytes_per_image"]),
            "counted_gib_per_image": _gib(figures["counted_bytes"] / figures["images_per_chip"]),
            "counted_hbm_gib_per_image": _gib(figures["counted_hbm_bytes"] / figures["images_per_chip"]),
            "tflop_per_image": f"{figures['flops_per_image'] / 1e12:.3f}",
            "model_tflop_per_image": f"{figures['model_flops_per_image'] / 1e12:.3f}",
            "estimated_seconds": f"{figures['estimated_seconds']:.3f}" if figures["estimated_seconds"] else "",
            "bound_images_per_second": f"{figures['images_per_second'].get('bound', 0):.1f}",
            "collective_mib": f"{moved['bytes'] / MIB:.2f}",
            "collective_ratio": f"{moved['ratio']:.3f}",
            "largest_collective_mib": f"{moved['largest_bytes'] / MIB:.2f}",
            "largest_collective": moved["largest"].split(" ")[0],
        }
    else:
        values["total_gib"] = _gib(figures["memory"]["needed"])
    return {name: str(values.get(name, "")) for name in COLUMNS}


def write(path, rows: list[dict]) -> None:
    """A CSV file of rows alone, in place of what was there."""
    with whole(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def update(path, rows: list[dict]) -> None:
    """Adds rows to a table; a row of the same program (the columns `KEY`) is replaced where it stands."""
    kept = {}
    if Path(path).exists():
        with open(path, newline="") as file:
            kept = {_key(old): {name: old.get(name, "") for name in COLUMNS} for old in csv.DictReader(file)}
    write(path, list((kept | {_key(new): new for new in rows}).values()))


def _key(row):
    return tuple(row.get(name, "") for name in KEY)


def _lines(figures):
    arguments, memory = figures["arguments"], figures["memory"]
    images = figures["images_per_chip"]
    yield (
        f"{figures['topology']}: {figures['chips']} x {figures['device_kind']}, {images:g} images a chip "
        f"({figures['breasts_per_chip']:g} breasts)"
    )
    yield "memory of a chip, GiB"
    for kind, size in arguments.items():
        yield f"  argument {kind:<12}{_gib(size):>10}"
    if not figures["fits"]:
        yield (
            f"  DOES NOT FIT: needs {_gib(memory['needed'])} of {_gib(memory['available'])} "
            f"({memory['needed'] / memory['available']:.2f} times as much)"
        )
        yield _compiled(figures)
        return
    for kind in ("arguments", "temporaries", "outputs", "aliased", "code", "peak", "total"):
        yield f"  {kind:<21}{_gib(memory[kind]):>10}{'  with padding' if kind == 'arguments' else ''}"
    yield f"  available            {_gib(figures['hbm_bytes']):>10}  fits"
    loops = figures["loops"]
    yield "work of a chip and step"
    yield (
        f"  {figures['xla_flops'] / 1e12:.3f} TFLOP compiled, {figures['model_flops'] / 1e12:.3f} of the model; "
        f"{figures['flops_per_image'] / 1e12:.3f} and {figures['model_flops_per_image'] / 1e12:.3f} an image"
    )
    yield (
        f"  {_gib(figures['xla_bytes'])} GiB accessed, {_gib(figures['bytes_per_image'])} an image by XLA's rules; "
        f"by ours {_gib(figures['counted_bytes'] / images)}, "
        f"of them {_gib(figures['counted_hbm_bytes'] / images)} in HBM"
    )
    if max(loops.values()) > 1.0005:
        yield (
            f"  XLA counts loops once: its FLOPs were multiplied by {loops['flops']:.3f} and its bytes by "
            f"{loops['bytes']:.3f}"
        )
    if figures["unknown_loops"]:
        yield f"  WARNING: passes of these loops are not known, they count once: {', '.join(figures['unknown_loops'])}"
    if rates := figures["images_per_second"]:
        by_cycles = f", {rates['cycles']:.1f} by the compiler's cycles" if "cycles" in rates else ""
        yield (
            f"  at most {rates['bandwidth']:.1f} images/s by memory bandwidth, {rates['flops']:.1f} by FLOPs"
            f"{by_cycles}: {rates['bound']:.1f}"
        )
    if figures["estimated_seconds"]:
        yield f"  {figures['estimated_cycles']:,} cycles expected, {figures['estimated_seconds'] * 1e3:.1f} ms"
    if figures["unknown_kernels"]:
        yield f"  WARNING: cycles of these kernels are not known: {', '.join(figures['unknown_kernels'])}"
    yield from _collective_lines(figures["collectives"])
    yield "most HBM traffic of a chip and step, GiB (by our rules)"
    for place in figures["heaviest"][:8]:
        yield f"  {place['bytes'] / GIB:8.3f}  {place['source'][-100:]}"
    yield _compiled(figures)


def _collective_lines(moved):
    yield "collectives of a chip and step"
    for kind, sums in moved["by_kind"].items():
        yield f"  {kind:<19}{sums['count']:>6}{sums['bytes'] / MIB:>12.3f} MiB"
    yield (
        f"  together {moved['bytes'] / MIB:.3f} MiB, {moved['ratio']:.3f} of gradients "
        f"({moved['gradient_bytes'] / MIB:.3f} MiB as they travel, {moved['gradient_bytes_float32'] / MIB:.3f} in "
        f"float32) and embeddings ({moved['embedding_bytes'] / MIB:.3f} MiB)"
    )
    yield f"  largest: {moved['largest']}"
    if moved["as_large_as_images"]:
        yield (
            f"  WARNING: as large as the images of a chip ({moved['image_batch_bytes'] / MIB:.3f} MiB) and of no "
            "parameter's shape:"
        )
        for collective in moved["as_large_as_images"]:
            yield f"    {collective}"
    else:
        yield (f"  none but gradients is as large as the images of a chip ({moved['image_batch_bytes'] / MIB:.3f} MiB)")


def _compiled(figures):
    known = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    return f"compiled in {figures['compile_seconds']:.0f} s; {known}"


def _gib(size):
    return f"{size / GIB:.3f}"
