"""Codes of what a model scores: SNOMED CT and DCM where they have one, else this program's own scheme.

Findings: PS3.16 CID 6014 and 6016; density CID 6000; BI-RADS CID 6026; views CID 4014; laterality CID 244.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from highdicom.coding_schemes import CodingSchemeIdentificationItem
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

SCHEME = "99MAMMOCLIP"
BREAST = Code("76752008", "SCT", "Breast structure")
MAMMOGRAPHY = Code("71651007", "SCT", "Mammography")
IMAGING = Code("363679005", "SCT", "Imaging")
MEAN, MAXIMUM = Code("373098007", "SCT", "Mean"), Code("56851009", "SCT", "Maximum")
SIDES = {"L": Code("7771000", "SCT", "Left"), "R": Code("24028007", "SCT", "Right")}
VIEWS = {
    "CC": codes.cid4014.CranioCaudal,
    "MLO": codes.cid4014.MedioLateralObliqueProjection,
    "ML": codes.cid4014.MedioLateralProjection,
    "LM": codes.cid4014.LateroMedial,
    "LMO": codes.cid4014.LateroMedialOblique,
    "XCCL": codes.cid4014.CranioCaudalExaggeratedLaterally,
    "XCCM": codes.cid4014.CranioCaudalExaggeratedMedially,
    "FB": codes.cid4014.CaudoCranial,
    "SIO": codes.cid4014.SuperolateralToInferomedialOblique,
    "ISO": codes.cid4014.InferomedialToSuperolateralOblique,
}
_CANCER = Code("254837009", "SCT", "Malignant neoplasm of breast")
_MASS = Code("129788004", "SCT", "Mammographic breast mass")
_CALCIFICATION = Code("309587003", "SCT", "Calcification of breast")
_FINDINGS = {
    "mass": _MASS,
    "calcification": _CALCIFICATION,
    "calcifications": _CALCIFICATION,
    "architectural distortion": codes.cid6014.ArchitecturalDistortionOfBreast,
    "asymmetry": codes.cid6016.AsymmetricBreastTissue,
    "focal asymmetry": codes.cid6016.FocalAsymmetricBreastTissue,
    "skin thickening": codes.cid6014.SkinThickeningOfBreast,
    "skin retraction": codes.cid6014.SkinRetractionOfBreast,
    "nipple retraction": Code("271955004", "SCT", "Nipple retraction"),
    "axillary adenopathy": codes.cid6014.AxillaryAdenopathy,
    "density": codes.cid6014.MammographyBreastDensity,
    "cancer": _CANCER,
    "malignancy": _CANCER,
    "malignant": _CANCER,
    "pleural effusion": Code("60046008", "SCT", "Pleural effusion"),
    "pneumothorax": Code("36118008", "SCT", "Pneumothorax"),
}
_DENSITIES = {
    "A": codes.cid6000.AlmostEntirelyFat,
    "B": codes.cid6000.ScatteredFibroglandularDensities,
    "C": codes.cid6000.HeterogeneouslyDense,
    "D": codes.cid6000.ExtremelyDense,
}
_BIRADS = {
    "0": Code("397138000", "SCT", "Mammography assessment (Category 0)"),
    "1": Code("397140005", "SCT", "Mammography assessment (Category 1)"),
    "2": Code("397141009", "SCT", "Mammography assessment (Category 2)"),
    "3": Code("397143007", "SCT", "Mammography assessment (Category 3)"),
    "4": Code("397144001", "SCT", "Mammography assessment (Category 4)"),
    "5": Code("397145000", "SCT", "Mammography assessment (Category 5)"),
}


class Scale(NamedTuple):
    """What a score is: its concept, its unit, and what a score of 1 is in it."""

    concept: Code
    unit: Code
    factor: float = 1.0


CERTAINTY = Scale(codes.DCM.CertaintyOfFinding, codes.UCUM.Percent, 100.0)
_COSINES = Scale(Code("COSINES", SCHEME, "Cosine to positive minus to negative texts"), codes.UCUM.NoUnits)
_COSINE = Scale(Code("COSINE", SCHEME, "Cosine of image and text"), codes.UCUM.NoUnits)
_SCALES = {"dual_encoder": _COSINES, "attributes": _COSINE}


def scale(prediction: Mapping[str, Any]) -> Scale:
    """Of the scores of a prediction, by its kind of model. DCM's certainty of a finding goes from 0 to 100 %, as of
    mammography CAD; calibrated scores are probabilities whatever the model gives."""
    if prediction.get("options", {}).get("calibrated"):
        return CERTAINTY
    return _SCALES.get(prediction["model"]["kind"], CERTAINTY)


def finding(label: str, labels: Sequence[str] = ()) -> Code:
    """The code of a label; `labels`: all of the model's, by which the classes A to D are seen to be densities."""
    words = re.sub(r"[\W_]+", " ", label).strip().lower()
    if words in _FINDINGS:
        return _FINDINGS[words]
    classes = set(labels) and set(labels) <= set(_DENSITIES) and label in _DENSITIES
    if named := label.upper() if classes else re.fullmatch(r"density ([a-d])", words):
        return _DENSITIES[named if isinstance(named, str) else named[1].upper()]
    if (assessed := re.fullmatch(r"bi ?rads ([0-5])", words)) is not None:
        return _BIRADS[assessed[1]]
    return private(label)


def private(label: str) -> Code:
    """The code of a label in this program's own scheme: its letters and digits, with a hash where they are not all of it
    or more than the 16 characters that a code may have."""
    value = re.sub(r"\W+", "_", label, flags=re.ASCII).strip("_").upper()
    if len(value) > 16 or not re.fullmatch(r"\w+( \w+)*", label, flags=re.ASCII):
        value = f"{value[:9]}_{hashlib.sha256(label.encode()).hexdigest()[:6].upper()}".lstrip("_")
    return Code(value, SCHEME, label[:64])


def scheme() -> CodingSchemeIdentificationItem:
    """What an object that uses the scheme says of it."""
    return CodingSchemeIdentificationItem(
        SCHEME, name="Labels of mammoclip_jax models", responsible_organization="mammoclip_jax"
    )
