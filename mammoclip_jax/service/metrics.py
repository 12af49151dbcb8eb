"""What the service counts, in the text format of Prometheus; no label says which exam, or whose."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)


class Metrics:
    """The counters of a service.

    Args:
        counts: {state: exams in the spool}, asked for at each reading.
        worker: process id of the model's process, or None.
        ready: whether exams are taken.
    """

    def __init__(
        self, counts: Callable[[], Mapping[str, int]], worker: Callable[[], int | None], ready: Callable[[], bool]
    ):
        self.registry = CollectorRegistry()
        self._counts, self._ready = counts, ready
        self.received = self._counter("exams_received", "Exams that were acknowledged.", "source")
        self.instances = self._counter("dicom_instances", "Answers to C-STORE.", "outcome")
        self.refused = self._counter("refused", "Requests and uploads that were refused.", "status")
        self.finished = self._counter("exams_finished", "Exams that were scored, or given up.", "outcome")
        self.sends = self._counter("reports_sent", "Tries to send an exam's report.", "outcome")
        self.restarts = self._counter("model_restarts", "How often the model's process had to be started again.")
        self.scoring = self._histogram("scoring_seconds", "What scoring an exam took.")
        self.waited = self._histogram("exam_seconds", "From an exam's last file to its scores.")
        self.registry.register(self)
        ProcessCollector(registry=self.registry)
        ProcessCollector("model", pid=lambda: worker() or "none", registry=self.registry)

    def collect(self):
        """Of the registry: what is there now."""
        exams = GaugeMetricFamily("mammoclip_exams", "Exams in the spool.", labels=["state"])
        for state, number in self._counts().items():
            exams.add_metric([state], number)
        yield exams
        yield GaugeMetricFamily("mammoclip_ready", "Whether exams are taken.", value=self._ready())

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)

    def _counter(self, name: str, said: str, *labels: str) -> Counter:
        return Counter(f"mammoclip_{name}", said, labels, registry=self.registry)

    def _histogram(self, name: str, said: str) -> Histogram:
        return Histogram(f"mammoclip_{name}", said, buckets=_SECONDS, registry=self.registry)
