"""What a run owes to the tables of regions that it learns from: how they were found, and the terms of whose weights."""

from collections.abc import Mapping
from typing import Any

from mammoclip_jax import provenance
from mammoclip_jax.data.batches.regions import ANNOTATED
from mammoclip_jax.data.store import region_tables
from mammoclip_jax.weights import licences

KEPT = ("method", "options", "weights", "concepts", "counts", "sha256", "fingerprint")


def note(meta: dict[str, Any], config, datasets: Mapping[str, Any]) -> None:
    """Adds to the provenance and the patients of a run's `meta` those of the tables in `config.data.regions.sources`.

    The weights that found regions are parents of the model like those that it starts from: their terms bind it, and it
    has seen something of their patients.

    Raises:
        UserError: a data set has no such table.
    """
    wanted = config.data.regions
    read = wanted.places or config.task.kind == "detector"
    names = [name for name in wanted.sources if name != ANNOTATED] if read else []
    tables = {
        f"{key}/{name}": region_tables.read(data.path, name).info for key, data in datasets.items() for name in names
    }
    if not tables:
        return
    parents = [(key, info, info["origin"]) for key, info in tables.items() if "origin" in info]
    more = {
        "regions": {key: {name: info[name] for name in KEPT if name in info} for key, info in tables.items()},
        "parents": [
            {
                "name": key,
                "what": f"regions {key}, method {info['method']}",
                "origin": origin["title"] or origin["name"],
                "kind": info["weights"]["kind"],
                "step": info["weights"]["step"],
                "licences": [entry.get("title") for entry in origin["licences"]],
                "patients_known": origin["trained_on"] is not None,
            }
            for key, info, origin in parents
        ],
        "licences": licences.inherit(origin for _, _, origin in parents),
        "overrides": licences.inherit_overrides(origin for _, _, origin in parents),
    }
    meta["provenance"] = licences.joined(meta["provenance"], more)
    meta["trained_on"] = provenance.trained_on(
        (), meta["trained_on"], *(origin["trained_on"] for *_, origin in parents)
    )
