"""What `python -m mammoclip_jax.weights` does: published files to model folders, and models to files for others."""

import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mammoclip_jax import provenance
from mammoclip_jax.config import complete
from mammoclip_jax.errors import UserError
from mammoclip_jax.models import lora
from mammoclip_jax.names import lookup
from mammoclip_jax.weights import card, folder, layouts, licences, opening, stablehlo, torch_writer, weight_files


def import_file(file: str, values) -> dict:
    """FILE to the model folder `values.out`; prints what was found and what was left out. Returns the same as JSON."""
    started = time.monotonic()
    licence = values.licence or _ask_licence(file, values.layout)
    imported = opening.import_weights(
        file,
        layout=values.layout,
        licence=licence,
        origin=values.origin,
        tokenizer=values.tokenizer,
        labels=values.labels,
    )
    write_folder(values.out, imported.variables, imported.meta)
    figures = summary(imported.variables, imported.meta) | {
        "layout": imported.layout,
        "unused": imported.unused,
        "missing": [],
        "notes": imported.notes,
        "out": values.out,
        "seconds": round(time.monotonic() - started, 1),
    }
    _print(figures)
    print(f"model folder: {values.out}")
    return figures


def inspect(file: str, values) -> dict:
    """What FILE, a folder or a run holds, without writing anything."""
    if (array := weight_files.bare_array(file)) is not None:
        return _inspect_array(array)
    if opening.is_ours(file):
        variables, meta = opening.open_weights(file)
        more = {"notes": meta["provenance"].get("notes", [])}
    else:
        variables, meta, layout, notes, unused = opening.import_weights(file)
        more = {"layout": layout, "unused": unused, "missing": [], "notes": notes}
    figures = summary(variables, meta) | more
    _print(figures)
    return figures


def _inspect_array(array: np.ndarray) -> dict:
    """Shape, dtype and the shortest and longest row of vectors without names."""
    lengths = np.linalg.norm(array.astype(np.float64), axis=-1) if array.ndim and array.size else np.zeros(1)
    figures = {
        "kind": "array",
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "lengths": [round(float(lengths.min()), 6), round(float(lengths.max()), 6)],
    }
    sizes = " x ".join(map(str, array.shape))
    print(
        f"one array without a name: {sizes} of {array.dtype}, rows of length {lengths.min():.4g} to {lengths.max():.4g}"
    )
    return figures


def export(values) -> dict:
    """The model of `values.workdir` in the format `values.format` at `values.out`.

    Raises:
        UserError: the licence of the weights, or of any that they come from, forbids it.
    """
    if not values.workdir:
        raise UserError("export needs --workdir: the folder of a run, one of its checkpoints, or a model folder.")
    variables, meta = opening.open_weights(values.workdir)
    if not (values.format == "torch" and _keeps_adapters(meta, values.layout)):
        variables, meta = merged(variables, meta)
    record = licences.check("export", meta["provenance"], values.override_licence)
    if record:
        meta["provenance"]["overrides"] = [*meta["provenance"].get("overrides", []), record]
        logging.warning("exported against the licence of %s: %s", ", ".join(record["of"]), record["override"])
    FORMATS[lookup({name: name for name in FORMATS}, values.format, "format")](values, variables, meta)
    figures = summary(variables, meta) | {"format": values.format, "out": values.out}
    _print(figures)
    print(f"written: {values.out}")
    return figures


def merged(variables: dict, meta: dict) -> tuple[dict, dict]:
    """The same model without adapters of its own: LoRA added to the kernels that it adapts."""
    if not meta["config"]["model"].get("lora"):
        return variables, meta
    plain, model = lora.merged(variables, meta["config"]["model"])
    after = meta["config"] | {"model": model}
    if not meta.get("calibration"):
        return plain, meta | {"config": after}
    old, new = (provenance.fingerprint(complete(c), v) for c, v in ((meta["config"], variables), (after, plain)))
    kept = [{**entry, "fingerprint": new} for entry in meta["calibration"] if entry["fingerprint"] == old]
    return plain, meta | {"config": after, "calibration": kept}


