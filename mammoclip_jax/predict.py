"""Score an exam's files with a trained model: JSON for programs, pictures for people.

    python -m mammoclip_jax.predict --weights=runs/demo --exam=exams/0042 --out=predictions
    python -m mammoclip_jax.predict --weights=runs/demo --exam=exams --out=predictions --prompts=mine.json
    python -m mammoclip_jax.predict --weights=runs/demo --exam=exams --out=predictions --method=occlusion
    python -m mammoclip_jax.predict --weights=runs/a,runs/b --exam=exams --out=predictions --mirror --calibrated

An exam is a study of a patient, by the headers; where these say nothing, the files of a patient in a folder, by their
names (docs/data.md). Its screening views are scored; the others are listed with the reason, and what is no image by
kind.
An image that cannot be read is listed with its reason, the others are scored, and the exit status is then 1.
"""

import sys
from pathlib import Path

from absl import flags

from mammoclip_jax import command

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
    flags.DEFINE_string("out", None, "Folder for prediction.json and the overlays.", required=True)
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
    flags.DEFINE_integer("overlay_size", 0, "Pixels of an overlay's longer side; 0: as many as the original image.")
    flags.DEFINE_bool(
        "every_view",
        False,
        "Score all mammograms, not only screening views: CC and MLO, for "
        "presentation, no spot, magnification or implant displaced view.",
    )
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
    from mammoclip_jax.evaluation.result import write_json  # not for --help: they import jax
    from mammoclip_jax.inference import loading
    from mammoclip_jax.inference.exam import predict

    values = flags.FLAGS
    model = loading.load(values.weights, batch_size=VIEWS)
    settings = model.config.predict
    prediction = predict(
        model,
        values.exam,
        values.out,
        prompts=values.prompts or settings.prompts,
        stage=values.stage or ("" if values.method else settings.stage),
        method=values.method or settings.method,
        overlay_size=values.overlay_size,
        every_view=values.every_view,
        **scoring(values, settings),
    )
    target = Path(values.out, "prediction.json")
    for path in filter(None, (target, values.json)):
        write_json(path, prediction)
    for exam in prediction["exams"]:
        print(_line(exam))
    for problem in prediction["problems"]:
        print(f"not scored: {problem['file']}: {problem['reason']}; {problem['remedy']}", file=sys.stderr)
    counts = prediction["counts"]
    for kind, number in counts["ignored"].items():
        print(f"no image, {kind}: {number}")
    print(
        f"{counts['scored']} views scored, {counts['left_out']} left out, {counts['problems']} files not readable: "
        f"{target}"
    )
    return 1 if prediction["problems"] or not counts["scored"] else 0


SCORING = ("mirror", "windows", "pool", "calibrated", "percentile")


def scoring(values, settings) -> dict:
    """The options of `inference.exam.predict` that say how scores are made: flags before config.predict.

    A flag that changes the windows leaves the config's pool behind, which belongs to its own.
    """
    chosen = {name: getattr(values, name, None) for name in SCORING}
    if chosen["windows"] is not None and chosen["pool"] is None:
        chosen["pool"] = settings.pool if chosen["windows"] else ""
    return {name: settings[name] if value is None else value for name, value in chosen.items()}


def _line(exam: dict) -> str:
    scores = ", ".join(f"{label} {score['max']:+.3f}" for label, score in exam["scores"].items())
    lines = [f"{exam['exam']}: {len(exam['views'])} views, highest scores: {scores or 'none'}"]
    lines += [f"  missing: {', '.join(exam['missing'])}"] if exam["missing"] else []
    return "\n".join(lines + [f"  left out: {item['file']}: {item['reason']}" for item in exam["left_out"]])


if __name__ == "__main__":
    define_flags()
    command.run(main)
