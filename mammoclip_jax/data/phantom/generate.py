"""A folder of phantom exams: generated in parallel, resumable, the same bytes for the same parameters.

phantom.json                 parameters, version, what the files are
images.parquet               one row an image: file, exam, boxes, texts, labels
pectoral.csv                 one row an MLO image: angle to the vertical (degrees) and distance from the upper
                             chest-wall corner (pixels) of the straight line fitted to the muscle's edge
exams/phantom-0-000012/      L_CC.dcm ... R_MLO.dcm, report.txt, exam.json,
                             L_CC.mask.png ...: only for views with a lesion; pixel = sum of the bits of its lesions
"""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import cv2
import pandas as pd

from mammoclip_jax.data import pool
from mammoclip_jax.data.phantom import exam as exams
from mammoclip_jax.data.phantom import report_text, skin_marker, writer
from mammoclip_jax.data.phantom.exam import Parameters
from mammoclip_jax.errors import UserError
from mammoclip_jax.files import whole, write_text

DESCRIPTION = "phantom.json"
TABLE = "images.parquet"
PECTORAL = "pectoral.csv"
FOLDER = "exams"
LIMITS = {
    "seed": (0, 2**32 - 1),
    "height": (128, 3518),  # pixels
    "width": (96, 2800),
    "contrast": (0, 3),
    "mass_prevalence": (0, 1),
    "calcification_prevalence": (0, 1),
    "perpendicular": (False, True),
    "shortcut_share": (0, 1),
    "shortcut_held_out": (0, 1),
}


def generate(
    out: str | Path, count: int, parameters: Parameters = Parameters(), workers: int = 1, progress=None
) -> int:
    """Makes the exams 0 to `count` - 1 of a phantom set in `out` and the table of their images.

    Exams that are there already are kept, so an interrupted call is completed and a set can be grown. The bytes
    depend on `parameters` and `count` only, not on `workers`.

    Args:
        out: folder, made if absent.
        count: number of exams, four images each.
        parameters: what they look like.
        workers: processes; 1 works in this one.
        progress: called as progress(done, count) after each exam.

    Returns:
        How many exams were made now.

    Raises:
        UserError: a parameter is out of range, `out` holds something else or a set with other parameters, or a
            worker died.
    """
    _check(count, parameters)
    out = Path(out)
    _claim(out, parameters)
    missing = [number for number in range(count) if not (out / FOLDER / exams.patient(parameters, number)).exists()]
    tasks = [(str(out), parameters, number) for number in missing]
    done = count - len(missing)
    for result in pool.ordered_map(write_exam, tasks, min(workers, len(tasks)) if workers > 1 else 0):
        if isinstance(result, pool.WorkerLost):
            raise UserError(
                f"a process that made exams for {out} died, perhaps for want of memory: run again with "
                "fewer workers. The finished exams are kept."
            )
        done += 1
        if progress:
            progress(done, count)
    _write_table(out, count, parameters)
    _write_json(out / DESCRIPTION, _description(parameters) | {"exams": count})
    return len(missing)


