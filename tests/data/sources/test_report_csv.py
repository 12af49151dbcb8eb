"""The general table: its options, its problems, and that nobody is named."""

import json
from pathlib import Path

import pytest

from mammoclip_jax.data.manifest import checked
from mammoclip_jax.data.private import settled
from mammoclip_jax.data.sources import report_csv
from mammoclip_jax.errors import UserError

HEADER = "image,patient,study,laterality,view,findings,impression,split,density,age"
ROWS = [
    "0.png,p1,s1,left,cc,A mass.,Suspicious.,training,C,",
    "1.png,p2,s2,R,MLO,,Negative.,test,B,61",
    "2.png,p3,s3,L,CC,,,train,,",
    ",p3,s3,L,CC,A,B,train,,",
    "3.png,p3,s3,both,CC,A,B,train,,",
    "3.png,p3,s3,L,CC,A,B,sometime,,",
    "3.png,,s3,L,CC,A,B,train,,",
    "9.png,p3,s3,L,CC,A,B,validate,,",
]


def reports(root: Path, header: str = HEADER, *rows: str) -> Path:
    (root / "reports.csv").write_text("\n".join((header, *rows)) + "\n")
    return root


def make(root: Path) -> Path:
    return reports(root, HEADER, *ROWS)


def test_rows_and_problems(tmp_path):
    table = report_csv.read(make(tmp_path), labels="density,age")
    assert list(table.rows["texts"]) == [["A mass.", "Suspicious."], ["Negative."], ["A", "B"]]
    assert list(table.rows["split"]) == ["train", "test", "val"] and list(table.rows["laterality"]) == ["L", "R", "L"]
    assert list(table.rows["file"]) == ["0.png", "1.png", "9.png"]  # there or not: build looks
    assert list(table.rows["row"]) == ["reports.csv:2", "reports.csv:3", "reports.csv:9"]
    assert json.loads(table.rows["labels"][1]) == {"density": "B", "age": 61}
    assert json.loads(table.rows["labels"][0]) == {"density": "C"}
    assert [problem.reason for problem in table.problems] == [
        "empty report",
        "report without image",
        "unknown laterality",
        "unknown split",
        "empty identifier",
    ]
    assert [problem.row for problem in table.problems] == [f"reports.csv:{line}" for line in (4, 5, 6, 7, 8)]
    assert table.table_rows == 8 and not table.public_ids and not table.partial
    assert len(checked(table).rows) == 3


@pytest.mark.parametrize(
    "header, options, parts",
    [
        (
            "image,patient_id,study,laterality,view,report",
            {},
            ["'patient'", "Did you mean 'patient_id'", "--option=patient="],
        ),
        ("image,patient,study,view,report", {}, ["'laterality'", "--option=laterality=-"]),
        ("image,patient,study,laterality,view", {}, ["'report'", "findings or impression"]),
        ("image,patient,study,laterality,view,report", {"split": "fold"}, ["'fold'", "--option=split="]),
        ("image,patient,study,laterality,view,report", {"date": "day"}, ["'day'", "--option=date="]),
        ("image,patient,study,laterality,view,report", {"labels": "cancer"}, ["'cancer'", "--option=labels="]),
        ("image,patient,study,laterality,view,report", {"names": "doctor"}, ["'doctor'", "--option=names="]),
    ],
)
def test_a_missing_column_is_named_with_the_option(tmp_path, header, options, parts):
    with pytest.raises(UserError) as caught:
        report_csv.read(reports(tmp_path, header, ",".join("x" for _ in header.split(","))), **options)
    for part in [str(tmp_path / "reports.csv"), *parts, header.split(",")[0]]:
        assert part in str(caught.value)


def test_columns_can_be_named_or_done_without(tmp_path):
    root = reports(tmp_path, "path,pid,text", "0.png,p1,FINDINGS: A mass. IMPRESSION: Suspicious.")
    table = report_csv.read(root, image="path", patient="pid", study="-", laterality="-", view="-", report="text")
    row = table.rows.iloc[0]
    assert (row["study"], row["laterality"], row["view"]) == ("p1", "", "")
    assert dict(zip(row["sections"], row["texts"])) == {"findings": "A mass.", "impression": "Suspicious."}


