"""A data set that was built by TensorFlow Datasets, as array_record. Reads it without TensorFlow.

The root is the folder of one version, e.g. ~/tensorflow_datasets/my_set/1.0.0 with dataset_info.json. A build made as
tfrecord must be converted first: python -m tensorflow_datasets.scripts.convert_format (which needs TensorFlow).

A record is no file, so each image is copied as it is stored (PNG, JPEG, ...; a Tensor becomes a lossless PNG) into a
folder beside the build, under a name that is a hash of its bytes. Only images that are not there yet are written.

Options name the features; nested ones as "objects/label". For tfds `curated_breast_imaging_ddsm/original-mass`:

    --option=laterality=breast --option=labels=pathology=abnormalities/pathology,birads=abnormalities/assessment
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from mammoclip_jax.data.manifest import SPLITS, Problem, SourceTable, frame, split_of
from mammoclip_jax.data.pixels import pictures
from mammoclip_jax.data.sources import report_csv, tables
from mammoclip_jax.errors import UserError
from mammoclip_jax.names import suggestion

DEFAULTS = {
    "image_id": "id",
    "patient": "patient",
    "study": "study",
    "laterality": "laterality",
    "view": "view",
    "text": "report",
    "boxes": "objects",
}
MAGIC = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"BM": ".bmp", b"II*\0": ".tif", b"MM\0*": ".tif"}


def read(
    root: str | Path,
    cache: str = "",
    name: str = "",
    splits: str = "",
    image: str = "image",
    image_id: str = "id",
    patient: str = "patient",
    study: str = "study",
    laterality: str = "laterality",
    view: str = "view",
    text: str = "report",
    boxes: str = "objects",
    labels: str = "",
    public_ids: bool = False,
    val: float = 0.1,
    test: float = 0.2,
) -> SourceTable:
    """Every record of every split.

    Args:
        cache: folder for the images; ROOT.images by default.
        name: of the data set; the build's own by default.
        splits: "fold0=train,fold1=val", where the build's names are not train, validation and test.
        image: an Image, or a Tensor [h, w] or [h, w, 1] of uint8 or uint16.
        image_id, patient, study, laterality, view, text: features with such values, where there are any. Without an
            id an image is named by its place, without a patient it is a patient of its own, without a study the patient
            is the study.
        boxes: a Sequence of {"bbox": BBoxFeature, "label": ClassLabel}, where there is one.
        labels: "KEY" or "NAME=KEY" of features that become labels, separated by commas; several values of a record are
            joined by commas.
        public_ids: identifiers are anonymous already and need no hashing. Texts are de-identified in any case.
        val, test: expected fractions of patients; of a build with the split train alone both, of one without val the
            fraction of its training patients to validate on.

    Raises:
        UserError: no build in the root, one in another format, or it lacks a feature or a split that was named.
    """
    root = Path(root)
    builder = _builder(root)
    chosen = {
        "image_id": image_id,
        "patient": patient,
        "study": study,
        "laterality": laterality,
        "view": view,
        "text": text,
        "boxes": boxes,
    }
    keys = {option: key for option, key in chosen.items() if _has(builder, option, key, key == DEFAULTS[option])}
    label_keys = {
        (alias or key).strip(): key.strip()
        for alias, _, key in (part.rpartition("=") for part in labels.split(",") if part.strip())
    }
    for key in label_keys.values():
        _has(builder, "labels", key, False)
    _has(builder, "image", image, False)
    mapped = _splits(builder, splits)
    folder = Path(cache) if cache else root.with_name(root.name + ".images")
    name = name or builder.info.name
    fractions = (val, test) if set(mapped.values()) == {"train"} else (0.0 if "val" in mapped.values() else val, 0.0)
    rows, problems, total = [], [], 0
    for part, split in mapped.items():
        source = builder.as_data_source(split=part, decoders=_undecoded(builder))
        total += len(source)
        for position in tqdm(range(len(source)), desc=part, unit="image", disable=None):
            place = f"{part}:{position}"
            try:
                record = source[position]
            except Exception as error:  # a damaged record can raise anything
                reason = f"damaged record: {type(error).__name__}"
                problems.append(Problem("", "decode", reason, "build the data set again", row=place))
                continue
            values = {option: _value(builder, record, key) for option, key in keys.items() if option != "boxes"}
            file = _store(_at(record, image), folder)
            if not file:
                remedy = "give a grey image of 8 or 16 bit with --option=image=KEY"
                problems.append(Problem("", "decode", "not an image", remedy, row=place))
                continue
            row = _row(values, place) | {"dataset": name, "file": file, "row": place}
            row["split"] = split_of(row["patient"], *fractions) if split == "train" else split
            label_values = {alias: _value(builder, record, key) for alias, key in label_keys.items()}
            row["labels"] = {alias: value for alias, value in label_values.items() if value not in ("", None)}
            if "boxes" in keys:
                row["boxes"] = _boxes(builder, record, boxes, folder / file)
            rows.append(row)
    licence = getattr(builder.info.redistribution_info, "license", "") or "see the data set's home page"
    return SourceTable(
        frame(rows),
        problems,
        licence,
        builder.info.citation or "",
        public_ids,
        root=folder,
        table_rows=total,
        private_texts=True,
    )


def _builder(root: Path):
    import tensorflow_datasets  # not above: it takes a second, and only this adapter needs it

    try:
        builder = tensorflow_datasets.builder_from_directory(root)
    except Exception as error:  # what it raises depends on what is wrong
        raise UserError(
            f"{root} holds no build of TensorFlow Datasets ({type(error).__name__}). Give --root, the "
            "folder of a version, with dataset_info.json."
        ) from error
    if builder.info.file_format.value != "array_record":
        raise UserError(
            f"{root} is a build in the format {builder.info.file_format.value}. Convert it to "
            "array_record: python -m tensorflow_datasets.scripts.convert_format"
        )
    return builder


def _feature(builder, key: str) -> Any:
    """The feature at "a/b" of the build; None where there is none."""
    feature = builder.info.features
    for part in key.split("/"):
        feature = getattr(feature, "feature", feature)  # of a Sequence what it holds
        if not hasattr(feature, "keys") or part not in feature.keys():
            return None
        feature = feature[part]
    return feature


def _has(builder, option: str, key: str, optional: bool) -> bool:
    there = _feature(builder, key) is not None
    if not there and not optional:
        known = list(builder.info.features)
        raise UserError(
            f"the build has no feature {key!r}.{suggestion(key, known)} It has: {', '.join(known)}. Name "
            f"it with --option={option}=KEY."
        )
    return there


def _splits(builder, splits: str) -> dict[str, str]:
    """Split of the build -> train, val or test."""
    given = dict(part.strip().split("=", 1) for part in splits.split(",") if "=" in part)
    mapped = {}
    for part in builder.info.splits:
        mapped[part] = given.pop(part, tables.SPLITS.get(part.lower(), part.lower()))
        if mapped[part] not in SPLITS:
            raise UserError(
                f"the build's split {part!r} is none of train, val, test. Say which it is with "
                f"--option=splits={part}=train"
            )
    if given:
        raise UserError(f"the build has no split {next(iter(given))!r}; it has {', '.join(mapped)}.")
    return mapped


def _undecoded(builder) -> dict:
    """Images on the first level come as they are stored."""
    from tensorflow_datasets import decode, features

    return {
        key: decode.SkipDecoding()
        for key, feature in builder.info.features.items()
        if isinstance(feature, features.Image)
    }


def _at(record: Mapping, key: str) -> Any:
    for part in key.split("/"):
        record = record[part]
    return record


def _value(builder, record: Mapping, key: str) -> Any:
    """A feature's value as str, int or float; a ClassLabel's as its name, a list's as its items with commas between."""
    content = _plain(_feature(builder, key), _at(record, key))
    if not isinstance(content, list):
        return content
    several = list(dict.fromkeys(content))
    return several[0] if len(several) == 1 else ",".join(map(str, several))


