"""All parts of the service together, from start to stop."""

import contextlib
import dataclasses
import functools
import logging
import os
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pydicom
import uvicorn
from starlette.concurrency import run_in_threadpool

from mammoclip_jax.errors import UserError
from mammoclip_jax.locks import locked
from mammoclip_jax.service import spool as spools
from mammoclip_jax.service import worker as workers
from mammoclip_jax.service.app import app
from mammoclip_jax.service.listener import Listener
from mammoclip_jax.service.metrics import Metrics
from mammoclip_jax.service.sender import Destination, NotSent, send, wait_after
from mammoclip_jax.service.worker import told

LOOPBACK = ("127.0.0.1", "::1", "localhost")
LOOK_EVERY = 0.5  # seconds: whether a study is quiet, a report may be sent, the service shall stop
EXPIRE_EVERY = 60.0  # seconds
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    """What a service may be told; times in seconds, sizes in bytes."""

    spool: Path
    host: str = "127.0.0.1"
    port: int = 8080
    hosts: Sequence[str] = ()  # further names that the header Host may have
    token: str = ""
    queue: int = 64
    limit: int = 2**30  # bytes of an exam's files
    seconds: float = 300.0  # that scoring an exam may take
    grace: float = 20.0  # seconds that the exam which is being scored has at a stop
    keep: float = 7 * 86400.0  # seconds that an exam stays after it was finished
    delete_sent: bool = False
    dicom_port: int = 0  # 0: no DICOM
    title: str = "MAMMOCLIP"
    peers: Sequence[str] = ()
    quiet: float = 30.0  # seconds without a new instance after which a study is whole
    send_to: Destination | None = None
    retries: int = 500  # of sending
    overlays: bool = False  # send these as well

    def check(self) -> None:
        """Whether it is safe.

        Raises:
            UserError: it listens to the network, and asks nobody who he is.
        """
        if self.host in LOOPBACK:
            return
        if not self.token:
            raise UserError(f"--host={self.host} is not this machine alone: give a token by --token_file=FILE.")
        if self.dicom_port and not self.peers:
            raise UserError(
                f"--host={self.host} is not this machine alone: name who may send by --peers=TITLE@ADDRESS."
            )