def write_exam(task: tuple[str, Parameters, int]) -> None:
    """Makes the folder of one exam, whole or not at all; `task` is (out, parameters, number)."""
    out, parameters, number = task
    exam = exams.draw(parameters, number)
    final = Path(out) / FOLDER / exam.patient
    partial = final.with_name(f".{exam.patient}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rows = [_write_view(exam, partial, laterality, view) for laterality, view in exams.VIEWS]
    (partial / "report.txt").write_text(report_text.report(exam))
    _write_json(partial / "exam.json", {"patient": exam.patient, "images": rows, "breasts": _facts(exam)})
    os.replace(partial, final)


def _write_view(exam, folder: Path, laterality: str, view: str) -> dict:
    """Writes the files of one view; returns its row of the table."""
    picture = exams.render(exam, laterality, view)
    pixels = writer.stored_pixels(exam, picture, laterality, view)
    ds = writer.image_dataset(exam, laterality, view, pixels)
    name = f"{laterality}_{view}"
    writer.write(folder / f"{name}.dcm", ds)
    if picture.mask.any():
        (folder / f"{name}.mask.png").write_bytes(cv2.imencode(".png", picture.mask)[1].tobytes())
    breast = exam.breasts[laterality]
    texts, sections = report_text.texts(exam, laterality)
    labels = {label: int(breast.has(label)) for label in exams.MASK_BITS}
    if exam.parameters.shortcut:
        labels[skin_marker.LABEL] = int(breast.skin_marker)
    return {
        "patient": exam.patient,
        "study": str(ds.StudyInstanceUID),
        "image": _image(exam, laterality, view),
        "file": f"{FOLDER}/{exam.patient}/{name}.dcm",
        "laterality": laterality,
        "view": view,
        "vendor": ds.Manufacturer,
        "texts": texts,
        "sections": sections,
        "labels": json.dumps(labels | {"density": exam.habitus.density, "birads": breast.birads}),
        "boxes": json.dumps(list(picture.boxes)),
    }


def _image(exam, laterality: str, view: str) -> str:
    return f"{exam.patient}-{laterality}{view}"


def _facts(exam) -> dict:
    facts = {
        side: {"birads": breast.birads, "lesions": [asdict(lesion) for lesion in breast.lesions]}
        for side, breast in exam.breasts.items()
    }
    if exam.parameters.shortcut:
        for side, breast in exam.breasts.items():
            facts[side][skin_marker.LABEL] = breast.skin_marker
    return facts


def _check(count: int, parameters: Parameters) -> None:
    if count < 1:
        raise UserError(f"the number of exams is {count}; ask for at least 1.")
    for name, (lowest, highest) in LIMITS.items():
        value = getattr(parameters, name)
        if not lowest <= value <= highest:
            raise UserError(f"{name}={value} is out of range: choose {lowest} to {highest}.")
    if parameters.shortcut and parameters.shortcut not in exams.MASK_BITS:
        raise UserError(
            f"shortcut={parameters.shortcut!r} is no finding of phantoms: choose {' or '.join(exams.MASK_BITS)}."
        )
    default = Parameters()
    for name in ("shortcut_share", "shortcut_held_out"):
        if not parameters.shortcut and getattr(parameters, name) != getattr(default, name):
            raise UserError(
                f"nothing reads {name}={getattr(parameters, name)} without a shortcut: name its finding too."
            )
    if not 0.4 <= parameters.width / parameters.height <= 1.25:
        raise UserError(
            f"{parameters.height} x {parameters.width} pixels is not the shape of a mammogram: choose a "
            "width of 0.4 to 1.25 times the height."
        )


def _claim(out: Path, parameters: Parameters) -> None:
    """Makes `out` the folder of these parameters, or refuses."""
    path = out / DESCRIPTION
    wanted = _description(parameters)
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is something else than a phantom set (no {DESCRIPTION}): choose a new folder.")
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        _write_json(path, wanted)
        return
    description = read_description(out)
    there = asdict(Parameters()) | description["parameters"] | {"version": description["version"]}
    for name, value in {"version": exams.VERSION, **asdict(parameters)}.items():
        old = there[name]
        if old != value:
            raise UserError(f"{out} was made with {name}={old}, not {value}: choose another folder, or remove it.")


def read_description(root: Path) -> dict:
    """The content of phantom.json.

    Raises:
        UserError: it is absent or not what `generate` writes.
    """
    path = root / DESCRIPTION
    try:
        description = json.loads(path.read_text())
        description["version"], description["parameters"].items()
        return description
    except FileNotFoundError:
        raise UserError(f"{root} is no phantom set: {path} is absent. {how_to_make(root)}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} cannot be read: remove the folder and make the set again.") from None


def how_to_make(root: Path) -> str:
    """The sentence that tells how to make (or complete) a set in `root`."""
    return f"Make it with: python -m mammoclip_jax.data.sources.phantom --out={root} --exams=N"


def _description(parameters: Parameters) -> dict:
    return {
        "what": "Computer phantoms of mammography exams. No image, report or identifier belongs to a person.",
        "licence": "CC0-1.0",
        "version": exams.VERSION,
        "parameters": parameters.as_json(),
        "mask_bits": exams.MASK_BITS,
    }


def _write_table(out: Path, count: int, parameters: Parameters) -> None:
    rows = []
    for number in range(count):
        path = out / FOLDER / exams.patient(parameters, number) / "exam.json"
        try:
            rows += json.loads(path.read_text())["images"]
        except (OSError, ValueError, KeyError):
            raise UserError(f"{path} is absent or damaged: remove the folder {path.parent} and run again.") from None
    with whole(out / TABLE) as partial:
        pd.DataFrame(rows).to_parquet(partial, index=False)
    drawn = [exams.draw(parameters, number) for number in range(count)]
    lines = [(_image(exam, side, "MLO"), *exam.outline(side, "MLO").muscle()) for exam in drawn for side in "RL"]
    muscles = pd.DataFrame(lines, columns=["image", "angle", "distance"])
    write_text(out / PECTORAL, muscles.to_csv(index=False, float_format="%.3f"))


def _write_json(path: Path, content: dict) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")
