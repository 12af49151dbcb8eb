"""The exams of a folder, scored one by one into folders of their own; what is there already is not scored again.

OUT/ID/              an exam, whole once it is there: prediction.json, exam.html, overlays/; report.dcm, overlay-*.dcm
OUT/prediction.json  all exams of the call, from their own files; exams.csv, breasts.csv, views.csv
OUT/made_with.json   model and options of all of them: a call with others is refused
OUT.private/         the key of the ids and sources.csv, which exam is which; for the owner alone
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mammoclip_jax.data.exams import grouped
from mammoclip_jax.data.image_files import Found, is_picture
from mammoclip_jax.data.pixels.fields import Fields
from mammoclip_jax.delivery import tables
from mammoclip_jax.delivery.page import exam_page
from mammoclip_jax.delivery.pseudonyms import Pseudonyms
from mammoclip_jax.errors import UserError
from mammoclip_jax.files import remove_partial, whole, whole_folder, write_text
from mammoclip_jax.inference.exam import Question, counts, found, ignored_files, placed, problem_of
from mammoclip_jax.inference.overlay import SIDE
from mammoclip_jax.locks import locked
from mammoclip_jax.provenance import version

MADE_WITH = "made_with.json"
_LOCK = ".lock"
_FOLLOWS = ("aggregation", "preprocessing", "provenance")  # from the rest of what is said of the model


class Done(NamedTuple):
    """An exam, as soon as it is there: for whoever watches."""

    number: int  # from 1
    of: int
    source: str  # as `data.exams.Exam` names it
    entry: Mapping[str, Any]  # as in its file
    files: Mapping[str, str]  # what its file calls its files -> their paths
    was_there: bool


def deliver(
    model,
    exam_folder: Path | str,
    out: Path | str,
    *,
    overlay_size: int = SIDE,
    uids: bool = False,
    dicom: bool = False,
    key: str = "",
    watch: Callable[[Done], None] = lambda done: None,
    **asked,
) -> dict[str, Any]:
    """Scores the exams in a folder, and writes each as it is done; those that are there already are left as they are.

    An exam's folder is named by a keyed hash of its study, its views by side and view. It appears whole or not at all,
    however the program ends. It is made anew where its files have changed. No pixels of more than one exam are held.

    Args:
        model, exam_folder, overlay_size: as of `inference.exam.predict`.
        out: the folder to write into; see the top of this file. It is not below `exam_folder`.
        uids: whether JSON and tables have the UIDs of study, series and image as the files have them, not hashes of
            them. A UID leads whoever has the archive to the patient.
        dicom: whether report.dcm and an overlay-VIEW_LABEL.dcm each overlay are written. They name the patient, since
            they belong to the study; then `uids` holds as well. Pictures have no study: they get none.
        key: file of the key of the ids; "": that in `OUT.private/`, made where there is none.
        watch: is called with each exam as it is there.
        asked: what is asked of the model, as of `inference.exam.Question.ask`.

    Returns:
        What OUT/prediction.json holds: as of `inference.exam.predict`, with paths below OUT. Each exam has also its
        "study", the number of its "problems", "inputs" (a hash of its files), and "dicom" {"files", "reason" why some
        are not there}, null where it is not asked for; each view "source" (the hash of its file) and "uids" {"study",
        "series", "image"}. "ignored" is only in "counts". "model" {"name", "kind", "labels", "program", "fingerprint" of
        the weights}.

    Raises:
        UserError: as of `predict`; OUT was made with another model or other options, or another process writes to it.
    """
    question = Question.ask(model, **asked)
    root, out = Path(exam_folder), Path(out)
    listing = found(root)
    if out.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{out} lies in {root}, where it would be looked through for exams: name a folder beside it.")
    # as files have it
    about = json.loads(json.dumps(question.about() | {"model": identity_of(question.scorer.model)}))
    out.mkdir(parents=True, exist_ok=True)
    with locked(out / _LOCK, f"predicting into {out}", "name another folder"):
        remove_partial(out)
        names = Pseudonyms(out, key, plain=uids or dicom)
        options = {"overlay_size": overlay_size, "uids": uids or dicom, "dicom": dicom, "key": names.fingerprint()}
        _check_made_with(out, about, options | {"every_view": question.every_view})
        walk = _Walk(question, root, listing, out, names, about, overlay_size, dicom)
        done = []
        try:
            for each in walk.exams():
                done.append(each.entry)
                watch(each)
        finally:
            names.write_sources(walk.sources)
        return _write_whole(out, done, walk, listing, about)


def identity_of(model) -> dict[str, Any]:
    """JSON: which model this is: "name", "kind", "labels", "program" and "fingerprint" of its weights."""
    return {
        "name": model.config.get("name", "") or model.config.model.image.get("name", ""),
        "kind": model.kind,
        "labels": list(model.labels),
        "program": version("mammoclip_jax"),
        "fingerprint": model.fingerprint(),
    }


class _Walk:
    """The exams below a folder, one after the other."""

    def __init__(self, question, root: Path, listing: Found, out: Path, names, about, overlay_size: int, dicom: bool):
        self.question, self.root, self.listing, self.out, self.names = question, root, listing, out, names
        self.about, self.overlay_size, self.dicom = about, overlay_size, dicom
        self.problems: list[dict[str, str]] = [
            names.problem(problem_of(problem.file, problem)) for problem in listing.problems
        ]
        self.sources = [("", names.file(problem.file), problem.file, "") for problem in listing.problems]

    def exams(self) -> Iterator[Done]:
        """Each exam, read where it is there, else scored and written."""
        exams = grouped(self.root, self.listing)
        for number, (name, files) in enumerate(exams, start=1):
            images = {file: self.listing.images[file] for file in files}
            own = self.names.exam(next(iter(images.values()), None), name)
            inputs = self.names.inputs(self.root, files)
            there = _read(self.out / own)
            whole = there is not None and there["exams"][0]["inputs"] == inputs
            prediction = there if there is not None and whole else self._made(name, own, images, inputs)
            entry = prediction["exams"][0]
            self.problems += prediction["problems"]
            views = {view["source"]: view["name"] for view in entry["views"]}
            files = {views.get(hashed := self.names.file(file), hashed): file for file in images}
            self.sources += [(own, shown, file, name) for shown, file in files.items()]
            yield Done(number, len(exams), name, placed(entry, own), files, whole)

    def _made(self, name: str, own: str, images: Mapping[str, Fields], inputs: str) -> dict[str, Any]:
        with whole_folder(self.out / own) as folder:
            exam, bad = self.question.score(self.root, name, images, folder, self.overlay_size)
            problems = [self.names.problem(problem, own) for problem in bad]
            entry = self.names.shown(exam, own, images, self.root) | {"problems": len(problems), "inputs": inputs}
            entry["dicom"] = self._objects(exam, entry, folder) if self.dicom else None
            shown = {"exams": [entry], "problems": problems, "counts": counts([entry], problems, {}), **self.about}
            write_text(folder / "exam.html", exam_page(entry, self.about, folder))
            write_text(folder / "prediction.json", dumped(shown))
        return shown

    def _objects(self, exam: Mapping[str, Any], entry: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Writes the DICOM objects of an exam: {"files", "reason" why there are none or not all}."""
        files = [view["file"] for view in exam["views"]]
        if not files or any(is_picture(file) for file in files):
            return {"files": [], "reason": "the sources are pictures, which belong to no study" if files else "no view"}
        from mammoclip_jax.delivery.objects import write  # highdicom takes a second to load

        return write(entry, self.about, [self.root / file for file in files], folder)


