"""Data set adapters: one file each, named here. Each has `read(root, **options) -> SourceTable`."""

import importlib
from typing import Callable

from mammoclip_jax.names import lookup

SOURCES = {
    "phantom": "phantom",
    "cbis_ddsm": "cbis_ddsm",
    "mias": "mias",
    "report_csv": "report_csv",
}


def reader(name: str) -> Callable:
    """The `read` function of the adapter `name`.

    Raises:
        UserError: there is no such adapter.
    """
    module = lookup(SOURCES, name, "data source")
    return importlib.import_module(f"{__name__}.{module}").read
