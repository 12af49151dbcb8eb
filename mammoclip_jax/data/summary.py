"""What `prepare` prints: counts, what was left out and why."""

import csv
from pathlib import Path

from mammoclip_jax.data.build import FORGIVEN, PASSED_OVER
from mammoclip_jax.data.identity import Identity
from mammoclip_jax.data.image_files import as_there
from mammoclip_jax.data.leave_out import STAGE
from mammoclip_jax.data.manifest import Problem, SourceTable, checked

_SHOWN = 5
_MISMATCHES = 20


def prepared(out: Path | str, counts: dict, seconds: float) -> str:
    """After preparing: the counts, and what was quarantined and why."""
    head = "is up to date" if counts["up_to_date"] else f"is ready, in {seconds:.1f} s"
    lines = [f"{out} {head}; {counts['made']} images made, {counts['reused']} taken over"]
    if counts["other_program"]:
        lines += [
            f"  another version of the program made {out}: "
            + (
                "it stays as it is. Remove it to make it anew"
                if counts["up_to_date"]
                else "all its images were made anew"
            )
        ]
    lines += [_line(counts[name], name) for name in ("images", "studies", "patients", "boxes", "texts")]
    lines += [_line(number, f"images in split {split}") for split, number in counts["splits"].items()]
    lines += [_line(counts["quarantined"], f"quarantined, of {counts['images_in']}")]
    lines += [_line(number, f"  {reason}") for reason, number in counts["reasons"].items()]
    lines += _passed_over(counts)
    lines += _named("flags of the images", counts.get("flags", {}))
    lines += reports(counts.get("reports", {}))
    lines += [deidentified(counts["deidentification"])]
    if counts["quarantined"]:
        table = Path(out) / "quarantine.csv"
        held = [row for row in _lines(out, "quarantine.csv") if row["stage"] not in FORGIVEN]
        lines += [
            f"  {row['row'] or row['file'] or row['image']}: {row['reason']}; {row['remedy']}" for row in held[:_SHOWN]
        ]
        lines += [f"  the whole list is in {table}; the same command with --names prints which files they are"]
    return "\n".join(lines)


def _named(title: str, numbers: dict) -> list[str]:
    return [f"  {title}: " + ", ".join(f"{name} {number}" for name, number in numbers.items())] if numbers else []


def reports(counts: dict) -> list[str]:
    """What became of the sections of reports, and of how many what one wants of them was not found."""
    if not counts:
        return []
    return [
        *_named("reports have sections kept", counts["kept"]),
        *_named("and dropped", counts["dropped"]),
        *lacking(counts["lacking"]),
    ]


def lacking(counts: dict) -> list[str]:
    """The warnings."""
    what = {
        "findings": "have an impression and no findings",
        "both": "have neither findings nor impression: all their sections are texts",
    }
    return [
        f"  WARNING: {counts[name]} reports {words}; --check shows examples by section"
        for name, words in what.items()
        if counts[name]
    ]


def deidentified(ran: dict) -> str:
    """What took identities out of the texts, and what did not run."""
    if ran["texts"] == "public":
        return "  texts are public and stay as they are"
    headers = f"headers of {ran['header_files']} DICOM files" if ran["headers"] else "NOT headers (--header_identities)"
    model = ran["recogniser"] or "NO recogniser (--recogniser)"
    return (
        f"  identities taken out of texts by: rules, tables, {headers}, {model}. None finds every name: read a sample"
    )


