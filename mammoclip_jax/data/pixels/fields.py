"""The few fields of a DICOM header that matter, from wherever vendors put them.

Each is one of a fixed list of words, a number or an identifier, never a header's free text, which could name somebody.
Codes: PS3.16 context groups 4014 (views), 4015 (view modifiers) and 244 (laterality), in SNOMED CT and the older SNOMED
RT. An odd value counts as unknown, never as an error.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import pydicom
from pydicom.multival import MultiValue
from pydicom.uid import UID

from mammoclip_jax.data.pixels import orientation

VIEW_CODES = {
    "399162004": "CC",
    "R-10242": "CC",
    "399368009": "MLO",
    "R-10226": "MLO",
    "399260004": "ML",
    "R-10224": "ML",
    "399352003": "LM",
    "R-10228": "LM",
    "399099002": "LMO",
    "R-10230": "LMO",
    "399196006": "FB",
    "R-10244": "FB",
    "399188001": "SIO",
    "R-102D0": "SIO",
    "441555000": "ISO",
    "R-40AAA": "ISO",
    "399192008": "XCCL",
    "R-1024A": "XCCL",
    "Y-X1770": "XCCL",
    "399101009": "XCCM",
    "R-1024B": "XCCM",
    "Y-X1771": "XCCM",
    "R-102CF": "XCC",
}
# Modifiers whose name replaces the view's (ACR MQCM 1999).
MODIFIER_VIEWS = {
    "399011000": "AT",
    "R-102D1": "AT",
    "399161006": "CV",
    "R-102D2": "CV",
    "399110001": "TAN",
    "R-102C2": "TAN",
}
MODIFIER_FLAGS = {
    "399209000": "implant_displaced",
    "R-102D5": "implant_displaced",
    "399163009": "magnification",
    "R-102D6": "magnification",
    "399055006": "spot",
    "R-102D7": "spot",
}
SPECIMEN_CODES = ("127457009", "G-8310")
# Right and left; right breast and left breast.
SIDE_CODES = {
    "24028007": "R",
    "G-A100": "R",
    "73056007": "R",
    "T-04020": "R",
    "7771000": "L",
    "G-A101": "L",
    "80248007": "L",
    "T-04030": "L",
}
# Names of views that stand in tags beside those with a code: rolled (RL, RM, RI, RS), latero-lateral, exaggerated.
VIEWS = frozenset(VIEW_CODES.values()) | {"AT", "CV", "TAN", "RL", "RM", "RI", "RS", "LL", "XCC"}
# A view with its ACR prefixes and suffixes: side, magnification or spot, view, implant displaced or rolled.
_NAMED = re.compile(r"([LR]?)([MS]?)(CC|MLO|ML|LMO|LM|XCCL|XCCM|XCC|SIO|ISO|FB|AT|CV|TAN)(ID|RL|RM|RI|RS|NP|AC|AX)?")
_DESCRIBED = ("CC", "MLO", "ML", "LM", "LMO", "XCCL", "XCCM", "XCC")  # AT and the like are words of other languages
# As people write them, in the languages of the devices.
SIDES = (
    {"L": "L", "R": "R"}
    | dict.fromkeys(
        "LEFT LT GAUCHE LINKS LINKE IZQUIERDA IZQUIERDO IZQ SINISTRA SINISTRO ESQUERDA ESQUERDO LEWA LEWY".split(), "L"
    )
    | dict.fromkeys(
        "RIGHT RT DROIT DROITE RECHTS RECHTE DERECHA DERECHO DESTRA DESTRO DIREITA DIREITO PRAWA PRAWY".split(), "R"
    )
)

VENDORS = {
    "hologic": "Hologic",
    "lorad": "Hologic",
    "ge ": "GE",
    "ge healthcare": "GE",
    "siemens": "Siemens",
    "fuji": "Fuji",
    "philips": "Philips",
    "sectra": "Sectra",
    "planmed": "Planmed",
    "ims": "IMS",
    "giotto": "IMS",
    "agfa": "Agfa",
    "carestream": "Carestream",
    "kodak": "Carestream",
    "konica": "Konica",
    "metaltronica": "Metaltronica",
}
FOR_PROCESSING_CLASSES = ("1.2.840.10008.5.1.4.1.1.1.2.1", "1.2.840.10008.5.1.4.1.1.13.1.5")
SECONDARY_CAPTURES = tuple(f"1.2.840.10008.5.1.4.1.1.7{kind}" for kind in ("", ".1", ".2", ".3", ".4"))
PROJECTIONS = ("CR", "DX", "RG")  # modalities that some breast images have instead of MG
BREAST = ("BREAST", "MAMMO")
IMAGE_TYPES = {  # of stereotactic biopsies; what is made of two energies after contrast medium, or the upper one
    "tomosynthesis": ("TOMOSYNTHESIS", "TOMO", "TOMO_PROJ", "TOMO_SCOUT"),
    "synthetic_2d": ("GENERATED_2D",),
    "stereotactic": ("STEREO_SCOUT", "STEREO_PLUS", "STEREO_MINUS"),
    "recombined": ("RECOMBINED", "SUBTRACTION", "HIGH_ENERGY"),
}
TOMOSYNTHESIS_CLASS = "1.2.840.10008.5.1.4.1.1.13.1.3"
UNKNOWN_CLASS = "DICOM object of an unknown class"
MAGNIFIED = 1.3  # estimated radiographic magnification: of contact views 1.0 to 1.1, of magnified ones 1.5 to 2

# The elements that are looked at here.
USED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "StudyDate",
    "Modality",
    "ImageType",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "ImageLaterality",
    "Laterality",
    "FrameLaterality",
    "ViewPosition",
    "PatientOrientation",
    "ViewCodeSequence",
    "ViewModifierCodeSequence",
    "AnatomicRegionSequence",
    "PrimaryAnatomicStructureSequence",
    "SeriesDescription",
    "ProtocolName",
    "Manufacturer",
    "PatientID",
    "PresentationIntentType",
    "BodyPartExamined",
    "PaddleDescription",
    "EstimatedRadiographicMagnificationFactor",
    "BreastImplantPresent",
    "BurnedInAnnotation",
)


class Fields(NamedTuple):
    """What is carried from the header; "" is unknown.

    What may identify a person is for joining to tables, in memory only; it is written nowhere.
    """

    laterality: str = ""  # "L" or "R"
    view: str = ""  # one of VIEWS
    vendor: str = ""  # one of VENDORS, or "other"
    patient: str = ""  # PatientID
    flags: tuple[str, ...] = ()
    study_date: str = ""  # YYYYMMDD
    study: str = ""  # StudyInstanceUID
    image: str = ""  # SOPInstanceUID
    size: str = ""  # "height width"
    kind: str = ""  # what object it is: the standard's name of its SOP class, or UNKNOWN_CLASS


def fields(header: pydicom.Dataset) -> Fields:
    """The fields of a header.

    Laterality and view: from their tags, else their codes, else (CBIS-DDSM) PatientOrientation holding the view, else
    the words of SeriesDescription and ProtocolName; the side at last from PatientOrientation. Flags: `for_processing`,
    `specimen`, `magnification`, `spot`, `tomosynthesis`, `synthetic_2d`, `stereotactic`, `recombined`,
    `implant_displaced`, `breast_implant`, `burned_in_annotation`, `secondary_capture` (without side and view, which
    those of digitised films have), `other_modality` (no mammogram).
    """
    date = text(header, "StudyDate").replace(".", "").replace("-", "")
    rows, columns = text(header, "Rows"), text(header, "Columns")
    return Fields(
        _laterality(header),
        _view(header),
        vendor_of(text(header, "Manufacturer")),
        text(header, "PatientID", upper=False),
        _flags(header),
        date if re.fullmatch(r"\d{8}", date) else "",
        text(header, "StudyInstanceUID"),
        text(header, "SOPInstanceUID"),
        f"{rows} {columns}" if rows.isdigit() and columns.isdigit() else "",
        _kind(header),
    )


def _kind(header: pydicom.Dataset) -> str:
    uid = text(header, "SOPClassUID") or text(getattr(header, "file_meta", None) or {}, "MediaStorageSOPClassUID")
    name = UID(uid).name
    return (name if name != uid else UNKNOWN_CLASS) if uid else ""


def text(header: pydicom.Dataset, name: str, upper: bool = True) -> str:
    """An element as text, the first of several values; "" where it is absent or damaged."""
    try:
        value = header.get(name)
        value = value[0] if isinstance(value, (MultiValue, list)) and value else value
        content = str(value if value is not None else "").strip()
    except Exception:  # of any kind, for a damaged element
        return ""
    return content.upper() if upper else content


def _words(header: pydicom.Dataset, *names: str) -> list[str]:
    return [word for name in names for word in _split(text(header, name))]


def _split(value: str) -> list[str]:
    return [word for word in re.split(r"[^A-Z0-9]+", value) if word]


def _codes(header: pydicom.Dataset, *path: str) -> Iterator[str]:
    """The code values at a path of nested sequences."""
    try:
        items = list(header.get(path[0]) or ())
    except Exception:
        return
    for item in items:
        if len(path) > 1:
            yield from _codes(item, *path[1:])
        else:
            yield text(item, "CodeValue")


def _modifiers(header: pydicom.Dataset) -> list[str]:
    """View modifiers, which stand inside the view's code, or beside it."""
    nested = _codes(header, "ViewCodeSequence", "ViewModifierCodeSequence")
    return [*nested, *_codes(header, "ViewModifierCodeSequence")]


