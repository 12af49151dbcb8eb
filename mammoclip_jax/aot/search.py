"""The largest batch that fits, with few compilations, since one may take minutes."""

from collections.abc import Callable
from typing import NamedTuple


class Trial(NamedTuple):
    """What one compilation said."""

    fits: bool
    used: int | None  # bytes that the program needs; None where the compiler did not say
    limit: int  # bytes that there are


def largest(trial: Callable[[int], Trial], start: int, step: int = 1, highest: int = 4096) -> int:
    """The largest multiple of `step` that fits, or 0: bisection that aims where the memory's line meets the limit.

    Needs of a program are nearly linear in its batch, so the next size is where the line through two known sizes meets
    the limit, and as a rule three or four trials are enough. The answer is known to fit, and the next size not to.

    Args:
        trial: of a size; called once a size.
        start: the first size, rounded down to a multiple of `step`.
        highest: multiples of `step` beyond that are not tried.
    """
    known, widths = {}, []
    fits, fails = 0, highest + 1
    guess = min(max(start // step, 1), highest)
    while True:
        known[guess] = trial(guess * step)
        fits, fails = (guess, fails) if known[guess].fits else (fits, guess)
        if fails - fits == 1:
            return fits * step
        widths.append(fails - fits)
        # A curved line may creep up to the limit from one side: two trials that do not halve the gap are answered so.
        creeps = len(widths) > 2 and 2 * widths[-1] > widths[-3]
        guess = min(max(_aim(known, fits, fails, creeps), fits + 1), fails - 1)


def _aim(known, fits, fails, creeps) -> int:
    """The largest size that should fit."""
    if fits in known and fails in known:
        crossing = _crossing(known, fits, fails)
        return (fits + fails) // 2 if creeps or crossing is None else crossing
    edge = fits if fits in known else fails
    others = sorted(known, key=lambda size: abs(size - edge))[1:2]
    crossing = _crossing(known, edge, others[0] if others else 0)
    if crossing is None:
        return 2 * edge if edge == fits else edge // 2
    return min(crossing, 4 * edge) if edge == fits else crossing


def _crossing(known, a, b) -> int | None:
    """Where the line through sizes a and b meets the limit; size 0 needs nothing. None without a rising line."""
    used_a, used_b = (known[size].used if size else 0 for size in (a, b))
    if used_a is None or used_b is None or (used_a - used_b) * (a - b) <= 0:
        return None
    return int(a + (known[a].limit - used_a) * (b - a) / (used_b - used_a))
