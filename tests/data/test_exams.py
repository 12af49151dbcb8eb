"""Whose an image is, which exam it belongs to and whether it is a screening view, by headers, names and folders."""

import pytest

from mammoclip_jax.data.exams import grouped, identified, left_out
from mammoclip_jax.data.image_files import Found
from mammoclip_jax.data.manifest import Problem
from mammoclip_jax.data.pixels.fields import Fields


def names(images, problems=()):
    """Exam -> its files."""
    lost = [Problem(file, "decode", "", "") for file in problems]
    return {exam.name: list(exam.files) for exam in grouped("/data/root", Found(identified(images), lost, []))}


@pytest.mark.parametrize(
    "images, expected",
    [
        # Headers know better than folders.
        ({"x/1": Fields(patient="a", study="s"), "y/2": Fields(patient="a", study="s")}, {"root": ["x/1", "y/2"]}),
        (
            {"x/1": Fields(patient="a", study="s"), "x/2": Fields(patient="b", study="s")},
            {"x (1)": ["x/1"], "x (2)": ["x/2"]},
        ),
        (
            {"x/1": Fields(patient="a", study="s"), "x/2": Fields(patient="a", study="t")},
            {"x (1)": ["x/1"], "x (2)": ["x/2"]},
        ),
        # A file that lost its patient is of the study's; of a study that nobody owns all files are one patient's.
        ({"x/1": Fields(patient="a", study="s"), "y/2": Fields(study="s")}, {"root": ["x/1", "y/2"]}),
        ({"x/IM1_L_CC": Fields(study="s"), "x/y/IM2": Fields(study="s")}, {"x": ["x/IM1_L_CC", "x/y/IM2"]}),
        # Where headers say nothing: folders, and the patients that names tell.
        (
            {"x/L_CC.png": Fields(), "x/R_CC.png": Fields(), "y/L_CC.png": Fields()},
            {"x": ["x/L_CC.png", "x/R_CC.png"], "y": ["y/L_CC.png"]},
        ),
        (
            {"p1_L_CC.png": Fields(), "p2_L_CC.png": Fields()},
            {"root (1)": ["p1_L_CC.png"], "root (2)": ["p2_L_CC.png"]},
        ),
    ],
)
def test_exams(images, expected):
    assert names(images) == expected


def test_a_folder_of_which_nothing_can_be_read_is_an_exam_without_images():
    assert names({"x/1": Fields(patient="a", study="s")}, ["x/2", "y/3", "y/4"]) == {"x": ["x/1"], "y": []}
    assert names({}, ["1.dcm"]) == {"root": []}


def test_a_study_number_of_two_patients_is_two_studies():
    found = identified(
        {"1": Fields(patient="a", study="s"), "2": Fields(patient="b", study="s"), "3": Fields(patient="b", study="t")}
    )
    assert [fields.study for fields in found.values()] == ["a/s", "b/s", "t"]


def view(*flags, laterality="L", view="CC"):
    return Fields(laterality=laterality, view=view, flags=flags, kind="CT Image Storage")


@pytest.mark.parametrize(
    "fields, beside, reason",
    [
        (view(), view(), ""),
        (view(view="ML"), None, "view ML"),
        (view(laterality="", view=""), view(), ""),
        (view("for_processing"), None, "for_processing"),
        (view("breast_implant"), None, ""),
        (view("recombined"), None, "recombined"),
        (view("stereotactic"), view(), "stereotactic"),
        (view("other_modality"), None, "other_modality: CT Image Storage"),
        (view("tomosynthesis"), None, ""),
        (view("tomosynthesis"), view(laterality="R"), ""),
        (view("tomosynthesis"), view("spot"), ""),
        (view("tomosynthesis"), view("tomosynthesis"), ""),
        (view("tomosynthesis"), view(), "tomosynthesis beside a better image of the view"),
        (view("tomosynthesis"), view("synthetic_2d"), "tomosynthesis beside a better image of the view"),
        (view("synthetic_2d"), view("tomosynthesis"), ""),
        (view()._replace(kind="Secondary Capture Image Storage"), None, ""),
        (
            view()._replace(kind="Secondary Capture Image Storage"),
            view(),
            "secondary_capture beside a better image of the view",
        ),
        (view("secondary_capture", view=""), view(), "secondary_capture beside a better image of the view"),
    ],
)
def test_screening_views(fields, beside, reason):
    images = {"asked": fields} | ({"beside": beside} if beside else {})
    assert left_out(images).get("asked", "") == reason
    assert ("asked" in left_out(images, every_view=True)) == ("other_modality" in fields.flags)
