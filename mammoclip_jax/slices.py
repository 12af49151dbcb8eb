r"""Find where a classifier fails, in words, test that, and repair it: error slices after LADDER.

    python -m mammoclip_jax.slices --model=runs/classifier --language=runs/dual_encoder --dataset=data/vindr \
        --label=mass --out=slices/vindr --json=figures.json
    python -m mammoclip_jax.slices --model=models/b5 --language=models/mammo_clip --dataset=data/rsna \
        --language_dataset=data/rsna_for_mammo_clip --label=cancer --prompts=mammo_clip --out=slices/rsna
    python -m mammoclip_jax.slices --model=runs/classifier --dataset=data/embed --hypotheses=metadata --out=slices/embed
    python -m mammoclip_jax.slices --config=configs/phantom_slices.py --workdir=runs/slices

The dual encoder's space is where errors are compared with sentences: of the data set's reports, or of --sentences,
--prompts and --captions. Slices are found on the split val and measured on test. Writes OUT/slices.html, OUT/results with
all tables and, where a slice was found, OUT/repaired: the classifier with another last layer. Image features are kept in
OUT/features. --config trains both models first. docs/slices.md says how each figure is made.
"""

import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from mammoclip_jax import command
from mammoclip_jax.errors import UserError, together
from mammoclip_jax.names import check_name, check_options

if TYPE_CHECKING:  # what computes is imported where it does: not for --help
    from mammoclip_jax.evaluation.slices.analyse import Analysis
    from mammoclip_jax.evaluation.slices.gather import Gathered
    from mammoclip_jax.evaluation.slices.language_model import LanguageModel
    from mammoclip_jax.evaluation.slices.run import Options

HYPOTHESES = ("lexicon", "metadata", "model")
SPLITS = ("val", "test")  # whose patients the classifier must not have been trained on


def define_flags() -> None:
    """The flags of the command; not at import, where they would meet those of another command."""
    flags.DEFINE_string("model", "", "The classifier: a run, a checkpoint of it, or a model folder.")
    flags.DEFINE_string("language", "", "The dual encoder; not needed for --hypotheses=metadata.")
    flags.DEFINE_string("dataset", "", "Data set folder, prepared for the classifier.")
    flags.DEFINE_string("language_dataset", "", "The same images prepared for the dual encoder; by default --dataset.")
    flags.DEFINE_string("label", "cancer", "Which of the classifier's labels.")
    flags.DEFINE_string("out", "", "Folder for the page, the tables, the features and the repaired model.")
    flags.DEFINE_string("sentences", "", "Text file of sentences, instead of the data set's reports.")
    flags.DEFINE_string("prompts", "", "Prompt file, by name or path, whose texts are sentences.")
    flags.DEFINE_string("captions", "", "Caption template that makes sentences of the data set's metadata.")
    flags.DEFINE_list("hypotheses", ["lexicon", "metadata"], f"Who makes them: {', '.join(HYPOTHESES)}.")
    flags.DEFINE_list("columns", [], "More keys of the labels that are metadata.")
    flags.DEFINE_string("known", "", "A yes/no label that is a known slice, to compare the found ones with.")
    flags.DEFINE_string("language_model", "", "Of --hypotheses=model: a folder of transformers, or an http(s) address.")
    flags.DEFINE_string("language_model_name", "", "What the service at the address calls the model.")
    flags.DEFINE_string("language_model_key", "", "Environment variable that holds the service's key.")
    flags.DEFINE_bool("send_patient_text", False, "Whether sentences of reports may go to the service.")
    flags.DEFINE_multi_string("option", [], "key=value of evaluation.slices.run.Options; may be repeated.")
    flags.DEFINE_integer("batch_size", None, "Images at a time on the devices; no result depends on it.")
    flags.DEFINE_string("cache", "", "Folder that keeps image features; by default OUT/features.")
    flags.DEFINE_bool("allow_training_patients", False, "Score patients that the classifier was trained on too.")
    flags.DEFINE_string("override_licence", "", "Why a repaired model is allowed although terms forbid it; recorded.")
    flags.DEFINE_string("config", "", "FILE[:VARIANT] with a section `slices`: trains both models first.")
    flags.DEFINE_string("workdir", "", "Folder of all that --config makes.")
    flags.DEFINE_string("json", "", "File for the figures.")


