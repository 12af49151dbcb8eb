"""Exams on disk, from their arrival to their deletion: what was acknowledged does not end with the process.

SPOOL/               0700, as every folder in it
  key                32 random bytes; ids and names are hashes under it, and say nothing of whose exam it is
  lock               held by the process that serves
  arriving/          what is being received; emptied at each start
  open/ID/           a study whose instances still arrive by DICOM
  received/ID/       waits to be scored
  scoring/ID/        is being scored; a start puts it back into received/
  done/ID/           scored; came it by DICOM and is there a destination, it waits to be sent
  sent/ID/           scored and sent
  failed/ID/         given up; exam.json says why
      exam.json      a Record
      files/         the exam's files
      result/        what delivery wrote, and result.json

A folder changes its state by one rename, after all in it is on the disk. ID of an upload is a hash of its files, of a
study that of its UID and "-VERSION": instances that come when it is being scored or was scored make the next version,
with the files of the one before.
"""

import contextlib
import dataclasses
import hashlib
import hmac
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from mammoclip_jax.files import write_text

ARRIVING = "arriving"
OPEN, RECEIVED, SCORING, DONE, SENT, FAILED = STATES = ("open", "received", "scoring", "done", "sent", "failed")
QUEUED, FINISHED = (OPEN, RECEIVED, SCORING), (DONE, SENT, FAILED)
HTTP, DICOM = "http", "dicom"
ATTEMPTS = 3  # of scoring an exam in which the process ended each time
RECORD, FILES, RESULT, RESULT_JSON = "exam.json", "files", "result", "result.json"
_ID = re.compile(r"[0-9a-f]{32}(-[0-9]{1,9})?")


class Full(Exception):
    """As many exams wait as may."""


class NoRoom(Exception):
    """The disk has less room than one more exam may need."""


@dataclasses.dataclass
class Record:
    """What is known of an exam beside its files; times are seconds since 1970."""

    id: str
    source: str  # HTTP or DICOM
    received: float  # when its last file came
    version: int = 1
    attempts: int = 0  # of scoring
    finished: float = 0.0
    seconds: float = 0.0  # that scoring took
    sends: int = 0  # that failed
    not_before: float = 0.0  # when it may be sent again
    reason: str = ""  # of a failed one
    timed_out: bool = False


