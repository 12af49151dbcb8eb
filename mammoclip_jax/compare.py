"""Compare two models on the same images, subgroups of patients, or training sets, from what `evaluate` wrote.

    python -m mammoclip_jax.compare runs/a/evaluation runs/b/evaluation --out=a_against_b
    python -m mammoclip_jax.compare a/predictions.csv b/predictions.csv --metric=auroc,auprc --json=figures.json
    python -m mammoclip_jax.compare runs/a/evaluation --by=density,age,vendor --dataset=data/vindr
    python -m mammoclip_jax.compare vindr=runs/a/evaluation embed=runs/b/evaluation --transfer=mass/auroc

Two files of predictions, or folders that hold them: values of both, their difference with its interval, DeLong's test
for patients with several images, a permutation test. One and --by: a metric in subgroups, whose attributes come from
the index of --dataset. --transfer: a row a training set, a column a test set. With --out, tables as CSV, JSON and LaTeX
and plots. The two must hold the same images, else the command says what differs.
"""

from pathlib import Path

from absl import flags

from mammoclip_jax import command, terminal
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.choices import BY, LEVELS, METRICS, PERMUTATIONS, RESAMPLES


def define_flags() -> None:
    """The flags of the command."""
    flags.DEFINE_list("metric", [], f"Which of {', '.join(METRICS)}; one of them with --by.")
    flags.DEFINE_string("level", "breast", f"What is scored: {', '.join(LEVELS)}.")
    flags.DEFINE_list("by", [], f"Subgroups instead of a second model: {', '.join(BY)}.")
    flags.DEFINE_list("dataset", [], "Prepared data set folders whose index says who is in which subgroup.")
    flags.DEFINE_string("transfer", "", "A metric as in metrics.csv; the words are then TRAINING_SET=RESULTS.")
    flags.DEFINE_string("evaluator", "", "Whose metric --transfer takes, where several have it.")
    flags.DEFINE_integer("resamples", RESAMPLES, "Of the patients, for intervals; 0: none.")
    flags.DEFINE_integer("permutations", PERMUTATIONS, "Of the permutation test; 0: none.")
    flags.DEFINE_string("out", "", "Folder for tables and plots.")
    flags.DEFINE_string("json", "", "File for the figures.")


def two_models(paths: list[str], values) -> list:
    """Results of the comparison of each pair of files of predictions; names of files must agree where there are several."""
    from mammoclip_jax.evaluation import comparison  # what computes is imported where it does: not for --help
    from mammoclip_jax.evaluation.predictions import read_all

    first, second = map(read_all, paths)
    if len(first) == len(second) == 1:
        pairs = [("", *first.values(), *second.values())]
    elif first.keys() != second.keys():
        one_sided = ", ".join(sorted(first.keys() ^ second.keys()))
        raise UserError(
            f"{paths[0]} and {paths[1]} hold different files of predictions: only one has {one_sided}. "
            "Name the two files to compare."
        )
    else:
        pairs = [(name + "/", first[name], second[name]) for name in first]
    results = []
    for name, a, b in pairs:
        made = comparison.compare(
            a,
            b,
            metrics=tuple(values.metric) or None,
            level=values.level,
            names=tuple(paths),
            resamples=values.resamples,
            permutations=values.permutations,
        )
        figures = _pictures(a, b, paths, values) if values.out else {}
        results.append(made._replace(name=name + made.name, figures=figures))
    return results


def _pictures(a, b, names, values) -> dict[str, bytes]:
    """ROC and precision-recall curves of both models for each yes/no label with both classes."""
    from mammoclip_jax.evaluation import comparison
    from mammoclip_jax.evaluation.metrics.classification import scored
    from mammoclip_jax.evaluation.page import curves

    pictures = {}
    for pair in comparison.aligned(a, b, tuple(names)):
        at = [scored(side.rows, side.truth, side.prediction, comparison.LEVEL_NAMES[values.level]) for side in pair]
        if not pair[0].classes and len(set(at[0].truth)) == 2:
            lines = {name: curves.Scores(*side[1:]) for name, side in zip(names, at)}
            for kind, draw in (("roc", curves.roc), ("precision_recall", curves.precision_recall)):
                pictures[f"{kind}_{pair[0].label}"] = draw(lines, resamples=values.resamples)
    return pictures


def one_model(path: str, values) -> list:
    """Results: a metric in subgroups, for each file of predictions."""
    if not values.dataset:
        raise UserError(
            "--by needs --dataset=FOLDER, the prepared data set that was evaluated, for who is in which subgroup."
        )
    if len(values.metric) > 1:
        raise UserError(f"--by takes one --metric, not {', '.join(values.metric)}.")
    import pandas as pd

    from mammoclip_jax.data.store.shards import Dataset
    from mammoclip_jax.evaluation.page import curves
    from mammoclip_jax.evaluation.predictions import read_all
    from mammoclip_jax.evaluation.subgroups import subgroups

    index = pd.concat([Dataset.open(folder).index for folder in values.dataset], ignore_index=True)
    results, tables = [], read_all(path)
    for name, table in tables.items():
        made = subgroups(
            table,
            index,
            by=tuple(values.by),
            metric=values.metric[0] if values.metric else None,
            level=values.level,
            resamples=values.resamples,
        )
        parts = made.tables["subgroups"].groupby("label", sort=False)
        figures = {f"forest_{label}": curves.forest(part, title=label) for label, part in parts} if values.out else {}
        results.append(made._replace(name=f"{name}/{made.name}" if len(tables) > 1 else made.name, figures=figures))
    return results


def training_sets(words: list[str], values) -> list:
    """The result with the transfer table of the words TRAINING_SET=RESULTS."""
    runs = dict(word.split("=", 1) for word in words if "=" in word)
    if len(runs) < len(words) or not runs:
        raise UserError(f"--transfer takes words TRAINING_SET=RESULTS, each set once, not {' '.join(words) or 'none'}.")
    from mammoclip_jax.evaluation.transfer import transfer

    return [transfer(runs, values.transfer, values.evaluator or None)]


def main(argv) -> int:
    """The command; see --help."""
    values, words = flags.FLAGS, argv[1:]
    if values.transfer:
        results = training_sets(words, values)
    elif values.by and len(words) == 1:
        results = one_model(words[0], values)
    elif len(words) == 2 and not values.by:
        results = two_models(words, values)
    else:
        raise UserError(f"give two results to compare, or one and --by=density,... , not {len(words)}; see --help.")
    from mammoclip_jax.evaluation import result
    from mammoclip_jax.evaluation.page.tables import latex_table, shown

    for outcome in results:
        for table in outcome.tables.values():
            text = shown(table)
            rows = [list(text.columns), *text.to_numpy().tolist()]
            print("\n".join([f"{outcome.name}: {outcome.protocol}", *terminal.table(rows, terminal.width())]))
    if values.out:
        result.save(results, Path(values.out))
        for outcome in results:
            for name, table in outcome.tables.items():
                (Path(values.out) / outcome.name / f"{name}.tex").write_text(latex_table(table))
    command.write_json(
        values.json,
        result.to_json(results)
        | {
            "tables": {
                f"{r.name}/{name}": result.plain(table.to_dict(orient="records"))
                for r in results
                for name, table in r.tables.items()
            }
        },
    )
    return 0


if __name__ == "__main__":
    define_flags()
    command.run(main, words=True)