def _laterality(header: pydicom.Dataset) -> str:
    for name in ("ImageLaterality", "Laterality", "FrameLaterality"):
        value = text(header, name)
        side = SIDES.get(value) or value[:1]
        if side in ("L", "R"):
            return side
        if side == "B":
            return ""  # both breasts
    position = text(header, "ViewPosition")
    named = _NAMED.fullmatch(position.replace(" ", ""))
    coded = [
        *_codes(header, "AnatomicRegionSequence", "AnatomicRegionModifierSequence"),
        *_codes(header, "AnatomicRegionSequence"),
        *_codes(header, "PrimaryAnatomicStructureSequence", "PrimaryAnatomicStructureModifierSequence"),
        *_codes(header, "PrimaryAnatomicStructureSequence"),
    ]
    sides = {SIDE_CODES[code] for code in coded if code in SIDE_CODES}
    if not sides and named and named[1] and named[0] not in VIEWS:
        sides = {named[1]}
    sides = sides or set(map(SIDES.get, _split(position))) - {None}
    sides = sides or {side for side, _ in _described(header) if side}
    return sides.pop() if len(sides) == 1 else "" if sides else orientation.side(header)


def view_of(position: str) -> str:
    """One of VIEWS for a view as people write it, "MLO", "l-cc", "RMMLO", "CC gauche"; "" for any other text."""
    words = _split(position.upper())
    for kept in (
        [word for word in words if SIDES.get(word, word) == word],  # letters may be of the view, as in "R M CC"
        [word for word in words if word not in SIDES],
    ):
        named = _NAMED.fullmatch(whole := "".join(kept))
        if whole in VIEWS or named:
            return whole if whole in VIEWS else named[3]
    return ""