def dry_run(counts: dict, written: bool) -> str:
    """After the dry run. `written`: the whole list of mismatches is in a JSON file."""
    lines = [
        _line(counts[name], name)
        for name in ("table_rows", "images_in", "images", "studies", "patients", "boxes", "texts")
    ]
    lines += [_line(number, f"images in split {split}") for split, number in counts["splits"].items()]
    lines += [_line(number, f"files {name}") for name, number in counts["files"].items()]
    for title in ("views", "lateralities", "vendors", "header_flags"):
        lines += [f"  {title}: " + ", ".join(f"{name or 'unknown'} {number}" for name, number in counts[title].items())]
    for split, boxes in counts["box_labels"].items():
        lines += [f"  boxes in {split}: " + (", ".join(f"{name} {number}" for name, number in boxes.items()) or "none")]
    if masks := counts["masks"]:
        lines += [f"  masks of {masks['images']} images: {', '.join(masks['channels'])}"]
    for split, labels in counts["labels"].items():
        lines += [f"  labels in {split}:"]
        lines += [
            f"    {name}: " + ", ".join(f"{value} {number}" for value, number in values.items())
            for name, values in labels.items()
        ]
    texts = counts["reports"]
    lines += [
        f"  breasts with texts: {texts['breasts']}, different {texts['different']}, "
        f"more than slightly {texts['nearly_different']}"
    ]
    for what, named in counts["sections"].items() if any(counts["sections"].values()) else ():
        lines += [f"  sections of reports {what}:" + ("" if named else " none")]
        lines += [_line(part["reports"], f"{name}: " + " | ".join(part["examples"])) for name, part in named.items()]
    lines += lacking(counts["lacking"])
    if counts["texts"]:
        lines += [deidentified(counts["deidentification"])]
    lines += _passed_over(counts)
    lines += [_line(counts["quarantined"], "would be quarantined")]
    lines += [_line(number, f"  {reason}") for reason, number in counts["reasons"].items()]
    unexpected = [item for item in counts["mismatches"] if item["stage"] != STAGE]
    lines += [
        f"  {item['row'] or item['file'] or item['image']}: {item['reason']}; {item['remedy']}"
        for item in unexpected[:_MISMATCHES]
    ]
    more = len(unexpected) - _MISMATCHES
    if more > 0:
        lines += [f"  and {more} more mismatches" + ("" if written else "; --json=FILE holds them all")]
    return "\n".join(lines)


def verified(out: Path | str, result: dict) -> str:
    """After verifying a folder."""
    lines = [f"{out} is {'whole' if result['ok'] else 'NOT whole'}"]
    lines += [_line(number, name) for name, number in result["checks"].items()]
    lines += reports(result["reports"])
    lines += [f"  {fault['where']}: {fault['problem']}; {fault['remedy']}" for fault in result["faults"][:_MISMATCHES]]
    more = len(result["faults"]) - _MISMATCHES
    return "\n".join(lines + ([f"  and {more} more faults; --json=FILE holds them all"] if more > 0 else []))


def _passed_over(counts: dict) -> list[str]:
    kinds = counts["passed_over"]
    return (
        [
            _line(sum(kinds.values()), "files that are no images of the set"),
            *(_line(number, f"  {kind}") for kind, number in kinds.items()),
        ]
        if kinds
        else []
    )


def names(table: SourceTable, root: Path | str, out: Path | str, key: str = "") -> str:
    """Which files a private data set has quarantined or passed over, by hashing the source's names again."""
    out = Path(out)
    table = as_there(checked(table), Path(root))
    known = [Problem(row.file, "", "", "", row.image, row.row) for row in table.rows.itertuples()]
    known += table.problems + table.passed_over
    hashed = known if table.public_ids else [Identity(out, key).problem(problem) for problem in known]
    names_of = {(shown.file, shown.image, shown.row): problem.file for problem, shown in zip(known, hashed)}
    lines = [
        f"{names_of.get((row['file'], row['image'], row['row']), 'not in the source now')}: {row['reason']}"
        for name in ("quarantine.csv", PASSED_OVER)
        for row in _lines(out, name)
    ]
    return "\n".join(lines) or "nothing is quarantined"


def _lines(out: Path | str, name: str) -> list[dict]:
    path = Path(out) / name
    if not path.is_file():  # of a folder made before there was such a table
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _line(number: int, name: str) -> str:
    return f"  {number:>8}  {name}"