class Service:
    """A service with its spool, from `run` until `stop`.

    Args:
        make, arguments: see `worker.Worker`.
    """

    def __init__(self, options: Options, make: Callable, arguments: tuple = ()):
        options.check()
        self.options, self.ready = options, False
        self._failure: Exception | None = None
        self._stop = threading.Event()
        self._worker = workers.Worker(make, arguments, self._stop, options.grace)
        self._listener: Listener | None = None
        self.spool: spools.Spool
        self.metrics: Metrics

    def run(self, started: Callable[[str], None] = print) -> None:
        """Serves until SIGTERM or SIGINT, or `stop`; what is then being scored is finished, or waits for the next start.

        Args:
            started: called with the address, once it listens; exams are taken when the model is there as well.

        Raises:
            UserError: the port or the spool is in use, or the model cannot be opened.
        """
        options = self.options
        options.spool.mkdir(parents=True, exist_ok=True)
        with (
            _private(options.spool),
            locked(options.spool / "lock", f"serving {options.spool}", "give another --spool"),
            _listening(options) as own,
        ):
            self.spool = spools.Spool(options.spool, options.queue, 2 * options.limit)
            self.metrics = Metrics(self.spool.counts, lambda: self._worker.pid, lambda: self.ready)
            hosts = [*LOOPBACK, options.host, *options.hosts]
            self._http = _Http(
                uvicorn.Config(
                    app(self, hosts=hosts, token=options.token, limit=options.limit),
                    log_config=None,
                    access_log=False,
                    server_header=False,
                    timeout_graceful_shutdown=5,
                    limit_concurrency=64,
                )
            )
            previous = _on_signals(self.stop)
            threads = [threading.Thread(target=work) for work in (self._score, self._send, self._tidy)]
            for thread in threads:
                thread.start()
            port = own.getsockname()[1]
            started(f"http://{f'[{options.host}]' if ':' in options.host else options.host}:{port}")
            try:
                self._http.run(sockets=[own])
            finally:
                self.stop()
                if self._listener:
                    self._listener.stop()
                for thread in threads:
                    thread.join()
                self._worker.end(patience=5.0)
                for number, handler in previous.items():
                    signal.signal(number, handler)
        if self._failure:
            raise self._failure

    def stop(self, *_) -> None:
        """Ends `run`, from any thread or a signal's handler."""
        self.ready = False
        self._stop.set()
        self._http.should_exit = True

    async def in_thread(self, function: Callable, *arguments):
        """What waits for a disk, beside the loop that serves."""
        return await run_in_threadpool(function, *arguments)

    def log_received(self, record: spools.Record, files: int) -> None:
        """Counts an exam that came by HTTP."""
        self.metrics.received.labels(record.source).inc()
        _log.info("exam %s received: %d files", record.id, files)

    # Threads

    def _score(self) -> None:
        try:
            self._start_worker()
        except workers.Died:
            if not self._stop.is_set():
                self._failure = UserError("the model's process ended while it loaded; see above.")
            return self.stop()
        except Exception as error:  # noqa: BLE001  `run` raises it
            self._failure = error
            return self.stop()
        while not self._stop.is_set():
            self._guarded(self._score_next)

    def _start_worker(self) -> None:
        self._worker.start()
        if not self._listener and self.options.dicom_port:
            options = self.options
            self._listener = Listener(
                self.spool, (options.host, options.dicom_port), options.title, options.peers, options.limit, self._told
            )
            _log.info("DICOM: %s at %s:%d", options.title, options.host, options.dicom_port)
        self.ready = not self._stop.is_set()
        _log.info("ready")

    def _score_next(self) -> None:
        if not self._worker.alive:
            self.metrics.restarts.inc()
            try:
                self._worker.start()
            except Exception:
                self.ready = False  # until it starts again
                raise
            self.ready = not self._stop.is_set()
        record = self.spool.take(LOOK_EVERY)
        if record is None:
            return
        begin = time.monotonic()
        with self.spool.arrival() as folder:
            try:
                self._worker.score(self.spool.files(record), folder / spools.RESULT, self.options.seconds)
            except workers.Failed as failed:
                self.spool.fail(record.id, str(failed), isinstance(failed, workers.TimedOut))
                self.metrics.finished.labels("failed").inc()
                _log.warning("exam %s failed: %s", record.id, failed)
                return
            except workers.Died:
                self._died(record)
                return
            record = self.spool.finish(record, folder / spools.RESULT, time.monotonic() - begin)
        self.metrics.finished.labels("scored").inc()
        self.metrics.scoring.observe(record.seconds)
        self.metrics.waited.observe(record.finished - record.received)
        _log.info("exam %s scored in %.1f s", record.id, record.seconds)

    def _died(self, record: spools.Record) -> None:
        if self._stop.is_set():
            self.spool.put_back(record)
            _log.info("exam %s waits for the next start", record.id)
            return
        _log.warning("exam %s: the model's process ended %d times", record.id, record.attempts)
        if record.attempts >= spools.ATTEMPTS:
            self.metrics.finished.labels("failed").inc()
        # `take` puts it back, or gives it up.

    def _send(self) -> None:
        while self.options.send_to and not self._stop.wait(LOOK_EVERY):
            self._guarded(self._send_next)

    def _send_next(self) -> None:
        record = self.spool.to_send()
        if record is None:
            return
        results = self.spool.results(record.id)
        paths = sorted(results.glob("*/report.dcm"))
        if self.options.overlays:
            paths += sorted(results.glob("*/overlay-*.dcm"))
        if not paths:
            self.spool.fail(record.id, "it was scored, and has no report that could be sent")
            return
        try:
            send(paths, self.options.send_to, self.options.title)
        except Exception as error:  # noqa: BLE001  one report that cannot be read does not hold up the others
            self._not_sent(record, str(error) if isinstance(error, NotSent) else told(error))
            return
        self.metrics.sends.labels("sent").inc()
        self.spool.sent(record)
        _log.info("exam %s sent", record.id)
        if self.options.delete_sent:
            self.spool.delete(record.id)

    def _not_sent(self, record: spools.Record, reason: str) -> None:
        self.metrics.sends.labels("failed").inc()
        if record.sends >= self.options.retries:
            self.spool.fail(record.id, f"it was scored, and its report could not be sent: {reason}")
            _log.error("exam %s: not sent, given up: %s", record.id, reason)
            return
        wait = wait_after(record.sends + 1)
        self.spool.not_sent(record, wait)
        _log.warning("exam %s: not sent, again in %g s: %s", record.id, wait, reason)

    def _tidy(self) -> None:
        last = 0.0
        while not self._stop.wait(LOOK_EVERY):
            self._guarded(self._close_quiet)
            if time.monotonic() - last >= EXPIRE_EVERY:
                last = time.monotonic()
                self._guarded(functools.partial(self.spool.expire, self.options.keep, bool(self.options.send_to)))

    def _close_quiet(self) -> None:
        for record in self.spool.close_quiet(self.options.quiet):
            self.metrics.received.labels(record.source).inc()
            _log.info("exam %s received", record.id)

    def _told(self, outcome: str) -> None:
        self.metrics.instances.labels(outcome).inc()

    def _guarded(self, work: Callable[[], object]) -> None:
        """A full disk, a model that does not start again, or a fault of ours ends no thread."""
        try:
            work()
        except Exception as error:  # noqa: BLE001
            if not self._stop.is_set():
                _log.error("%s; goes on in 5 s", told(error))
                self._stop.wait(5)


class _Http(uvicorn.Server):
    """A server that leaves signals to `Service`, which has more to end."""

    def capture_signals(self):
        return contextlib.nullcontext()


def _listening(options: Options) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        raise UserError(
            f"--host={options.host} --port={options.port}: {error.strerror}. Is another service there? Name another port."
        ) from error


def _on_signals(stop: Callable) -> dict:
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}


@contextlib.contextmanager
def _private(spool: Path) -> Iterator[None]:
    """While the block runs, the process writes what only its user may read, uploads into the spool alone, and no
    complaint of pydicom, pynetdicom or uvicorn, which quote headers."""
    settings, umask, folder = pydicom.config.settings, os.umask(0o077), tempfile.tempdir
    modes = settings.reading_validation_mode, settings.writing_validation_mode
    settings.reading_validation_mode = settings.writing_validation_mode = pydicom.config.IGNORE
    tempfile.tempdir = str(spool / spools.ARRIVING)
    loggers = [logging.getLogger(name) for name in ("pydicom", "pynetdicom", "uvicorn")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="py(net)?dicom")
            yield
    finally:
        os.umask(umask)
        tempfile.tempdir = folder
        settings.reading_validation_mode, settings.writing_validation_mode = modes
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
