"""Score an exam's files with a trained model: JSON for programs, pictures for people.

    python -m mammoclip_jax.predict --weights=runs/demo --exam=exams/0042 --out=predictions
    python -m mammoclip_jax.predict --weights=runs/demo --exam=exams --out=predictions --prompts=mine.json
    python -m mammoclip_jax.predict --weights=runs/demo --exam=exams --out=predictions --method=occlusion
    python -m mammoclip_jax.predict --weights=runs/a,runs/b --exam=exams --out=predictions --mirror --calibrated

An exam is a study of a patient, by the headers; where these say nothing, the files of a patient in a folder, by their
names (docs/data.md). Its screening views are scored; the others are listed with the reason, and what is no image by
kind.
An image that cannot be read is listed with its reason, the others are scored, and the exit status is then 1.

Each exam is a folder of OUT, there as soon as it is done; the same command goes on where it was stopped. No file in OUT
says whose an exam is, unless --uids or --dicom ask for it; OUT.private/sources.csv does (docs/predictions.md).
"""

import csv
import datetime
import sys
import time
from pathlib import Path

from absl import flags

from mammoclip_jax import command
from mammoclip_jax.files import write_text

VIEWS = 4  # of an exam, as a rule: a larger batch would be padding


def define_flags() -> None:
    """The flags of the command."""
    flags.DEFINE_string(
        "weights",
        None,
        "A run, a checkpoint of it, a model folder, a published file or a hub name; several with commas between are an "
        "ensemble.",
        required=True,
    )
    flags.DEFINE_string("exam", None, "Folder of an exam's DICOM files, or of exam folders.", required=True)
    flags.DEFINE_string("out", None, "Folder for the predictions.", required=True)
    flags.DEFINE_string(
        "prompts",
        "",
        "A prompt file (JSON), or the name of one in inference/prompt_texts. Default: "
        "config.predict.prompts of the run.",
    )
    flags.DEFINE_string(
        "method",
        "",
        "Of the overlays: grad_cam, occlusion, ... (docs/saliency.md). Default: config.predict.method of the run; where that "
        "is empty grad_cam, of a model of attributes factor.",
    )
    flags.DEFINE_string(
        "stage",
        "",
        "Stage of the image encoder that the method looks at. Default: "
        "config.predict.stage of the run; with --method, what the method chooses.",
    )
    flags.DEFINE_integer(
        "overlay_size", 1024, "Pixels of an overlay's longer side, at most; 0: as many as the original image."
    )
    flags.DEFINE_bool(
        "every_view",
        False,
        "Score all mammograms, not only screening views: CC and MLO, for "
        "presentation, no spot, magnification or implant displaced view.",
    )
    flags.DEFINE_bool(
        "uids",
        False,
        "Write the UIDs of studies, series and images as the files have them; else their hashes. A UID leads whoever has "
        "the archive to the patient.",
    )
    flags.DEFINE_bool(
        "dicom",
        False,
        "Write DICOM objects of the patient's own study: a structured report of each exam, a secondary capture of each "
        "overlay. They name the patient. Includes --uids.",
    )
    flags.DEFINE_string("key", "", "File of the key of the hashes, such as DATA.private/key. Default: OUT.private/key.")
    flags.DEFINE_bool("mirror", None, "Score each image as it is and mirrored. Default: config.predict.mirror.")
    flags.DEFINE_float(
        "windows",
        None,
        "Score windows of the model's size, on a canvas so much larger than its images. Default: config.predict.windows; "
        "0: none.",
    )
    flags.DEFINE_string("pool", None, "Of the windows' scores: max, mean, noisy_or, lse. Default: config.predict.pool.")
    flags.DEFINE_bool(
        "calibrated", None, "Scores as `calibrate` made them probabilities. Default: config.predict.calibrated."
    )
    flags.DEFINE_bool(
        "percentile",
        None,
        "The place of each score among those that `calibrate` kept. Default: config.predict.percentile.",
    )
    flags.DEFINE_string("json", "", "Another file for the prediction.")