def test_dates_become_days_and_texts_name_nobody(tmp_path):
    header = "image,patient,study,laterality,view,report,date,patient_name,seen by"
    text = (
        "Mary Poppins, MRN 8812345, seen 3/15/2019 by Dr. Watson. ACC77123 and 8812345: a 12 mm mass at 2 o'clock. "
        "Compared with Zyxwv."
    )
    root = reports(
        tmp_path,
        header,
        f'8812345/x.dcm,8812345,ACC77123,L,CC,"{text}",2019-03-15,Poppins^Mary,Zyxwv',
        "y.dcm,8812345,12,L,CC,A 12 mm mass.,20190401,Poppins^Mary,",
        "z.dcm,other,12,L,CC,A cyst.,soon,,",
    )
    table = report_csv.read(root, names="patient_name,seen by")
    assert table.rows["texts"][0] == [text] and table.rows["identities"][0] == ["Poppins^Mary", "Zyxwv"]
    rows = settled(table, root).table.rows
    assert [json.loads(labels) for labels in rows["labels"]] == [{"study_day": 0}, {"study_day": 17}, {}]
    (written,) = rows["texts"][0]
    for secret in ("Mary", "Poppins", "8812345", "2019", "Watson", "ACC77123", "Zyxwv"):
        assert secret not in written
    assert "12 mm mass at 2 o'clock" in written
    assert rows["texts"][1] == ["A 12 mm mass."]  # a study number of two digits is a measure as well