def main(argv) -> int:
    """The command; see --help."""
    del argv
    values = flags.FLAGS
    if values.config:
        train_both(values)
    check_flags(values)
    from mammoclip_jax import provenance
    from mammoclip_jax.evaluation import console, result
    from mammoclip_jax.evaluation.page import slices as page
    from mammoclip_jax.evaluation.slices import members
    from mammoclip_jax.evaluation.slices.analyse import analyse
    from mammoclip_jax.evaluation.slices.gather import gather
    from mammoclip_jax.evaluation.suite import seen_before
    from mammoclip_jax.inference import loading
    from mammoclip_jax.weights import repaired

    options = _options(values)
    classifier = loading.load(values.model, batch_size=values.batch_size)
    language = loading.load(values.language, batch_size=values.batch_size) if values.language else None
    dataset, other = open_both(classifier, language, values)
    overrides = repaired.check(
        classifier.provenance, language.provenance if language else None, values.override_licence
    )
    said = [
        seen_before(classifier, dataset.info["name"], dataset, {"split": split}, values.allow_training_patients)
        for split in SPLITS
    ]
    out = Path(values.out)
    gathered = gather(
        classifier,
        dataset,
        values.label,
        language=language,
        language_dataset=other,
        sentences=bank_of(values, dataset) if language else (),
        columns=[*values.columns, *([values.known] if values.known else [])],
        use_metadata="metadata" in values.hypotheses or bool(values.known),
        cache=values.cache or out / "features",
    )
    logging.info("%s", ", ".join(f"{key} {number}" for key, number in gathered.counts.items()))
    parts = gathered.parts
    if "metadata" not in values.hypotheses:
        options = options._replace(leave_out=(*options.leave_out, *(parts["validation"].columns or ())))
    analysis = analyse(
        parts["train"],
        parts["validation"],
        parts["test"],
        gathered.bank,
        gathered.embed,
        model=_language_model(values),
        answers=str(out / "answers"),
        options=options,
    )
    protocol = " ".join([analysis.protocol, *dict.fromkeys(filter(None, said))])
    within = members.table(
        analysis.findings,
        parts,
        gathered.rows,
        dataset.index,
        lambda row: page.of_slice(row, values.label.replace("_", " ")),
    )
    tables = tables_of(analysis) | ({members.TABLE: within} if len(within) else {})
    outcome = result.Result(f"{dataset.info['name']}/slices", protocol, analysis.metrics, tables)
    result.save([outcome], out / "results")
    written = export(values, language, dataset, gathered, analysis, overrides, out / "repaired")
    path = page.write(
        out / "slices.html",
        analysis,
        dataset=dataset,
        gathered=gathered,
        label=values.label,
        known=values.known,
        protocol=protocol,
        command=provenance.without_paths(command.line()),
        models=_about(classifier, language),
        repaired=written.name if written else "",
    )
    console.show([outcome._replace(metrics=headline_metrics(analysis))], out / "results")
    for note in analysis.notes:
        print(note)
    print(f"slices: {', '.join(analysis.findings.slices) or 'none'}\npage: {path}")
    if written:
        print(f"repaired classifier: {written}")
    figures = {"slices": list(analysis.findings.slices), "counts": gathered.counts, "page": str(path)}
    figures |= {"tests": result.plain(analysis.findings.tests.to_dict("records")), "notes": list(analysis.notes)}
    command.write_json(values.json, result.to_json([outcome]) | figures | {"repaired": str(written or "")})
    return 0


def check_flags(values) -> None:
    """Raises UserError where a flag lacks, is of no use, or names nothing."""
    lacking = [name for name in ("model", "dataset", "out") if not getattr(values, name)]
    if lacking:
        raise UserError(f"give --{', --'.join(lacking)}; or --config and --workdir.")
    for name in values.hypotheses:
        check_name(name, HYPOTHESES, "kind of hypotheses")
    spoken, asked = "lexicon" in values.hypotheses, "model" in values.hypotheses
    if asked and not spoken:
        raise UserError("--hypotheses=model asks about the sentences that lexicon compares: name both.")
    if spoken and not values.language:
        raise UserError("--hypotheses=lexicon needs --language, a dual encoder; metadata alone needs none.")
    for name in ("language", "language_dataset", "sentences", "prompts", "captions"):
        if getattr(values, name) and not spoken:
            raise UserError(f"--{name} is of no use without --hypotheses=lexicon: leave it out.")
    if asked != bool(values.language_model):
        raise UserError(
            "--hypotheses=...,model and --language_model=FOLDER or address go together: give both or neither."
        )
    online = values.language_model.startswith(("http://", "https://"))
    if online != bool(values.language_model_name):
        raise UserError("--language_model_name says which model of a service answers: it goes with an http(s) address.")
    for name in ("language_model_key", "send_patient_text"):
        if getattr(values, name) and not online:
            raise UserError(f"--{name} is of no use without an http(s) address in --language_model: leave it out.")