def main(argv) -> int:
    """The command; see --help."""
    del argv
    from mammoclip_jax.delivery.folder import deliver, dumped  # not for --help: they import jax
    from mammoclip_jax.delivery.pseudonyms import sources_file
    from mammoclip_jax.inference import loading

    values = flags.FLAGS
    model = loading.load(values.weights, batch_size=VIEWS)
    settings = model.config.predict
    progress = Progress()
    prediction = deliver(
        model,
        values.exam,
        values.out,
        prompts=values.prompts or settings.prompts,
        stage=values.stage or ("" if values.method else settings.stage),
        method=values.method or settings.method,
        overlay_size=values.overlay_size,
        every_view=values.every_view,
        uids=values.uids,
        dicom=values.dicom,
        key=values.key,
        watch=progress.show,
        **scoring(values, settings),
    )
    if values.json:
        Path(values.json).parent.mkdir(parents=True, exist_ok=True)
        write_text(values.json, dumped(prediction))
    sources = sources_file(Path(values.out))
    with open(sources, encoding="utf-8", newline="") as file:
        named = {row["file"]: row["source"] for row in csv.DictReader(file)}  # what is printed is for the owner
    for problem in prediction["problems"]:
        print(f"not scored: {named[problem['file']]}: {problem['reason']}; {problem['remedy']}", file=sys.stderr)
    counts = prediction["counts"]
    for kind, number in counts["ignored"].items():
        print(f"no image, {kind}: {number}")
    print(
        f"{counts['scored']} views scored, {counts['left_out']} left out, {counts['problems']} files not readable, "
        f"{len(prediction['exams'])} exams, of which {progress.there} were there: {Path(values.out, 'prediction.json')}"
    )
    print(f"which exam is which: {sources}")
    return 1 if prediction["problems"] or not counts["scored"] else 0


class Progress:
    """A line an exam: how far it is. Those that were there already count as done, and say nothing of the rate."""

    def __init__(self, clock=time.monotonic):
        self._clock, self._start, self._made, self.there = clock, clock(), 0, 0

    def show(self, done) -> None:
        """Prints the line of an exam that was made: `done` is a `delivery.folder.Done`."""
        if done.was_there:
            self.there += 1
            return
        self._made += 1
        seconds = (self._clock() - self._start) / self._made
        left = datetime.timedelta(seconds=round(seconds * (done.of - done.number)))
        print(f"[{done.number}/{done.of}, {seconds:.2g} s an exam, {left} left] {_said(done)}", flush=True)


SCORING = ("mirror", "windows", "pool", "calibrated", "percentile")


def scoring(values, settings) -> dict:
    """The options of `inference.exam.predict` that say how scores are made: flags before config.predict.

    A flag that changes the windows leaves the config's pool behind, which belongs to its own.
    """
    chosen = {name: getattr(values, name, None) for name in SCORING}
    if chosen["windows"] is not None and chosen["pool"] is None:
        chosen["pool"] = settings.pool if chosen["windows"] else ""
    return {name: settings[name] if value is None else value for name, value in chosen.items()}


def _said(done) -> str:
    exam = done.entry
    scores = ", ".join(f"{label} {score['max']:+.3f}" for label, score in exam["scores"].items())
    lines = [f"{done.source}: {len(exam['views'])} views, highest scores: {scores or 'none'}"]
    lines += [f"  missing: {', '.join(exam['missing'])}"] if exam["missing"] else []
    lines += [f"  left out: {done.files[item['file']]}: {item['reason']}" for item in exam["left_out"]]
    lines += [f"  no DICOM objects: {exam['dicom']['reason']}"] if exam["dicom"] and exam["dicom"]["reason"] else []
    return "\n".join(lines)


if __name__ == "__main__":
    define_flags()
    command.run(main)
