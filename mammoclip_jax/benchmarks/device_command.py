"""The flags of `benchmark --mode=device`, and what they ask for."""

from collections.abc import Callable

from absl import flags

from mammoclip_jax.benchmarks import DEVICE, device
from mammoclip_jax.errors import UserError

_OWN = {"small", "time_limit", "batches", "parts"}
_SHARED = {"mode", "height", "width", "steps", "warm_up", "json", "csv", "plot"}


def define_flags() -> None:
    """Those that no other mode reads."""
    flags.DEFINE_bool("small", False, "Of --mode=device: tiny encoders, to try the command out on a CPU.")
    flags.DEFINE_float("time_limit", 480, "Seconds that --mode=device may take.", lower_bound=1)
    flags.DEFINE_list("batches", [], "Images a step of --mode=device; '': from 8 on, until memory is full.")
    flags.DEFINE_list("parts", [], f"Of --mode=device, of {', '.join(device.LIMITS)}; '': all.")


def check(values) -> None:
    """Raises UserError for a flag of benchmark.py that was given and that the mode does not read."""
    modules = values.flags_by_module_dict().items()
    given = {flag.name for module, own in modules if not module.startswith("absl.") for flag in own if flag.present}
    if values.mode != DEVICE or values.against:
        if unread := given & _OWN:
            raise UserError(f"--{min(unread)} belongs to --mode=device.")
        return
    read = _OWN | _SHARED - ({"height", "width"} if values.small else set())
    if unread := given - read:
        raise UserError(f"--mode=device{' --small' if values.small else ''} does not read --{min(unread)}.")


def measured(values, table: Callable[[list[dict]], str]) -> dict:
    """Keywords of `benchmark._figures`: rows of steps, what else `device.measure` returns, and a note with its tables."""
    whole = device.plan(
        small=values.small,
        height=values.height,
        width=values.width,
        batches=[int(batch) for batch in values.batches],
        steps=values.steps,
        warm_up=values.warm_up,
    )
    found = device.measure(whole, seconds=values.time_limit, only=values.parts)
    rows = found.pop("rows") or found["depthwise"] or found["checks"]  # the table is of what was asked for
    height, width = whole.models[0].size
    about = {"data": f"one device, {whole.dtype}", "height": height, "width": width, "note": note(found, table)}
    return about | found | {"rows": rows}


def note(found: dict, table: Callable[[list[dict]], str]) -> str:
    """What stands below the table of steps: the checks, the depthwise convolutions, the advice."""
    checks = found["checks"]
    lines = [f"\nright: {sum(line['right'] for line in checks)} of {len(checks)} checks"] if checks else []
    lines += [f"  WRONG: {line}" for line in checks if not line["right"]]
    lines += ["", table(found["depthwise"])] if found["depthwise"] else []
    return "\n".join([*lines, "", *found["advice"]])
