"""One file a mode of `python -m mammoclip_jax.benchmark`; each has `run(sample, **options) -> Figures`."""

MODES = {
    "codecs": "mammoclip_jax.benchmarks.codecs",
    "input": "mammoclip_jax.benchmarks.input",
    "prepare": "mammoclip_jax.benchmarks.prepare",
}
