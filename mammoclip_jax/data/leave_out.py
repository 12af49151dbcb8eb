"""Images that their flags keep out: of a data set (`prepare --leave_out`), or of training and evaluation with one."""

import collections
import logging
from collections.abc import Iterable, Sequence

from mammoclip_jax.data.store.shards import Dataset
from mammoclip_jax.names import check_name

# Of the column `flags`; docs/data.md says what each means.
FLAGS = (
    "other_modality",
    "secondary_capture",
    "for_processing",
    "specimen",
    "magnification",
    "spot",
    "tomosynthesis",
    "synthetic_2d",
    "stereotactic",
    "recombined",
    "implant_displaced",
    "breast_implant",
    "burned_in_annotation",
    "laterality_differs",
    "view_differs",
    "chest_wall_unexpected",
    "stored_mirrored",
    "stored_upside_down",
    "orientation_contradictory",
    "polarity_contradictory",
    "photometric_unknown",
    "background_bright",
    "voi_invalid",
    "voi_flat",
    "voi_item_missing",
    "voi_bits_wrong",
    "rescale_invalid",
    "decimal_comma",
    "high_bits_masked",
    "high_bit_shifted",
    "bits_stored_wrong",
    "middle_frame",
    "outside_masked",
    "box_clipped_to_image",
    "box_cut_by_crop",
    "box_outside_crop",
    "upright",
    "no_pectoral_line",
    "scale_alone",
)
NO_MAMMOGRAM = ("other_modality", "for_processing", "specimen")  # what nobody means who names mammograms
SPLIT = "left out"  # of images that are in the data set and not used
STAGE = "left out"  # of those that are not in it, in quarantine.csv
REMEDY = "none; --leave_out says which flags"


def flags_of(flags: Iterable[str]) -> tuple[str, ...]:
    """The names, each once. Raises UserError for one that is no flag."""
    names = tuple(dict.fromkeys(flags))
    for name in names:
        check_name(name, FLAGS, "flag to leave out by")
    return names


def reason(flags: Iterable[str], leave_out: Sequence[str]) -> str:
    """Why an image with these flags is left out: "left out, spot"; "" where it is not."""
    flag = next((flag for flag in leave_out if flag in flags), "")
    return f"{STAGE}, {flag}" if flag else ""


def unused(dataset: Dataset, leave_out: Sequence[str]) -> Dataset:
    """The data set with the images that have one of these flags in the split SPLIT, which nothing reads.

    Its rows keep their places. How many there are is logged, by flag.

    Raises:
        UserError: one that is no flag.
    """
    names = flags_of(leave_out)
    if not names:
        return dataset
    reasons = [reason(flags.split(","), names) for flags in dataset.index["flags"]]
    counts = collections.Counter(filter(None, reasons))
    logging.info(
        "%s: %d of %d images are not used by config.data.leave_out%s",
        dataset.path,
        counts.total(),
        len(reasons),
        "".join(f"; {number} {why}" for why, number in sorted(counts.items())),
    )
    splits = [SPLIT if why else split for why, split in zip(reasons, dataset.index["split"])]
    return Dataset(dataset.path, dataset.info, dataset.index.assign(split=splits))