def _view(header: pydicom.Dataset) -> str:
    told = view_of(text(header, "ViewPosition"))
    if told:
        return told
    views = [VIEW_CODES[code] for code in _codes(header, "ViewCodeSequence") if code in VIEW_CODES]
    if views:
        replacing = [MODIFIER_VIEWS[code] for code in _modifiers(header) if code in MODIFIER_VIEWS]
        return (replacing or views)[0]
    orientation = text(header, "PatientOrientation")
    if orientation in ("CC", "MLO"):
        return orientation
    described = {view for _, view in _described(header) if view}
    return described.pop() if len(described) == 1 else ""


def _described(header: pydicom.Dataset) -> list[tuple[str, str]]:
    """(side, view) of every word of the descriptions that is one or both ("R", "CC", "LMLO", "left"), else ""."""
    pairs = []
    for word in _words(header, "SeriesDescription", "ProtocolName"):
        named = _NAMED.fullmatch(word)
        if word in _DESCRIBED:
            pairs.append(("", word))
        elif named and named[3] in _DESCRIBED:
            pairs.append((named[1], named[3]))
        elif word in SIDES:
            pairs.append((SIDES[word], ""))
    return pairs


def vendor_of(manufacturer: str) -> str:
    """One of VENDORS for a manufacturer's name, "other" for one that is not among them, "" for none."""
    name = manufacturer.strip().lower() + " "
    if not name.strip():
        return ""
    return next((vendor for part, vendor in VENDORS.items() if name.startswith(part) or f" {part}" in name), "other")


