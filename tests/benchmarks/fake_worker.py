"""A worker without a model: `python -m fake_worker` with what it shall say; and one that needs no process."""

import time

from mammoclip_jax.benchmarks import worker
from mammoclip_jax.errors import UserError


class FakeWorker:
    """Stands for `worker.Worker`: the specification says how long its steps take and how much memory they need."""

    log: list[str] = []  # of all of them: what was done, in order
    alive = 0

    def __init__(self, module, specification, environment=None):
        self.name, self.wanted, self.environment = module.rpartition(".")[2], specification, environment
        self.about = {"parameters": 7, "images": 2, "devices": 1, "device_kind": "cpu"} | specification.get("about", {})
        self.seconds, self.figures, self.first = [], [], 9.0
        FakeWorker.alive += 1
        self.log.append(f"start {self.name} {FakeWorker.alive}")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        FakeWorker.alive -= 1

    def warm_up(self, steps):
        self.log.append(f"warm {steps}")

    def step(self):
        self.log.append(self.name)
        self.seconds.append(self.wanted["seconds"][len(self.seconds)])
        others = dict(enumerate(self.wanted.get("others", ())))
        self.figures.append({"loss": 1.0, "others": others.get(len(self.figures))} | self.wanted.get("figures", {}))

    def peak(self):
        return {"bytes": self.wanted["bytes"], "since": "reset"}


def make(specification):
    kept = bytearray()

    def step():
        nonlocal kept
        if specification.get("fail"):
            raise UserError("the step cannot be done")
        print("what a library says")
        kept = bytearray(specification.get("bytes", 0))
        for start in range(0, len(kept), 4096):
            kept[start] = 1
        kept = bytearray()
        time.sleep(specification.get("sleep", 0))
        return {"loss": 0.5}

    return {"parameters": 3}, step


if __name__ == "__main__":
    worker.serve(make)
