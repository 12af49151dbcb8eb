"""What a run may change when it goes on: its weights were trained with one config, which stays theirs.

workdir/config.json     the config of the weights and, as "changes", what was changed later: when, at which step,
                        {field: [old, new]}
"""

import datetime
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mammoclip_jax.config import NAMED_PARTS, complete, defaults, fields
from mammoclip_jax.errors import UserError
from mammoclip_jax.files import write_text
from mammoclip_jax.training import checkpoint
from mammoclip_jax.training.optimizer import schedule

CONFIG = "config.json"
# Fields that leave what is learnt as it is: names, evaluation, logs, when it is saved, where and how fast it is computed.
# Of data and tokenizer the content counts (`check_content`), and of the warm start what the run noted of it.
FREE = re.compile(
    r"""
    name | cpu_devices | compilation_cache | (mesh|sharding|evaluate|predict|warm_start)\..* |
    data\.(folders|prepare|phantom)\..* | data\.(tokenizer|vocab_size|read_threads) | task\.(monitor|better|patience) |
    model\.image\.(remat|scan|lanes|depthwise|attention|rows|kernels) | model\.text\.remat |
    train\.(log_every|eval_every|checkpoint_every|keep_checkpoints|watchdog_seconds|watchdog_evaluation_seconds|
    profile_steps|micro_batches\..*)""",
    re.VERBOSE,
)
ABSENT = "absent"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{field: (old, new)} of two configs as JSON.

    A field that the program did not have when it wrote `old` had its default; one that it no longer has is left out.
    """
    usual = fields(plain(defaults()))
    before, after = usual | fields(old), fields(new)
    known = {name for name in before.keys() | after.keys() if name in after or name.startswith(NAMED_PARTS)}
    pairs = {name: (before.get(name, ABSENT), after.get(name, ABSENT)) for name in sorted(known)}
    return {name: values for name, values in pairs.items() if values[0] != values[1]}


def plain(config) -> dict[str, Any]:
    """A config as checkpoints keep it."""
    return json.loads(config.to_json_best_effort())


def check(config, workdir) -> dict[str, tuple[Any, Any]]:
    """What `config` changes of the run in `workdir`, all of it allowed; {} where there is no checkpoint yet.

    Raises:
        UserError: it changes what the run's weights are being trained with; the message has each field, old -> new.
    """
    step, meta = checkpoint.newest_meta(workdir)
    if meta is None:
        return {}
    changed = differences(meta["config"], plain(config))
    refused = {name: values for name, values in changed.items() if name != "train.steps" and not FREE.fullmatch(name)}
    if config.train.steps < step:
        refused["train.steps"] = changed["train.steps"]
    if refused:
        raise UserError(
            f"{workdir} is at step {step} of a run with another config, and goes on only as what it was: "
            f"{_listed(refused)}. Take the old values, or another --workdir; a new run may start from "
            "this one's weights by config.warm_start."
        )
    if "train.steps" in changed:
        before = complete(meta["config"]).train
        rates = [float(schedule(train)(step)) for train in (before, config.train)]
        logging.warning(
            "config.train.steps was %d and is %d: the rate at step %d is %.3g instead of %.3g, and comes to "
            "its end at the new last step",
            before.steps,
            config.train.steps,
            step,
            *reversed(rates),
        )
    return changed


def check_content(meta: Mapping[str, Any], workdir) -> None:
    """Raises UserError where data sets, their preprocessing or the tokenizer are not those the run was trained with."""
    step, old = checkpoint.newest_meta(workdir)
    if old is None:
        return
    differing = {}
    sets = [{name: entry["fingerprint"] for name, entry in each["provenance"]["data"].items()} for each in (old, meta)]
    if list(sets[0].values()) != list(sets[1].values()):
        differing |= {
            f"data set {name}": tuple(each.get(name, ABSENT) for each in sets)
            for name in sorted(sets[0].keys() | sets[1].keys())
            if sets[0].get(name) != sets[1].get(name)
        }
        differing = differing or {"order of the data sets": tuple(" ".join(each) for each in sets)}
    if old["preprocessing"] != meta["preprocessing"]:
        differing |= {f"preprocessing.{name}": values for name, values in _pairs(old, meta).items()}
    if old["tokenizer"] != meta["tokenizer"]:
        differing["tokenizer"] = ("that of the run", "another")
    if differing:
        raise UserError(
            f"{workdir} is at step {step} of a run that has learnt from other data: {_listed(differing)}. "
            "Take the old ones, or another --workdir."
        )


def note(config, workdir, changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Writes config.json: of a new run its config, of one that goes on the first one and what was changed since."""
    path = Path(workdir, CONFIG)
    step, meta = checkpoint.newest_meta(workdir)
    if meta is None:
        write_text(path, json.dumps(plain(config), indent=2) + "\n")
        return
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else meta["config"]
    changes = kept.get("changes", [])
    now = {name: list(values) for name, values in changed.items()}
    if now and (not changes or changes[-1]["fields"] != now):
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_text(
            path,
            json.dumps(kept | {"changes": [*changes, {"date": date, "step": step, "fields": now}]}, indent=2) + "\n",
        )


def _pairs(old, new) -> dict[str, tuple[Any, Any]]:
    names = sorted(old["preprocessing"].keys() | new["preprocessing"].keys())
    pairs = {name: (old["preprocessing"].get(name, ABSENT), new["preprocessing"].get(name, ABSENT)) for name in names}
    return {name: values for name, values in pairs.items() if values[0] != values[1]}


def _listed(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(
        f"{name if ' ' in name else f'config.{name}'}: {json.dumps(old)} -> {json.dumps(new)}"
        for name, (old, new) in changed.items()
    )
