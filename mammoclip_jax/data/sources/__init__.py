"""Data set adapters: one file each, named here. Each has `read(root, **options) -> SourceTable`."""

from collections.abc import Callable

from mammoclip_jax.names import load

SOURCES = {
    "cbis_ddsm": "cbis_ddsm",
    "chexpert": "chexpert",
    "cmmd": "cmmd",
    "embed": "embed",
    "images_only": "images_only",
    "inbreast": "inbreast",
    "mammo_clip": "mammo_clip",
    "mias": "mias",
    "mimic_cxr": "mimic_cxr",
    "nl_breast_screening": "nl_breast_screening",
    "phantom": "phantom",
    "report_csv": "report_csv",
    "rsna": "rsna",
    "tfds": "tfds",
    "vindr": "vindr",
}


def reader(name: str) -> Callable:
    """The `read` function of the adapter `name`.

    Raises:
        UserError: there is no such adapter.
    """
    return load(__name__, SOURCES, name, "data source").read
