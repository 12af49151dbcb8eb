"""What the labels of a manifest row say: values read whatever their type, findings that are there, those that are not.

A positive finding is never among the negative ones, and no negative contradicts a positive of its family.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

# Keys of the manifest's labels that are findings: how one is said to be there, and how it is said to be absent.
PRESENT = {
    "mass": "a mass",
    "calcification": "calcifications",
    "suspicious_calcification": "suspicious calcifications",
    "asymmetry": "an asymmetry",
    "focal_asymmetry": "a focal asymmetry",
    "global_asymmetry": "a global asymmetry",
    "architectural_distortion": "architectural distortion",
    "skin_thickening": "skin thickening",
    "skin_retraction": "skin retraction",
    "nipple_retraction": "nipple retraction",
    "suspicious_lymph_node": "a suspicious lymph node",
    "implant": "a breast implant",
}
ABSENT = {
    "mass": "mass",
    "calcification": "calcification",
    "suspicious_calcification": "suspicious calcification",
    "architectural_distortion": "architectural distortion",
    "asymmetry": "asymmetry",
    "focal_asymmetry": "focal asymmetry",
    "global_asymmetry": "global asymmetry",
    "skin_thickening": "skin thickening",
    "skin_retraction": "skin retraction",
    "nipple_retraction": "nipple retraction",
    "suspicious_lymph_node": "suspicious lymph node",
}
# The general finding and its kinds: no member is denied where one is there, nor the kinds where all of it is denied.
FAMILIES = {"calcification": ("suspicious_calcification",), "asymmetry": ("focal_asymmetry", "global_asymmetry")}

READ = (
    *PRESENT,
    "abnormal",
    "density",
    "birads",
    "no_finding",
)  # the labels that `consistent` changes, or asks for others


def density_number(value: Any) -> int | None:
    """Density as 1 to 4, of "A" to "D" (any case) or of the number; None for anything else."""
    text = text_of(value).upper()
    return "ABCD".index(text) + 1 if text in tuple("ABCD") else _whole(text, range(1, 5))


def birads_number(value: Any) -> int | None:
    """BI-RADS category 0 to 6 of a number or text such as "4A"; None for anything else."""
    return _whole(text_of(value).upper().rstrip("ABC"), range(7))


def text_of(value: Any) -> str:
    """A label as text; "" for None and NaN."""
    return "" if value is None or value is pd.NA or value != value else str(value).strip()


def written(value: Any) -> str:
    """A label as text, of a list its items; "" for what has no words of its own."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(text_of, value))
    return "" if isinstance(value, dict) else text_of(value)


def _whole(text: str, allowed: range) -> int | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number in allowed else None


def flag(value: Any) -> int | None:
    """0 or 1 of a number, truth value or text; None for anything else."""
    return _whole(str(int(value)) if isinstance(value, bool) else text_of(value), range(2))


def key_of(label: str) -> str:
    """From "Suspicious Calcification" to the key of the labels."""
    return label.strip().lower().replace(" ", "_").replace("-", "_")


def present(flags: Mapping[str, int | None]) -> list[str]:
    """The findings that are there; the general one gives way to its kinds."""
    return [key for key in PRESENT if flags.get(key) and not any(flags.get(kind) for kind in FAMILIES.get(key, ()))]


def absent(flags: Mapping[str, int | None]) -> list[str]:
    """The findings that are not there; no family of one that is, and no kinds where the general one is denied."""
    hidden: set[str] = set()
    for key, kinds in FAMILIES.items():
        family = (key, *kinds)
        if any(flags.get(member) for member in family):
            hidden |= set(family)
        elif flags.get(key) == 0:
            hidden |= set(kinds)
    return [key for key in ABSENT if flags.get(key) == 0 and key not in hidden]


def names_of(box: Mapping[str, Any]) -> tuple[str, ...]:
    """All that a box of the manifest is labelled with: "labels" where it has several, else "label"."""
    return tuple(map(str, box.get("labels") or (box.get("label", ""),)))


def flags(labels: Mapping[str, Any], boxes: Iterable[Mapping[str, Any]] = ()) -> dict[str, int | None]:
    """Finding (and "abnormal") to 1, 0 or None; 1 as well where a box is of the finding."""
    states = {key: flag(labels.get(key)) for key in (*PRESENT, "abnormal")}
    return states | {key: 1 for item in boxes for key in map(key_of, names_of(item)) if key in PRESENT}


def consistent(labels: Mapping[str, Any], boxes: Iterable[Mapping[str, Any]] = ()) -> dict[str, str]:
    """The known labels as text, for templates: "density" is A to D, "birads" 0 to 6, findings are "1" or "0".

    Of a family only what `present` and `absent` name is left. "no_finding" is "1" where the labels say so (of a
    chest), "abnormal" is 0, or every finding of ABSENT is, and nothing is there.
    """
    known = {key: written(value) for key, value in labels.items()}
    density, birads = density_number(labels.get("density")), birads_number(labels.get("birads"))
    states = flags(labels, boxes)
    there, away = present(states), absent(states)
    known |= {"density": "ABCD"[density - 1] if density else "", "birads": "" if birads is None else str(birads)}
    known |= dict.fromkeys(states, "") | dict.fromkeys(there, "1") | dict.fromkeys(away, "0")
    nothing = states["abnormal"] == 0 or all(states[key] == 0 for key in ABSENT)
    known["no_finding"] = "1" if nothing and not there or flag(labels.get("no_finding")) else ""
    return {key: value for key, value in known.items() if value}