def train_both(values) -> None:
    """Trains, or goes on training, the dual encoder that the section `slices` of --config names, then the classifier; the flags
    become what that section says.

    Raises:
        UserError: flags say what the config says, --workdir lacks, the config has no such section, or a training failed.
    """
    from mammoclip_jax.check import check

    for name in ("model", "language", "dataset", "language_dataset", "out"):
        if getattr(values, name):
            raise UserError(f"--config makes it all in --workdir and has no use for --{name}: leave it out.")
    if not values.workdir:
        raise UserError("--config needs --workdir, the folder of all that it makes.")
    file = values.config.partition(":")[0]
    config, workdir = command.load_config(values.config), Path(values.workdir)
    wanted = config.slices
    if not wanted.language:
        raise UserError(f"{file}: config.slices.language does not name the variant of it that trains a dual encoder.")
    spoken = command.load_config(f"{file}:{wanted.language}")
    together(lambda: check(spoken), lambda: check(config))
    start = [f"--config.warm_start.{wanted.start}.weights={workdir / 'dual_encoder'}"] if wanted.start else []
    for name, module, text, more in (
        ("dual_encoder", "pretrain", f"{file}:{wanted.language}", []),
        ("classifier", "finetune", values.config, start),
    ):
        arguments = [f"--config={text}", f"--workdir={workdir / name}", *more]
        ended = subprocess.run([sys.executable, "-m", f"mammoclip_jax.{module}", *arguments])
        if ended.returncode:
            raise UserError(
                f"the training of the {name} in {workdir / name} ended early: the same command goes on with it."
            )
    values.model, values.language = str(workdir / "classifier"), str(workdir / "dual_encoder")
    values.dataset = config.data.folders[wanted.dataset].format(workdir=workdir / "classifier")
    values.out = str(workdir / "slices")
    values.label, values.known = wanted.label, wanted.known


def _options(values) -> "Options":
    """The options of the analysis. Raises UserError for one that is not there, or that has a flag of its own."""
    from mammoclip_jax.evaluation.slices.run import Options

    given = command.parse_options(values.option)
    for name in ("label", "known"):
        if name in given:
            raise UserError(f"write --{name}=..., not --option={name}=...")
    check_options(Options, given, "--option")
    for name, value in given.items():
        default = Options._field_defaults[name]
        if isinstance(default, tuple):
            given[name] = tuple(value) if isinstance(value, list) else tuple(str(value).split(","))
        elif not isinstance(default, str) and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(f"--option={name}={value} must be a number.")
    own = (*given.pop("leave_out", ()), values.label)  # the label's column says the class, whatever its words are
    return Options(**given, label=values.label.replace("_", " "), known=values.known, leave_out=own)


def open_both(classifier, language, values):
    """(the classifier's data set, the dual encoder's or None where it is the same).

    Raises:
        UserError: a model is of another kind, or its images were prepared otherwise.
    """
    from mammoclip_jax.data.store.shards import Dataset
    from mammoclip_jax.evaluation.suite import check_preprocessing
    from mammoclip_jax.tasks import split_as_trained

    for model, flag, kind in ((classifier, "model", "classifier"), (language, "language", "dual_encoder")):
        if model is not None and model.kind != kind:
            raise UserError(f"--{flag} is to be a {kind.replace('_', ' ')}, and is a {model.kind.replace('_', ' ')}.")
    dataset = split_as_trained(classifier, {"": Dataset.open(values.dataset)})[""]
    check_preprocessing(classifier, values.dataset, dataset)
    other = Dataset.open(values.language_dataset) if values.language_dataset else None
    if language is not None:
        check_preprocessing(language, values.language_dataset or values.dataset, other or dataset)
    return dataset, other