def _check_made_with(out: Path, about: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raises UserError where the folder was made with another model or other options; else notes these."""
    now = {part: value for part, value in about.items() if part not in _FOLLOWS} | dict(options)
    path = out / MADE_WITH
    if path.exists():
        then = json.loads(path.read_text(encoding="utf-8"))
        other = [
            f"{name}: {_short(then.get(name))} -> {_short(now.get(name))}"
            for name in now
            if then.get(name) != now[name]
        ]
        if other:
            raise UserError(
                f"{out} holds exams that were made otherwise ({'; '.join(other)}). Name another folder, or remove this one."
            )
        return
    write_text(path, json.dumps(now, indent=2) + "\n")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else f"{text[:190]}..."


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / "prediction.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _write_whole(out: Path, exams: list, walk: _Walk, listing: Found, about: Mapping[str, Any]) -> dict[str, Any]:
    """Writes what is said of all exams, and returns it."""
    prediction = {
        "exams": exams,
        "problems": walk.problems,
        "counts": counts(exams, walk.problems, ignored_files(listing)),
        **about,
    }
    with whole(out / "prediction.json") as partial:
        partial.write_text(dumped(prediction), encoding="utf-8")
    tables.write(out, exams, about)
    return prediction


def dumped(prediction: Mapping[str, Any]) -> str:
    """A prediction as the text of its file."""
    return json.dumps(prediction, indent=1, allow_nan=False) + "\n"