def _plain(feature: Any, value: Any) -> Any:
    if isinstance(value, list) or isinstance(value, np.ndarray) and value.ndim:
        return [_plain(getattr(feature, "feature", feature), item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace").strip()
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, int) and hasattr(feature, "int2str"):
        return feature.int2str(value) if 0 <= value < (feature.num_classes or 0) else ""
    return tables.value(str(value)) if isinstance(value, float) else value


def _row(values: dict, place: str) -> dict:
    text = {option: str(value) for option, value in values.items()}
    image = text.get("image_id") or place
    patient = text.get("patient") or image
    side = text.get("laterality", "").lower()
    study = text.get("study", "")
    told = report_csv.texts_of({"report": text.get("text", "")})
    return {
        "patient": patient,
        "study": report_csv.study_of(patient, study),
        "image": image,
        "laterality": tables.SIDES.get(side, side),
        "view": text.get("view", "").upper(),
        "texts": list(told.texts.values()),
        "sections": list(told.texts),
        "parts": told.parts,
    }


def _store(value: Any, folder: Path) -> str:
    """Writes an image, unless it is there; its name in `folder`, "" for what is no image."""
    if isinstance(value, np.ndarray):
        grey = value[..., 0] if value.ndim == 3 and value.shape[-1] == 1 else value
        if grey.ndim != 2 or not grey.size or grey.dtype not in (np.uint8, np.uint16):
            return ""
        value = cv2.imencode(".png", grey)[1].tobytes()
    if not isinstance(value, bytes):
        return ""
    suffix = next((suffix for magic, suffix in MAGIC.items() if value.startswith(magic)), "")
    if not suffix:
        return ""
    file = hashlib.sha256(value).hexdigest()[:32] + suffix
    if not (folder / file).is_file():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial = folder / f"{file}.{os.getpid()}.partial"
            partial.write_bytes(value)
            os.replace(partial, folder / file)
        except OSError as error:
            raise UserError(
                f"cannot write to {folder}: {error.strerror}. Give another folder with --option=cache=DIR."
            ) from None
    return file


def _boxes(builder, record: Mapping, key: str, path: Path) -> list[dict]:
    """Boxes in pixels, of TFDS's ymin, xmin, ymax, xmax as fractions of the image."""
    objects = _at(record, key)
    corners = np.array(objects["bbox"], np.float64).reshape(-1, 4)
    if not len(corners):
        return []
    named = "label" in objects
    labels = _plain(_feature(builder, f"{key}/label"), objects["label"]) if named else ["finding"] * len(corners)
    try:
        height, width = pictures.size(path.read_bytes())
    except (OSError, ValueError):  # it is quarantined for that when it is read
        height, width = 1, 1
    return [
        {"label": str(label), "box": [x0 * width, y0 * height, x1 * width, y1 * height]}
        for label, (y0, x0, y1, x1) in zip(labels, corners.tolist())
    ]