def bank_of(values, dataset) -> list[str]:
    """The sentences that the flags name; by default of the reports of images that are not in the test part."""
    from mammoclip_jax.evaluation.slices import sentences

    rows = dataset.index[dataset.index["split"].isin(["train", "val"])]
    banks = []
    if values.sentences:
        banks.append(sentences.of_file(values.sentences))
    if values.prompts:
        banks.append(sentences.of_prompts(values.prompts))
    if values.captions:
        banks.append(sentences.of_captions(rows, values.captions))
    return sentences.together(banks or [sentences.of_reports(rows)])


def _language_model(values) -> "LanguageModel | None":
    if not values.language_model:
        return None
    from mammoclip_jax.evaluation.slices import language_model

    if not values.language_model_name:
        return language_model.local(values.language_model)
    return language_model.http(
        values.language_model,
        values.language_model_name,
        key=values.language_model_key,
        patient_text=values.send_patient_text,
    )


def headline_metrics(analysis: "Analysis") -> dict:
    """The metrics without those of the baselines, which stand on the page and in the tables."""
    from mammoclip_jax.evaluation.slices.mend import CLASSIFIER, REPAIRED

    others = (
        {f"{name}/" for name in analysis.repaired.scores} - {f"{CLASSIFIER}/", f"{REPAIRED}/"}
        if analysis.repaired
        else ()
    )
    return {name: entry for name, entry in analysis.metrics.items() if not name.startswith(tuple(others))}


def tables_of(analysis: "Analysis") -> dict:
    """{name: table} of all that is written."""
    found, mended = analysis.findings, analysis.repaired
    tables = {"tests": found.tests, "sentences": found.retrieved, "phrases": found.phrases, "rates": analysis.rates}
    tables |= {"fairness": analysis.fairness} | ({"models": mended.figures, "groups": mended.groups} if mended else {})
    return {name: table for name, table in tables.items() if len(table)}


def export(
    values, language, dataset, gathered: "Gathered", analysis: "Analysis", overrides: list, out: Path
) -> Path | None:
    """The repaired classifier's folder; None where nothing was mended. `overrides`: of `repaired.check`."""
    mended = analysis.repaired
    if mended is None:
        return None
    from mammoclip_jax import provenance
    from mammoclip_jax.evaluation.slices.mend import MEAN_HEAD, REPAIRED
    from mammoclip_jax.weights import repaired
    from mammoclip_jax.weights.opening import open_weights

    variables, meta = open_weights(values.model)
    seen = dataset.index.iloc[gathered.rows["validation"]]
    head = mended.heads[MEAN_HEAD]
    how = (
        f"The last layer for {values.label} is the mean of {len(mended.names)} heads, each fitted on validation images "
        f"balanced over the four groups of {values.label} with and without: {', '.join(mended.names)}. All else is as it "
        f"was. Its threshold, chosen on validation: {mended.thresholds[MEAN_HEAD]:.4g}."
    )
    if len(mended.names) > 1:
        how += f" It is not the ensemble ({REPAIRED}), which mixes the heads anew for each image."
    behind = [meta.get("trained_on"), language.trained_on if language else None]
    return repaired.write(
        out,
        variables,
        meta,
        label=values.label,
        weights=head.weights,
        bias=head.bias,
        how=how,
        language=_meta(language) if language else None,
        trained_on=provenance.trained_on_rows(dataset, seen, *behind),
        overrides=overrides,
    )


def _meta(model) -> dict:
    return {
        "kind": model.kind,
        "step": model.step,
        "config": {"name": model.config.get("name", "")},
        "provenance": model.provenance,
        "trained_on": model.trained_on,
    }


def _about(classifier, language) -> dict[str, str]:
    """{what it is here: its name and step} of the models, for the page."""
    from mammoclip_jax import provenance

    models = {"classifier": classifier} | ({"dual encoder": language} if language else {})
    return {
        what: provenance.without_paths(
            f"{model.config.get('name', '') or model.kind.replace('_', ' ')}, step {model.step}"
        )
        for what, model in models.items()
    }


if __name__ == "__main__":
    define_flags()
    command.run(main)
