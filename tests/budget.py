"""What the tests may cost: the longest files first, the slowest tests at the end, and which must be marked.

python tests/budget.py 2 quick [parity] [slow]      how long these take in two processes, by tests/seconds.csv
bash launch/test.sh [...] --write-seconds           writes that table anew, for the tests that ran
"""

import csv
import math
import os
import sys
from collections import Counter
from pathlib import Path

TABLE = Path(__file__).parent / "seconds.csv"
KINDS = ("quick", "parity", "slow")
SLOW = 20  # seconds from which on a test must be marked slow


def kind(marks) -> str:
    """Which column of the table a test counts in."""
    return "slow" if "slow" in marks else "parity" if "parity" in marks else "quick"


def seconds() -> dict[str, dict[str, float]]:
    """{test file: {kind: seconds}}, as measured on two cores."""
    with open(TABLE, newline="") as file:
        return {row.pop("file"): {name: float(value) for name, value in row.items()} for row in csv.DictReader(file)}


def write(took: dict[str, Counter]) -> None:
    """Replaces in the table what was measured, and leaves out files that are gone."""
    root = TABLE.parent.parent
    table = {file: row for file, row in seconds().items() if (root / file).exists()}
    for file, measured in took.items():
        table[file] = dict.fromkeys(KINDS, 0.0) | table.get(file, {}) | measured
    with open(TABLE, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", *KINDS])
        writer.writerows([name, *(f"{row[kind_]:.1f}" for kind_ in KINDS)] for name, row in sorted(table.items()))


class Budget:
    """A pytest plugin, in each process of pytest-xdist; the first of them sees the reports of all."""

    def __init__(self, config):
        self.config, self.took, self.marks, self.unmarked = config, Counter(), {}, set()

    def pytest_collection_modifyitems(self, items):
        """Whole files, the longest first and new ones before them, so that all processes end together."""
        table, kinds = seconds(), {}
        for item in items:
            kinds.setdefault(item.location[0], set()).add(kind(item.keywords))
        cost = {
            file: sum(table[file][kind_] for kind_ in its) if file in table else math.inf for file, its in kinds.items()
        }
        items.sort(key=lambda item: (-cost[item.location[0]], item.location[0]))  # stable: within a file as written

    def pytest_runtest_logreport(self, report):
        self.took[report.nodeid] += report.duration
        self.marks[report.nodeid] = set(report.keywords) & set(KINDS)
        if report.skipped and "could not import 'torch" in str(report.longrepr) and not self.marks[report.nodeid]:
            self.unmarked.add(report.nodeid)

    def limit(self) -> float:
        """SLOW, and more in proportion where this machine is slower, or busier, than that of the table."""
        table = seconds()
        ran = {(test.partition("::")[0], kind(self.marks[test])) for test in self.took}
        expected = sum(table[file][kind_] for file, kind_ in ran if file in table)
        return SLOW * max(1.0, sum(self.took.values()) / max(expected, 1.0))

    def faults(self) -> list[str]:
        limit = self.limit()
        slow = [
            f"{test} took {took:.0f} s: mark it slow, or make it smaller"
            for test, took in self.took.items()
            if took > limit and "slow" not in self.marks[test]
        ]
        return slow + [f"{test} was skipped without torch: mark it parity" for test in sorted(self.unmarked)]

    def pytest_sessionfinish(self, session):
        if self.config.option.write_seconds and not hasattr(self.config, "workerinput"):
            files = {}
            for test, took in self.took.items():
                files.setdefault(test.partition("::")[0], Counter())[kind(self.marks[test])] += took
            write(files)
        # Elsewhere the machine may be slower or busy: there it is only said.
        if os.environ.get("CI") and session.exitstatus == 0 and self.faults():
            session.exitstatus = 1

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("slowest tests")
        for test, took in self.took.most_common(10):
            terminalreporter.line(f"{took:6.1f} s  {test}")
        terminalreporter.line(f"{sum(self.took.values()):6.0f} s  all {len(self.took)}, one after another")
        for fault in self.faults():
            terminalreporter.line(f"{'error' if os.environ.get('CI') else 'warning'}: {fault}")


if __name__ == "__main__":
    processes, *wanted = sys.argv[1:]
    total = sum(row[kind_] for row in seconds().values() for kind_ in wanted)
    print(f"the tests take about {math.ceil(total / 60 / int(processes))} minutes in {processes} processes")
