"""What sentences say of a finding."""

import pytest

from mammoclip_jax.data.text.findings import FINDINGS, said
from mammoclip_jax.data.text.label_values import ABSENT


@pytest.mark.parametrize(
    "sentences, finding, expected",
    [
        (["There is an oval mass."], "mass", 1),
        (["No suspicious mass is identified."], "mass", 0),
        (["No mass.", "A mass in the axilla."], "mass", 1),
        (["A mass without calcifications."], "mass", 1),
        (["A mass without calcifications."], "calcification", 0),
        (["Benign.", "Negative mammogram."], "mass", None),
        ([], "mass", None),
        (["The breasts are dense, which may obscure small masses."], "mass", None),
        (["Dense tissue may obscure small masses.", "No mass."], "mass", 0),
        (["A mass with obscured margins."], "mass", 1),
        (["History of left mass."], "mass", None),
        (["Masses: none."], "mass", 0),
        (["Pleomorphic microcalcifications."], "calcification", 1),
        (["No microcalcifications."], "calcification", 0),
        (["Suspicious microcalcifications."], "suspicious_calcification", 1),
        (["Benign calcifications."], "suspicious_calcification", None),
        (["No calcifications."], "suspicious_calcification", 0),
        (["Benign calcifications.", "No suspicious calcifications."], "calcification", 1),
        (["Benign calcifications.", "No suspicious calcifications."], "suspicious_calcification", 0),
        (["Two asymmetries are seen."], "asymmetry", 1),
        (["A focal asymmetry."], "asymmetry", 1),
        (["A focal asymmetry."], "global_asymmetry", None),
        (["No asymmetry or architectural distortion."], "global_asymmetry", 0),
        (["No asymmetry or architectural distortion."], "architectural_distortion", 0),
        (["Skin thickening is present."], "skin_thickening", 1),
        (["Nipple retraction has resolved."], "nipple_retraction", 0),
    ],
)
def test_a_finding_is_affirmed_denied_or_not_spoken_of(sentences, finding, expected):
    assert said(sentences, finding) == expected


@pytest.mark.parametrize("finding", FINDINGS)
def test_every_finding_is_read_by_its_name(finding):
    name = ABSENT[finding]
    assert said([f"{name} is seen."], finding) == 1
    assert said([f"There is no {name}."], finding) == 0
    assert said(["The breast is normal."], finding) is None
