"""The largest batch that fits, with a compiler that is a formula."""

import pytest

from mammoclip_jax.aot.search import Trial, largest


def run(used, *, limit=1000, says=True, **options):
    """(answer, sizes tried)."""
    tried = []

    def trial(size):
        assert size not in tried, "one size, one compilation"
        tried.append(size)
        return Trial(used(size) <= limit, used(size) if says else None, limit)

    return largest(trial, **options), tried


@pytest.mark.parametrize("start", [1, 8, 16, 64])
@pytest.mark.parametrize("fixed,each", [(100, 40), (0, 7), (500, 499), (300, 701), (2000, 1)])
def test_the_answer_fits_and_the_next_size_does_not(start, fixed, each):
    best, tried = run(lambda n: fixed + each * n, start=start)
    assert best == max(0, (1000 - fixed) // each)
    assert len(tried) <= 6 and best + 1 in tried


def test_a_straight_line_needs_four_trials():
    best, tried = run(lambda n: 111 + 37 * n, start=12)
    assert best == 24 and len(tried) <= 4


def test_all_sizes_are_multiples_of_the_step():
    best, tried = run(lambda n: 100 + n, start=70, step=32)
    assert best == 896 and all(size % 32 == 0 for size in tried)


def test_curves_and_silent_compilers_are_bisected():
    for used in (lambda n: 50 + n * n // 9, lambda n: 900 * n / (n + 3), lambda n: 10 + n + 400 * (n > 300)):
        exact = max(n for n in range(1, 4097) if used(n) <= 1000)
        for says in (True, False):
            best, tried = run(used, start=10, says=says)
            assert best == exact and len(tried) <= 24


def test_nothing_fits():
    assert run(lambda n: 5000, start=8)[0] == 0
