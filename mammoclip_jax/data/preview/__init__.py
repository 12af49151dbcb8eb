"""The contact sheet of `prepare --preview`: what became of the images, for a look with one's own eyes."""

from mammoclip_jax.data.preview.sheet import preview, preview_source

__all__ = ["preview", "preview_source"]
