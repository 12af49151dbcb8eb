"""Score an exam's files with a trained model: JSON for programs, pictures for people.

    python -m mammoclip_jax.predict --weights=runs/demo --exam=exams/0042 --out=predictions
    python -m mammoclip_jax.predict --weights=runs/demo --exam=exams --out=predictions --prompts=mine.json

A folder that holds files is one exam; a folder of folders holds one exam each. Files that cannot be scored are listed
with their reason, the others are scored, and the exit status is then 1.
"""

import sys
from pathlib import Path

from absl import flags

from mammoclip_jax import command
from mammoclip_jax.evaluation.exam import predict
from mammoclip_jax.evaluation.result import write_json

WEIGHTS = flags.DEFINE_string("weights", None, "Folder of a run, or one checkpoint of it.")
EXAM = flags.DEFINE_string("exam", None, "Folder of an exam's DICOM files, or of exam folders.")
OUT = flags.DEFINE_string("out", None, "Folder for prediction.json and the overlays.")
PROMPTS = flags.DEFINE_string("prompts", "", "A prompt file (JSON), or the name of one in evaluation/prompts. Default: "
                                             "config.predict.prompts of the run, else mammo_clip.")
SIZE = flags.DEFINE_integer("overlay_size", 0, "Pixels of an overlay's longer side; 0: as many as the original image.")
JSON = flags.DEFINE_string("json", "", "Another file for the prediction.")


def main(argv):
    del argv
    from mammoclip_jax import inference

    model = inference.load(WEIGHTS.value)
    prompts = PROMPTS.value or model.config.predict.prompts or "mammo_clip"
    found = predict(model, EXAM.value, OUT.value, prompts=prompts, overlay_size=SIZE.value)
    target = Path(OUT.value, "prediction.json")
    for path in filter(None, (target, JSON.value)):
        write_json(path, found)
    for exam in found["exams"]:
        print(_line(exam))
    for problem in found["problems"]:
        print(f"not scored: {problem['file']}: {problem['reason']}; {problem['remedy']}", file=sys.stderr)
    print(f"{sum(len(exam['views']) for exam in found['exams'])} views scored, {len(found['problems'])} files not: {target}")
    return 1 if found["problems"] else 0


def _line(exam: dict) -> str:
    scores = ", ".join(f"{label} {score['max']:+.3f}" for label, score in exam["scores"].items())
    return f"{exam['exam']}: {len(exam['views'])} views, highest scores: {scores or 'none'}"


if __name__ == "__main__":
    flags.mark_flags_as_required(["weights", "exam", "out"])
    command.run(main)