def test_what_is_no_table_is_named(tmp_path):
    with pytest.raises(UserError, match="reports.csv is no file"):
        report_csv.read(tmp_path)
    (tmp_path / "reports.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="no CSV|no rows|no column"):
        report_csv.read(tmp_path)
    (tmp_path / "reports.csv").write_text("image,patient,study,laterality,view,report\n")
    with pytest.raises(UserError, match="no rows"):
        report_csv.read(tmp_path)


def test_a_view_is_one_of_the_known_or_nothing(tmp_path):
    """A name in the wrong column must not travel on as a view."""
    lines = [
        f"{number}.png,p1,s1,L,{view},A mass.,B,train,C," for number, view in enumerate(["l-mlo", "RCC", "Zelenka", ""])
    ]
    table = report_csv.read(reports(tmp_path, HEADER, *lines))
    assert list(table.rows["view"]) == ["MLO", "CC", "", ""] and not table.problems
    assert [(remark.reason, remark.row) for remark in table.remarks] == [("unknown view", "reports.csv:4")]


def test_an_open_quote_does_not_make_one_report_of_many(tmp_path):
    rows = [f"{number}.png,p{number},s,L,CC,A mass.,B,train,C," for number in range(2000)]
    rows[3] = '3.png,p3,s,L,CC,"A mass.,B,train,C,'
    rows[1500] = '1500.png,p1500,s,L,CC,A mass.",B,train,C,'
    table = report_csv.read(reports(tmp_path, HEADER, *rows))
    assert [problem.reason for problem in table.problems] == ["report too long"]
    assert len(table.rows) == 2000 - 1498


def test_the_order_of_day_and_month_is_the_columns(tmp_path):
    header = "image,patient,study,laterality,view,report,when"
    lines = [f"{n}.png,p,{n},L,CC,A mass.,{date}" for n, date in enumerate(["1/2/2019", "3/2/2019", "soon", ""])]
    with pytest.raises(UserError, match=r"reports.csv, column 'when', does not tell.*date_order=day.*date_order=month"):
        report_csv.read(reports(tmp_path, header, *lines), date="when")
    for order, days in (("day", 2), ("month", 59)):
        table = report_csv.read(tmp_path, date="when", date_order=order)
        found = [json.loads(labels) for labels in table.rows["labels"]]
        assert found == [{"study_day": 0}, {"study_day": days}, {}, {}]
        assert [(remark.reason, remark.row) for remark in table.remarks] == [("unreadable date", "reports.csv:4")]
    with pytest.raises(UserError, match="date_order=d must be day or month"):
        report_csv.read(tmp_path, date="when", date_order="d")


def test_what_a_cell_lacks_comes_from_the_whole_report(tmp_path):
    header = "image,patient,study,laterality,view,findings,impression,report"
    root = reports(tmp_path, header, "0.png,p,s,L,CC,,Benign.,Report: A cyst. Opinion: Cyst. Recommendation: None.")
    table = report_csv.read(root)
    assert dict(zip(table.rows["sections"][0], table.rows["texts"][0])) == {
        "findings": "A cyst.",
        "impression": "Benign.",
    }
    assert json.loads(table.rows["parts"][0])["dropped"] == {"recommendation": "None."}


def test_a_table_needs_no_report_and_may_have_boxes(tmp_path):
    (tmp_path / "labels.csv").write_text("image,patient,cancer\n0.png,p1,1\n1.png,p1,0\n2.png,p2,\n")
    (tmp_path / "boxes.csv").write_text(
        "image,label,x0,y0,x1,y1\n0.png,mass,1,2,30,40.5\n0.png,mass,5,5,9,9\n"
        "7.png,mass,1,2,3,4\n1.png,,1,2,3,4\n1.png,mass,9,2,3,4\n1.png,mass,a,2,3,4\n"
    )
    absent = dict.fromkeys(("study", "laterality", "view", "report"), "-")
    table = report_csv.read(tmp_path, table="labels.csv", labels="cancer", boxes="boxes.csv", **absent)
    rows = checked(table).rows
    assert list(rows["texts"]) == [[], [], []] and len(rows) == 3
    assert [json.loads(labels) for labels in rows["labels"]] == [{"cancer": 1}, {"cancer": 0}, {}]
    assert json.loads(rows["boxes"][0]) == [
        {"label": "mass", "box": [1, 2, 30, 40.5]},
        {"label": "mass", "box": [5, 5, 9, 9]},
    ]
    assert [(p.reason.split(":")[0], p.stage, p.row) for p in table.problems] == [
        ("box of an unknown image", "boxes", "boxes.csv:4"),
        ("box without a label", "boxes", "boxes.csv:5"),
        ("malformed box", "boxes", "boxes.csv:6"),
        ("malformed box", "boxes", "boxes.csv:7"),
    ]
    with pytest.raises(UserError, match="has no column 'x0'.*--option=box_columns="):
        report_csv.read(
            tmp_path, table="labels.csv", boxes="labels.csv", box_columns="image,patient,x0,y0,x1,y1", **absent
        )
    with pytest.raises(UserError, match="in this order"):
        report_csv.read(tmp_path, table="labels.csv", boxes="boxes.csv", box_columns="image,label", **absent)
    with pytest.raises(UserError, match="or --option=report=- for none"):
        report_csv.read(tmp_path, table="labels.csv", **absent | {"report": "report"})


def test_without_a_column_for_the_study_the_dates_of_a_patient_are_its_studies(tmp_path):
    header = "image,patient,date"
    rows = [
        "a.png,p,2019-03-14 10:22",
        "b.png,p,2019-03-14 10:31",
        "c.png,p,2021-05-02",
        "d.png,p,",
        "e.png,q,2021-05-02",
    ]
    absent = dict.fromkeys(("study", "laterality", "view", "report"), "-")
    found = report_csv.read(reports(tmp_path, header, *rows), **absent)
    assert list(found.rows["study"]) == ["p/day 0", "p/day 0", "p/day 780", "p", "q/day 0"]
    found = report_csv.read(reports(tmp_path, header, *rows), **absent | {"date": "-"})
    assert list(found.rows["study"]) == ["p", "p", "p", "p", "q"]
