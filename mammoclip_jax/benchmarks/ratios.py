"""What a comparison of several sides says: a row a side, and our time and memory as shares of each peer's."""

from collections.abc import Mapping, Sequence

import numpy as np

from mammoclip_jax.benchmarks import load


def kept(run: Mapping) -> np.ndarray:
    """Which steps of a process were not disturbed, bool [steps]."""
    return load.quiet(run["others"])


def seconds_of(runs: Sequence[Mapping]) -> np.ndarray:
    """Of the steps that count, of all processes of a side."""
    return np.concatenate([np.array(run["seconds"])[kept(run)] for run in runs])


def peak_of(runs: Sequence[Mapping]) -> float:
    """Bytes: the median of the processes' peaks."""
    return float(np.median([run["bytes"] for run in runs]))


def time_ratio(ours: Sequence[Mapping], theirs: Sequence[Mapping], alternate: str) -> float:
    """The median over neighbours of our time as a share of theirs.

    Neighbours are steps of which neither was disturbed (all, where there is no such pair), or, with
    alternate="process", the medians of processes.
    """
    if alternate == "process":
        return float(np.median([np.median(seconds_of([a])) / np.median(seconds_of([b])) for a, b in zip(ours, theirs)]))
    pairs = np.concatenate([np.array(a["seconds"]) / np.array(b["seconds"]) for a, b in zip(ours, theirs)])
    both = np.concatenate([kept(a) & kept(b) for a, b in zip(ours, theirs)])
    return float(np.median(pairs[both] if both.any() else pairs))


def against(ours: Sequence[Mapping], peers: Mapping[str, Sequence[Mapping]], alternate: str) -> dict:
    """{"time": {peer: ours as a share}, "memory": the same, "fastest_peer", "time_of_fastest", "smallest_peer",
    "memory_of_smallest"}: the fastest peer has the lowest median, the smallest the lowest peak."""
    times = {name: round(time_ratio(ours, runs, alternate), 3) for name, runs in peers.items()}
    memory = {name: round(peak_of(ours) / peak_of(runs), 3) for name, runs in peers.items()}
    fastest = min(peers, key=lambda name: np.median(seconds_of(peers[name])))
    smallest = min(peers, key=lambda name: peak_of(peers[name]))
    return {
        "time": times,
        "memory": memory,
        "fastest_peer": fastest,
        "time_of_fastest": times[fastest],
        "smallest_peer": smallest,
        "memory_of_smallest": memory[smallest],
    }


def row(name: str, runs: Sequence[Mapping], ours: Sequence[Mapping], alternate: str) -> dict:
    """A side's figures, and what our first side's are as a share of them (below 1: ours is faster, smaller).

    disturbed_steps were left out (`load.quiet`); other_load is the mean share of all cores that others took of the rest.
    """
    seconds, our_seconds = seconds_of(runs), seconds_of(ours)
    low, median, high = np.percentile(seconds, [10, 50, 90])
    shares = [each for run in runs for each, counts in zip(run["others"], kept(run)) if counts and each is not None]
    return {
        "side": name,
        "seconds": round(float(median), 3),
        "p10": round(float(low), 3),
        "p90": round(float(high), 3),
        "steps": len(seconds),
        "disturbed_steps": sum(len(run["seconds"]) for run in runs) - len(seconds),
        "other_load": round(float(np.mean(shares)), 3) if shares else None,
        "peak_gib": round(peak_of(runs) / 2**30, 2),
        "time_ratio": round(time_ratio(ours, runs, alternate), 3),
        "ratio_of_medians": round(float(np.median(our_seconds) / median), 3),
        "memory_ratio": round(peak_of(ours) / peak_of(runs), 3),
        "peak_since": runs[0]["since"],
        "parameters": runs[0]["about"]["parameters"],
        "loss": round(runs[0]["loss"], 5),
        "compile_seconds": round(runs[0]["about"].get("compile_seconds", 0.0), 1),
        "first_step_seconds": round(runs[0]["first"], 1),
    }