def write_folder(out: str, variables: dict, meta: dict, workdir: str = "") -> None:
    """The model folder, with its card; the metrics of the run's last evaluation go into the card."""
    metrics = Path(workdir, "results", "metrics.json") if workdir else None
    results = json.loads(metrics.read_text()) if metrics and metrics.is_file() else None
    folder.write(out, variables, meta, card=card.render(meta, parameters=folder.counts(variables), results=results))


def _export_folder(values, variables, meta):
    write_folder(values.out, variables, meta, values.workdir)


def _torch_layout(meta: Mapping[str, Any], wanted: str) -> str:
    """Of the published code that has such a model, `wanted` where one is; "" where there is none.

    Raises:
        UserError: nothing is written in the layout that is wanted.
    """
    if wanted:
        written = [name for name in layouts.LAYOUTS if layouts.layout(name).write]
        return lookup({name: name for name in written}, wanted, "layout that is written")
    if meta["kind"] == "dual_encoder":
        image = meta["config"]["model"]["image"]["name"]
        return {"dinov2": "mama", "clip_vit": "clip", "clip_resnet": "clip"}.get(image, "mammo_clip")
    return {"classifier": "mammo_clip_classifier", "detector": "mammo_clip_detector", "segmenter": "unet"}.get(
        meta["kind"], ""
    )


def _keeps_adapters(meta: Mapping[str, Any], wanted: str) -> bool:
    return bool(layout := _torch_layout(meta, wanted)) and layouts.layout(layout).adapters


def _export_torch(values, variables, meta):
    layout = _torch_layout(meta, values.layout)
    if not layout:
        raise UserError(
            f"the original code of Mammo-CLIP, MaMA and CLIP has no file for a single encoder ({meta['kind']}): export "
            "it with --format=folder."
        )
    if Path(values.out).is_dir():
        raise UserError(f"{values.out} is a folder: --format=torch writes one file, such as --out=mine.tar.")
    write = layouts.layout(layout).write
    torch_writer.write(
        values.out,
        write(variables, meta)
        | {
            opening.PROVENANCE: json.dumps(
                {key: meta["provenance"].get(key) for key in ("licences", "overrides", "data")}
                | {"trained_on": meta.get("trained_on")}
            )
        },
    )


def _export_stablehlo(values, variables, meta):
    if meta["kind"] != "dual_encoder":
        raise UserError(f"only the image tower of a dual encoder is written as StableHLO; this is a {meta['kind']}.")
    stablehlo.export_image(values.out, variables, meta, platforms=values.platforms)


FORMATS = {"folder": _export_folder, "torch": _export_torch, "stablehlo": _export_stablehlo}


def summary(variables, meta) -> dict:
    """JSON: kind, config of the model, parameters, input, licences."""
    keys = ("layout", "licence", "title", "weights", "stated")
    return {
        "kind": meta["kind"],
        "step": meta["step"],
        "model": meta["config"]["model"],
        "parameters": folder.counts(variables),
        "preprocessing": meta["preprocessing"],
        "tokenizer": bool(meta["tokenizer"]),
        "licences": [{key: entry.get(key) for key in keys} for entry in meta["provenance"].get("licences", [])],
    }


def _ask_licence(file: str, layout: str) -> str:
    """The licence from the person at the terminal, '' where there is none: then it is presumed, and noted so."""
    if not sys.stdin.isatty():
        return ""
    return input(f"Licence of the weights in {file} (Enter: that of the published weights of this layout): ").strip()


def _print(figures: Mapping[str, Any]) -> None:
    print(f"{figures['kind']}" + (f", layout {figures['layout']}" if "layout" in figures else ""))
    for name, count in figures["parameters"].items():
        print(f"  {name:<20} {count:>13,} parameters")
    for entry in figures["licences"]:
        print(f"  licence: {entry['title']} ({'stated' if entry['stated'] else 'presumed'}), {entry['weights']}")
    if figures.get("unused"):
        print(f"  {len(figures['unused'])} arrays without a counterpart here: {_few(figures['unused'])}")
    for note in figures.get("notes", []):
        print(f"  note: {note}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
