"""How well the masks of a segmentation lie on the true ones; where there are none, what it finds, for the eye."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mammoclip_jax.data.regions.of_maps import breast_mask
from mammoclip_jax.data.store import masks as stores
from mammoclip_jax.evaluation import statistics
from mammoclip_jax.evaluation.features import chunks, read, select
from mammoclip_jax.evaluation.metrics import mask_overlap
from mammoclip_jax.evaluation.metrics.mask_overlap import Counts
from mammoclip_jax.evaluation.result import Result
from mammoclip_jax.inference import overlay
from mammoclip_jax.names import check_name

BREAST = "breast"
_CARRIED = ("image", "patient", "laterality", "view", "real")
_SIDE = 480  # pixels of a picture's longer side
_FIT = 300  # training images that the baselines are fitted to, at most


def segmentation(
    model,
    dataset,
    *,
    split: str = "test",
    labels: Sequence[str] | None = None,
    patients: int | None = None,
    threshold: float = 0.5,
    masks: str = stores.ANNOTATED,
    baselines: bool = True,
    gallery: int = 6,
    resamples: int = statistics.RESAMPLES,
    seed: int = 0,
) -> Result:
    """Dice and IoU of a segmentation's masks, for each label, beside the cheapest ones.

    Args:
        labels: of the model; None: all.
        threshold: of the probability of a pixel.
        masks: name of the data set's true masks (data/store/masks.py). A data set that has none gets pictures alone, and
            for the breast how far the model agrees with the largest bright component.
        baselines: whether brightness and place are fitted to the training images, and compared.
        gallery: pictures, drawn by `seed`, half of them of images that show a lesion; and all on one sheet.

    Metrics, of each label: those of `mask_overlap.entries`; the same with the ending _brightness and _place, and for the
    breast _component; and dice_over_brightness, dice_over_component, ... , the differences.

    Raises:
        UserError: the model lacks a label, or the masks are those of other images.
    """
    for label in labels or ():
        check_name(label, model.labels, "label of the segmentation")
    labels = tuple(labels or model.labels)
    positions = select(dataset.index, split, patients, seed)
    rows = dataset.index.iloc[positions].reset_index(drop=True)
    truth = stores.Masks.open(dataset, masks) if stores.info(dataset.path, masks) else None
    scored = tuple(label for label in labels if truth and label in truth.channels)
    rivals = _rivals(dataset, truth, scored, split, seed) if baselines and truth else {}
    looked = _look(model, dataset, positions, truth, labels, rivals, threshold)
    options = {"resamples": resamples, "seed": seed}
    metrics, counted = _metrics(looked, rows, scored, options)
    if not truth and BREAST in labels:
        agreed = looked.of[BREAST, "agreement"]
        metrics[f"{BREAST}/agreement_component"] = statistics.mean(agreed.dice, rows["patient"].astype(str), **options)
    shown = _chosen(looked, len(positions), scored, gallery, seed)
    figures, pictures = _pictures(model, dataset, positions, rows, truth, labels, shown, threshold)
    tables = {"images": counted, "pictures": pictures}
    return Result("segmentation", _protocol(split, truth, threshold, rivals), metrics, tables, figures)


class Looked(NamedTuple):
    """The pixels of each (label, who found them): of all images, 0 where it is not known; and whether it is."""

    of: Mapping[tuple[str, str], Counts]
    known: Mapping[str, np.ndarray]  # label -> bool [n]


def _look(model, dataset, positions, truth, labels, rivals, threshold) -> Looked:
    parts: dict[tuple[str, str], list[Counts]] = {}
    known: dict[str, list[bool]] = {label: [] for label in labels}
    for chunk in chunks(positions):
        images = read(dataset, chunk)
        found = model.segment(images, threshold)
        component = np.stack([breast_mask(image) for image in images]) if BREAST in labels else None
        every = np.stack([truth.read(row) for row in chunk]) > 0 if truth else None
        for label in labels:
            own = found[..., model.labels.index(label)]
            if truth is None:
                if label == BREAST:
                    parts.setdefault((label, "agreement"), []).append(mask_overlap.counts(own, component))
                continue
            if label not in truth.channels:
                continue
            channel = truth.channels.index(label)
            true = every[..., channel]
            known[label] += [bool(truth.known(row)[channel]) for row in chunk]
            guesses = {"": own} | {name: guess(images) for name, guess in rivals.get(label, {}).items()}
            if label == BREAST:
                guesses["component"] = component
            for name, guess in guesses.items():
                parts.setdefault((label, name), []).append(mask_overlap.counts(guess, true))
    joined = {key: Counts(*map(np.concatenate, zip(*counts))) for key, counts in parts.items()}
    return Looked(joined, {label: np.array(values, bool) for label, values in known.items()})


def _rivals(dataset, truth, labels, split, seed) -> dict[str, dict[str, Callable]]:
    """{label: {name: images -> masks}} of what is fitted to the training images, or to those of validation."""
    splits = dataset.index["split"]
    fitting = next((name for name in ("train", "val") if name != split and (splits == name).any()), None)
    if fitting is None:
        return {}
    positions = np.flatnonzero((splits == fitting).to_numpy())
    fitted: dict[str, dict[str, Callable]] = {}
    for label in labels:
        channel = truth.channels.index(label)
        shows = [int(row) for row in positions if truth.pixels(row)[channel] and truth.known(row)[channel]]
        if not shows:
            continue
        chosen = np.random.default_rng(seed).permutation(shows)[:_FIT]
        true = np.stack([truth.read(row)[..., channel] for row in chosen]) > 0
        images = read(dataset, chosen)
        fitted[label] = {"brightness": mask_overlap.fit_brightness(images, true), "place": mask_overlap.fit_place(true)}
    return fitted


def _metrics(looked: Looked, rows: pd.DataFrame, labels, options) -> tuple[dict[str, dict], pd.DataFrame]:
    """The metrics of all labels, and a table of what they rest on."""
    metrics, table = {}, []
    patients = rows["patient"].astype(str).to_numpy()
    for label in labels:
        known = looked.known[label]
        by = {name: Counts(*(x[known] for x in of)) for (own, name), of in looked.of.items() if own == label and name}
        own = Counts(*(x[known] for x in looked.of[label, ""]))
        table.append(
            {
                "label": label,
                "images": int(known.sum()),
                "with": int((own.true > 0).sum()),
                "unknown": int((~known).sum()),
                "patients": len(set(patients[known])),
            }
        )
        for name, of in {"": own, **by}.items():
            ending = f"_{name}" if name else ""
            for metric, entry in mask_overlap.entries(of, patients[known], **options).items():
                metrics[f"{label}/{metric}{ending}"] = entry
        for name, of in by.items():
            metrics[f"{label}/dice_over_{name}"] = mask_overlap.gained(own, of, patients[known], **options)
    return metrics, pd.DataFrame(table)


def _chosen(looked: Looked, count: int, labels, gallery: int, seed: int) -> list[int]:
    """Places of the images for the pictures: half of those that show what not all show, as far as there are."""
    order = np.random.default_rng(seed).permutation(count)
    rare = np.zeros(count, bool)
    for label in labels:
        true = looked.of[label, ""].true > 0
        rare |= true & (true.mean() < 0.5)
    first = [int(i) for i in order if rare[i]][: gallery // 2]
    return first + [int(i) for i in order if i not in first][: gallery - len(first)]


def _pictures(model, dataset, positions, rows, truth, labels, places, threshold):
    figures, table, drawn = {}, [], []
    for number, place in enumerate(places):
        row = int(positions[place])
        image = dataset.read(row)
        masks = model.segment(image[None], threshold)[0]
        found = {label: masks[..., model.labels.index(label)] for label in labels}
        true = _true(truth, row, labels)
        name = f"masks_{number:03d}"
        drawn.append(overlay.masks(image, found, true, _SIDE))
        figures[name] = overlay.png(drawn[-1])
        notes = [
            f"{label} {counts.dice[0]:.2f}"
            for label, mask in true.items()
            if (counts := mask_overlap.counts(found[label][None], mask[None])).true[0]
        ]
        table.append(
            {"figure": name, "label": "masks"}
            | rows.iloc[place][list(_CARRIED)].to_dict()
            | {"note": f"Dice: {', '.join(notes)}" if notes else "no true mask to compare with"}
        )
    if len(drawn) > 1:
        figures["sheet_of_masks"] = overlay.png(overlay.sheet(drawn))
    return figures, pd.DataFrame(table)


def _true(truth, row: int, labels) -> dict[str, np.ndarray]:
    """{label: mask} of an image, of what is known of it."""
    if truth is None:
        return {}
    known, masks = truth.known(row), truth.read(row) > 0
    return {
        label: masks[..., truth.channels.index(label)]
        for label in labels
        if label in truth.channels and known[truth.channels.index(label)]
    }


def _protocol(split, truth, threshold, rivals) -> str:
    text = f"Split {split}, pixels with a probability above {threshold:g}. "
    if truth is None:
        return text + (
            "There are no true masks: no figure says how good these are. breast/agreement_component: mean Dice with the "
            f"largest bright component, which is no truth either. Intervals: {statistics.INTERVAL}."
        )
    text += (
        "dice, iou: means over the images that show it; dice_pooled: of the pixels of all images, those without it "
        "included; clean: share of the images without it in which nothing is found. Images of which it is not known are "
        "left out. component: the largest component brighter than the air. "
    )
    if rivals:
        text += (
            "brightness: pixels above the blur and grey value of the highest mean Dice on training images that show it; "
            "place: the same pixels in all images, likewise. dice_over_...: mean difference, image by image. "
        )
    else:
        text += "No training images to fit brightness and place to, or not asked for. "
    return text + f"Intervals: {statistics.INTERVAL}."