def _flags(header: pydicom.Dataset) -> tuple[str, ...]:
    flags = {MODIFIER_FLAGS[code] for code in _modifiers(header) if code in MODIFIER_FLAGS}
    position = text(header, "ViewPosition").replace(" ", "")
    named = _NAMED.fullmatch(position) if position not in VIEWS else None
    if named:
        flags.add({"M": "magnification", "S": "spot"}.get(named[2], ""))
        flags.add("implant_displaced" if named[4] == "ID" else "")
    words = set(_words(header, "PaddleDescription", "SeriesDescription", "ProtocolName", "ViewPosition"))
    paddle = set(_words(header, "PaddleDescription"))
    viewed = view_of(position) or any(code in VIEW_CODES for code in _codes(header, "ViewCodeSequence"))
    tags = {
        "for_processing": text(header, "PresentationIntentType") == "FOR PROCESSING"
        or text(header, "SOPClassUID") in FOR_PROCESSING_CLASSES,
        # The description of a view of the breast may speak of a specimen, which is not what it shows.
        "specimen": "SPECIMEN" in set(_words(header, "BodyPartExamined")) | (set() if viewed else words)
        or any(code in SPECIMEN_CODES for code in _codes(header, "ViewCodeSequence")),
        "magnification": bool({"MAG", "MAGNIFICATION", "MAGNIFIED"} & words) or _magnification(header) >= MAGNIFIED,
        "spot": "SPOT" in words or any(word.startswith("SPOT") for word in paddle),
        "breast_implant": text(header, "BreastImplantPresent") == "YES",
        "burned_in_annotation": text(header, "BurnedInAnnotation") == "YES",
        "secondary_capture": text(header, "SOPClassUID") in SECONDARY_CAPTURES
        and not (_laterality(header) and _view(header)),
        "other_modality": _is_other(header),
    }
    flags |= {flag for flag, holds in tags.items() if holds} | _kinds(header)
    return tuple(sorted(flags - {""}))


def _is_other(header: pydicom.Dataset) -> bool:
    """Whether the header's modality is not that of mammograms."""
    modality = text(header, "Modality")
    if modality in PROJECTIONS:
        return text(header, "BodyPartExamined") not in BREAST
    return modality not in ("", "MG")


def _magnification(header: pydicom.Dataset) -> float:
    try:
        return float(text(header, "EstimatedRadiographicMagnificationFactor").replace(",", "."))
    except ValueError:
        return 1.0


def _kinds(header: pydicom.Dataset) -> set[str]:
    """What else than a plain view the image type says that it is (PS3.3 C.8.11.7.1.4)."""
    try:
        kinds = {str(kind).strip().upper() for kind in header.get("ImageType") or ()}
    except Exception:
        kinds = set()
    flags = {flag for flag, names in IMAGE_TYPES.items() if kinds & set(names)}
    if text(header, "SOPClassUID") == TOMOSYNTHESIS_CLASS:
        flags.add("tomosynthesis")
    return flags - {"tomosynthesis"} if "synthetic_2d" in flags else flags  # made of its slices
