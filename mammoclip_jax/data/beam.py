"""Shards on Apache Beam, an extra: any of its runners maps a function over them, in processes or on a cluster."""

from collections.abc import Callable, Sequence

from mammoclip_jax.errors import UserError
from mammoclip_jax.names import suggestion

RUNNERS = ("DirectRunner", "PrismRunner", "FlinkRunner", "SparkRunner", "DataflowRunner")


def run(function: Callable[[object], None], items: Sequence, runner: str, options: Sequence[str] = ()) -> None:
    """Calls `function(item)` once or more for every item, wherever the runner likes, and waits for the end.

    A runner repeats an item whose machine failed: `function` must write the same thing each time, whole or not at all.

    Args:
        function: importable by name on every worker; what it writes must lie where all of them can reach it.
        items: picklable, one a shard.
        runner: one of RUNNERS.
        options: Beam's flags, such as "--direct_num_workers=2" or "--flink_master=host:8081".

    Raises:
        UserError: Beam is not installed, the runner is unknown, or the pipeline failed.
    """
    if runner not in RUNNERS:
        raise UserError(f"there is no runner {runner!r}.{suggestion(runner, RUNNERS)} Known: {', '.join(RUNNERS)}.")
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions
    except ModuleNotFoundError as error:
        raise UserError(
            f"runner {runner!r} needs Apache Beam, and {error.name} is not installed. Run pip install "
            "mammoclip_jax[beam], or leave the runner out to use the local process pool."
        ) from None
    if not items:
        return
    settings = PipelineOptions([f"--runner={runner}", *options])
    # Nothing of the program that starts the pipeline is needed elsewhere, and absl's flags cannot be pickled.
    settings.view_as(SetupOptions).save_main_session = False
    try:
        with apache_beam.Pipeline(options=settings) as pipeline:
            # Without Reshuffle all items would be fused with Create into one task for one worker.
            (
                pipeline
                | "shards" >> apache_beam.Create(list(items), reshuffle=False)
                | apache_beam.Reshuffle()
                | "write" >> apache_beam.Map(function)
            )
    except Exception as error:  # each runner has its own kind of failure
        raise UserError(
            f"the pipeline on {runner} failed: {_cause(error)}. Shards that are finished are kept: mend it "
            "and run the same command again."
        ) from error


def _cause(error: BaseException) -> str:
    """The last line that says something: runners hand on a worker's whole traceback as the message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    own = [line for line in lines if line.partition(":")[0].replace(".", "").isidentifier() and ": " in line]
    return (own or lines or [type(error).__name__])[-1]