class Spool:
    """The exams in a folder. One process at a time may use it (`server` holds its lock); its threads may all.

    Args:
        root: made if absent.
        bound: exams that may wait or be scored at a time.
        reserve: bytes that must be free for another exam to be taken.
    """

    def __init__(self, root: Path | str, bound: int, reserve: int = 0):
        self.root, self.bound, self.reserve = Path(root), bound, reserve
        self._lock = threading.RLock()
        self.changed = threading.Condition(self._lock)  # an exam waits to be scored, or to be sent
        self.root.mkdir(parents=True, exist_ok=True)
        os.chmod(self.root, 0o700)
        shutil.rmtree(self.root / ARRIVING, ignore_errors=True)
        for name in (ARRIVING, *STATES):
            (self.root / name).mkdir(mode=0o700, exist_ok=True)
        self._key = _key(self.root / "key")
        self._put_back_all()
        _sync(self.root)

    # Arrival

    @contextlib.contextmanager
    def arrival(self) -> Iterator[Path]:
        """A new folder with an empty `files/`, for `add_upload`; what is left of it when the block ends is removed."""
        folder = self.root / ARRIVING / secrets.token_hex(16)
        folder.mkdir(mode=0o700)
        (folder / FILES).mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def check(self) -> None:
        """Whether there is place for one more exam.

        Raises:
            Full, NoRoom.
        """
        if shutil.disk_usage(self.root).free < self.reserve:
            raise NoRoom
        if sum(1 for state in QUEUED for _ in self._folders(state)) >= self.bound:
            raise Full

    def add_upload(self, folder: Path) -> tuple[Record, str, bool]:
        """Takes a folder of `arrival`, whose files are on the disk: its record, its state, and whether it is new.

        The same files once more are the exam that is there; one that failed is then tried again.

        Raises:
            Full, NoRoom.
        """
        digests = sorted(_digest(path) for path in (folder / FILES).iterdir())
        record = Record(self.hashed("upload", *digests), HTTP, time.time())
        with self._lock:
            there = self.find(record.id)
            if there and there[0] == FAILED:
                self._again(record.id)
                return *self._found(record.id), False
            if there:
                return there[1], there[0], False
            self.check()
            _write(folder, record)
            _sync(folder / FILES)
            os.rename(folder, self.root / RECEIVED / record.id)
            _sync(self.root / RECEIVED)
            self.changed.notify_all()
        return record, RECEIVED, True

    def add_instance(self, path: Path, study: str, instance: str) -> tuple[Record, bool]:
        """Takes a file in the spool's file system, which is gone then: on the disk when this returns.

        Args:
            study, instance: Study and SOP Instance UID.

        Returns:
            The exam's record, and whether the instance is new to it. The same instance once more changes nothing, but
            that an exam that failed is tried again.

        Raises:
            Full, NoRoom.
        """
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        base, name = self.hashed("study", study), f"{self.hashed('instance', instance)}.dcm"
        with self._lock:
            state, record = self._newest(base)
            if record and (self.root / state / record.id / FILES / name).exists():
                path.unlink()
                if state == FAILED:
                    self._again(record.id)
                return record, False
            if state == RECEIVED:
                self._move(record.id, RECEIVED, OPEN)
            elif state != OPEN:
                self.check()
                record = self._next(base, state, record)
            files = self.root / OPEN / record.id / FILES
            os.replace(path, files / name)
            os.utime(files)  # what `close_quiet` looks at, whatever the file system says of renames
            _sync(files)
        return record, True

    def _newest(self, base: str) -> tuple[str, Record | None]:
        for states in ((OPEN,), STATES):  # an open one is the newest
            found = [
                (int(folder.name.partition("-")[2]), state)
                for state in states
                for folder in self._folders(state)
                if folder.name.startswith(f"{base}-")
            ]
            if found:
                version, state = max(found)
                return state, _read(self.root / state / f"{base}-{version}")
        return "", None

    def _next(self, base: str, state: str, before: Record | None) -> Record:
        """Opens the version after `before`, with its files."""
        version = before.version + 1 if before else 1
        record = Record(f"{base}-{version}", DICOM, time.time(), version)
        with self.arrival() as folder:
            for path in (self.root / state / before.id / FILES).iterdir() if before else ():
                os.link(path, folder / FILES / path.name)
            _sync(folder / FILES)
            _write(folder, record)
            os.rename(folder, self.root / OPEN / record.id)
        _sync(self.root / OPEN)
        return record

    def close_quiet(self, seconds: float) -> list[Record]:
        """Gives the open exams to which nothing came for so many seconds to be scored."""
        closed = []
        with self._lock:
            for folder in self._folders(OPEN):
                if time.time() - (came := (folder / FILES).stat().st_mtime) >= seconds:
                    closed.append(self._update(folder, received=came))
                    self._move(folder.name, OPEN, RECEIVED)
            if closed:
                self.changed.notify_all()
        return closed

    # Scoring

    def take(self, timeout: float) -> Record | None:
        """The exam that waits longest, from now on being scored; None if none came within `timeout` seconds.

        Who asks scores no other at the moment.
        """
        with self._lock:
            self._put_back_all()  # where a full disk kept the one before from being finished
            if not (waiting := self._folders(RECEIVED)):
                self.changed.wait(timeout)
                waiting = self._folders(RECEIVED)
            if not waiting:
                return None
            folder = min(waiting, key=lambda folder: _read(folder).received)
            record = self._update(folder, attempts=_read(folder).attempts + 1)
            self._move(record.id, RECEIVED, SCORING)
            return record

    def files(self, record: Record) -> Path:
        """Folder of the files of an exam that is being scored."""
        return self.root / SCORING / record.id / FILES

    def finish(self, record: Record, out: Path, seconds: float) -> Record:
        """`out`, a folder in the spool's file system, becomes the result of an exam that was being scored."""
        for path in sorted(out.rglob("*"), reverse=True):
            _sync(path)
        _sync(out)
        with self._lock:
            folder = self.root / SCORING / record.id
            shutil.rmtree(folder / RESULT, ignore_errors=True)
            os.rename(out, folder / RESULT)
            record = self._update(folder, finished=time.time(), seconds=seconds, reason="", timed_out=False)
            self._move(record.id, SCORING, DONE)
            self.changed.notify_all()
        return record

    def _put_back_all(self) -> None:
        for folder in self._folders(SCORING):
            if _read(folder).attempts < ATTEMPTS:
                self._move(folder.name, SCORING, RECEIVED)
            else:
                self.fail(folder.name, f"scoring it ended the process {ATTEMPTS} times")

    def put_back(self, record: Record) -> None:
        """An exam that was being scored waits again, and this time does not count as an attempt."""
        with self._lock:
            self._update(self.root / SCORING / record.id, attempts=record.attempts - 1)
            self._move(record.id, SCORING, RECEIVED)

    def fail(self, id: str, reason: str, timed_out: bool = False) -> None:
        """Gives an exam up that is being scored, or could not be sent. `reason` names nobody."""
        with self._lock:
            state, _ = self.find(id)
            self._update(self.root / state / id, finished=time.time(), reason=reason, timed_out=timed_out)
            self._move(id, state, FAILED)

    # What was scored

    def find(self, id: str) -> tuple[str, Record] | None:
        """State and record of an exam."""
        if not _ID.fullmatch(id):
            return None
        with self._lock:
            state = next((state for state in STATES if (self.root / state / id).is_dir()), None)
            return state and (state, _read(self.root / state / id))

    def results(self, id: str) -> Path | None:
        """Folder of an exam's results, if it has any."""
        found = self.find(id)
        folder = self.root / found[0] / id / RESULT if found else None
        return folder if folder and folder.is_dir() else None

    def to_send(self) -> Record | None:
        """The exam that came by DICOM, was scored and may be sent now; the one that waits longest."""
        with self._lock:
            waiting = [_read(folder) for folder in self._folders(DONE) if "-" in folder.name]
        ready = [record for record in waiting if record.not_before <= time.time()]
        return min(ready, key=lambda record: record.finished, default=None)

    def sent(self, record: Record) -> None:
        """An exam that was scored has been sent."""
        with self._lock:
            self._move(record.id, DONE, SENT)

    def not_sent(self, record: Record, wait: float) -> None:
        """Sending failed once more; it may be tried again after `wait` seconds."""
        with self._lock:
            self._update(self.root / DONE / record.id, sends=record.sends + 1, not_before=time.time() + wait)

    def delete(self, id: str) -> bool:
        """Removes an exam that is finished; whether there was one."""
        with self._lock:
            found = self.find(id)
            if not found or found[0] not in FINISHED:
                return False
            gone = self.root / ARRIVING / secrets.token_hex(16)
            os.rename(self.root / found[0] / id, gone)
            _sync(self.root / found[0])
        shutil.rmtree(gone)
        return True

    def expire(self, seconds: float, unsent: bool) -> int:
        """Removes what was finished so long ago; with `unsent` not what waits to be sent. Returns how many exams."""
        with self._lock:
            old = [
                folder.name
                for state in FINISHED
                for folder in self._folders(state)
                if not (unsent and state == DONE and "-" in folder.name)
                and time.time() - _read(folder).finished >= seconds
            ]
        return sum(self.delete(id) for id in old)

    def counts(self) -> dict[str, int]:
        """Exams in each state."""
        return {state: len(self._folders(state)) for state in STATES}

    # Below

    def hashed(self, *words: str) -> str:
        """32 hexadecimal digits that stand for the words, and do not give them away."""
        return hmac.new(self._key, "\0".join(words).encode(), hashlib.sha256).hexdigest()[:32]

    def _folders(self, state: str) -> list[Path]:
        return [self.root / state / name for name in os.listdir(self.root / state)]

    def _found(self, id: str) -> tuple[Record, str]:
        state, record = self.find(id)
        return record, state

    def _again(self, id: str) -> None:
        """A failed exam waits once more."""
        self.check()
        self._update(self.root / FAILED / id, attempts=0, sends=0, not_before=0.0, reason="", timed_out=False)
        self._move(id, FAILED, RECEIVED)
        self.changed.notify_all()

    def _update(self, folder: Path, **values) -> Record:
        record = dataclasses.replace(_read(folder), **values)
        _write(folder, record)
        return record

    def _move(self, id: str, before: str, after: str) -> None:
        os.rename(self.root / before / id, self.root / after / id)
        _sync(self.root / after)
        _sync(self.root / before)


def _key(path: Path) -> bytes:
    if not path.exists():
        write_text(path, secrets.token_hex(32))
        os.chmod(path, 0o600)
    return bytes.fromhex(path.read_text())


def _read(folder: Path) -> Record:
    return Record(**json.loads((folder / RECORD).read_text()))


def _write(folder: Path, record: Record) -> None:
    write_text(folder / RECORD, json.dumps(dataclasses.asdict(record)))
    _sync(folder)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
