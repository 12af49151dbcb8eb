"""Ours beside the published value: the verdict on a row, and the table as text, CSV, JSON and LaTeX."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mammoclip_jax import terminal
from mammoclip_jax.evaluation import result
from mammoclip_jax.evaluation.page import tables
from mammoclip_jax.evaluation.page.display import interval
from mammoclip_jax.files import write_text
from mammoclip_jax.reproduction.published import Row

_SLACK = 1e-9
LATEX = ("row", "published", "ours", "low", "high", "n", "protocol", "verdict")


def verdict(row: Row, entry: Mapping[str, Any]) -> str:
    """One of "agrees": within the tolerance of the published value or of the one that contradicts it; "interval reaches it":
    our 95 % interval does; else "above" or "below"; "not measured"."""
    ours = entry["value"]
    if ours is None:
        return "not measured"
    ranges = [
        (value - row.tolerance - _SLACK, value + row.tolerance + _SLACK)
        for value in (row.value, row.other)
        if value is not None
    ]
    if any(low <= ours <= high for low, high in ranges):
        return "agrees"
    if entry["low"] is not None and any(low <= entry["high"] and entry["low"] <= high for low, high in ranges):
        return "interval reaches it"
    return "above" if ours > row.value else "below"


def record(row: Row, protocol: str, lacking: str, run: Mapping[str, Any] | None) -> dict[str, Any]:
    """One line: the published value, ours, and all that says where both come from.

    lacking: why the row was not run, "" if it was; found: what `jobs.all_of` says of it.
    """
    line = {
        "row": row.name,
        "title": f"{row.title}, {row.step.replace('_', ' ')}, {row.model_title}",
        "metric": row.metric,
        "published": row.value,
        "tolerance": row.tolerance,
        "reading": row.reading,
        "other": row.other,
        "other_source": row.other_source,
        "published_protocol": row.how,
        "protocol": protocol,
    }
    reason = lacking or (run or {}).get("failed", "")
    if reason or not run:
        nothing = {"value": None, "low": None, "high": None, "n": None}
        return line | _ours(nothing) | {"verdict": "failed" if not lacking else "not at hand", "reason": reason}
    entry, stamp = run["entry"], run["stamp"]
    return (
        line
        | _ours(entry)
        | {
            "verdict": verdict(row, entry),
            "reason": entry.get("reason") or "",
            "beside": ", ".join(f"{name} {_number(other['value'])}" for name, other in run["beside"].items()),
            "our_protocol": run["protocol"],
            "config": run["config"],
            "config_hash": stamp["config"],
            "data_fingerprint": stamp["data"],
            "real": run["real"],
            "weights": run["weights"]["name"],
            "weights_fingerprint": stamp["weights"],
            "weights_licences": "; ".join(run["weights"]["licences"]),
            "version": run["code"]["version"],
            "commit": run["code"]["commit"] + "+changes" * run["code"]["changed"],
            "folder": run["folder"],
        }
    )


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _ours(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"ours": entry["value"], "low": entry["low"], "high": entry["high"], "n": entry["n"]}


def text(records: Sequence[Mapping[str, Any]]) -> str:
    """Lines for the terminal: ours beside the published; what was not measured, by reason."""
    lines, missing = [("row", "published", "ours", "95 % interval", "n", "protocol", "verdict")], {}
    for entry in records:
        if entry["ours"] is None:
            missing.setdefault(f"{entry['verdict']}: {entry['reason']}", []).append(entry["row"])
        else:
            bounds = interval(entry, "plain")
            lines.append(
                (
                    entry["row"],
                    published(entry),
                    f"{entry['ours']:.3f}",
                    bounds,
                    str(entry["n"]),
                    entry["protocol"],
                    entry["verdict"],
                )
            )
    parts = [table(lines)] if len(lines) > 1 else ["no row could be measured"]
    parts += [f"beside {entry['row']}: {entry['beside']}" for entry in records if entry.get("beside")]
    if any(entry.get("real") is False for entry in records):
        parts.append("Images are phantoms: these values say nothing about the published ones.")
    parts += [f"{len(names)} not measured ({_few(names)}): {reason}" for reason, names in missing.items()]
    return "\n".join(parts)


def published(entry: Mapping[str, Any]) -> str:
    """As "0.76 ±0.01 (or 0.55)"."""
    other = "" if entry["other"] is None else f" (or {entry['other']:.2f})"
    return f"{entry['published']:.2f} ±{entry['tolerance']:.2f}{other}"


def listing(rows: Iterable[Row], reasons: Mapping[str, str]) -> str:
    """All rows with their published value and whether what they need is at hand; each reason once, below."""
    numbers: dict[str, int] = {}
    lines = [("row", "metric", "published", "at hand")]
    for row in rows:
        reason = reasons[row.name]
        at_hand = "yes" if not reason else f"no [{numbers.setdefault(reason, len(numbers) + 1)}]"
        line = {"other": row.other, "published": row.value, "tolerance": row.tolerance}
        lines.append((row.name, row.metric, published(line), at_hand))
    return "\n".join([table(lines), *(f"[{number}] needs {reason}" for reason, number in numbers.items())])


def table(lines: Sequence[Sequence[str]]) -> str:
    """Aligned columns, a rule under the first line, as wide as the terminal."""
    return "\n".join(terminal.table(lines, terminal.width()))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def write(out: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes reproduce.csv, reproduce.json and reproduce.tex."""
    out.mkdir(parents=True, exist_ok=True)
    whole = pd.DataFrame(records)
    whole.to_csv(out / "reproduce.csv", index=False)
    result.write_json(out / "reproduce.json", {"rows": records})
    measured = whole[whole["ours"].notna()]
    shown = measured.assign(published=[published(r) for r in records if r["ours"] is not None])[list(LATEX)]
    caption = "Ours beside the values of Mammo-CLIP's charts; 95\\,\\% intervals over patients."
    write_text(out / "reproduce.tex", tables.latex_table(shown, caption, "tab:reproduce"))
