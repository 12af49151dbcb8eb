"""What an HTTP request brings, one file, several or a ZIP archive of them, -> numbered files on the disk.

No name that came with a file is used or kept, so that none leads out of the folder or says whose the exam is; what
follows its last dot is kept where it says DICOM, since predict then lists the file as damaged, and not as another file.
"""

import os
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request

from mammoclip_jax.data.pixels.dicom import SUFFIXES

MAX_FILES = 512
MAX_DIRECTORY = 2**20  # bytes of an archive's directory, which is read into memory: of some 10,000 names
_ZIP = ("application/zip", "application/x-zip-compressed")
_DICOM = ("application/dicom", "application/octet-stream")
_END, _END_SIZE = b"PK\x05\x06", 22  # of an archive, with its size; see APPNOTE.TXT 4.3.16
_BEGINS = (b"PK\x03\x04", _END)  # an archive, an empty one
_LOCATOR, _LOCATOR_SIZE = b"PK\x06\x07", 20  # of the end in ZIP64
_MAX_COMMENT = 2**16
_CHUNK = 2**20


class Refused(Exception):
    """An upload that is not taken: status of HTTP and the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status, self.reason = status, reason


async def receive(request: Request, folder: Path, limit: int) -> dict[str, str]:
    """Writes the files of a request into a folder, as 0001.dcm and so on; they are on the disk when it returns.

    Args:
        limit: bytes of all files together, unpacked.

    Returns:
        {name in the folder: name that came}, in the order in which they came.

    Raises:
        Refused: nothing in it, too much, or an archive that is damaged or names a file outside of it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    files = _Files(folder, limit)
    if kind == "multipart/form-data":
        async with request.form(max_files=MAX_FILES, max_fields=MAX_FILES) as form:
            parts = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
            for part in parts:
                await run_in_threadpool(files.add, part.file, part.filename or "")
    elif kind in _ZIP + _DICOM:
        body = folder.parent / "body"
        with open(body, "w+b") as file:
            async for chunk in request.stream():
                file.write(chunk)
            file.seek(0)
            if kind in _ZIP and file.read(4) not in _BEGINS:
                raise Refused(400, "the body is no ZIP archive")
            file.seek(0)
            if body.stat().st_size:
                await run_in_threadpool(files.add, file, "")
        body.unlink()
    else:
        raise Refused(
            415, f"send multipart/form-data, {_ZIP[0]} or {_DICOM[0]}, not {kind[:50] or 'a body of no type'}"
        )
    if not files.names:
        raise Refused(400, "there is no file in the request")
    return files.names


class _Files:
    def __init__(self, folder: Path, limit: int):
        self.folder, self.left = folder, limit
        self.names: dict[str, str] = {}

    def add(self, file: BinaryIO, name: str) -> None:
        """One file that came, or all that an archive holds."""
        if file.read(4) not in _BEGINS:
            file.seek(0)
            self._write(file, name)
            return
        _check_directory(file)
        try:
            with zipfile.ZipFile(file) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
                if len(self.names) + len(entries) > MAX_FILES:
                    raise self._too_many()
                for entry in entries:
                    self._unpack(archive, entry)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
            raise Refused(400, "the archive is damaged, encrypted or packed in another way than by deflate") from error

    def _unpack(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or path.parts and path.parts[0].endswith(":"):
            raise Refused(400, "the archive names a file outside of it")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise NotImplementedError
        if entry.file_size > self.left:
            raise self._too_large()
        with archive.open(entry) as file:
            self._write(file, entry.filename)

    def _write(self, file: BinaryIO, name: str) -> None:
        if len(self.names) >= MAX_FILES:
            raise self._too_many()
        suffix = PurePosixPath(name).suffix.lower()
        own = f"{len(self.names) + 1:04}" + (".dcm" if suffix in SUFFIXES or not name else "")
        with open(self.folder / own, "xb") as target:
            while chunk := file.read(_CHUNK):  # what an archive says of sizes need not be true
                self.left -= len(chunk)
                if self.left < 0:
                    raise self._too_large()
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
        self.names[own] = name

    @staticmethod
    def _too_many() -> Refused:
        return Refused(413, f"an exam may have {MAX_FILES} files")

    @staticmethod
    def _too_large() -> Refused:
        return Refused(413, "the files are larger, unpacked, than an exam may be")


def _check_directory(file: BinaryIO) -> None:
    """Refuses an archive whose directory would take much memory; looks for its end where zipfile does."""
    file.seek(0, os.SEEK_END)
    size = file.tell()
    file.seek(max(size - _END_SIZE - _MAX_COMMENT - _LOCATOR_SIZE, 0))
    tail = file.read()
    at = len(tail) - _END_SIZE
    if not (tail[at : at + 4] == _END and tail[-2:] == b"\0\0"):
        at = tail.rfind(_END)
    if at < 0 or len(tail) - at < _END_SIZE:
        raise Refused(400, "the archive is damaged: it has no end")
    if (
        tail[max(at - _LOCATOR_SIZE, 0) : at][:4] == _LOCATOR
        or struct.unpack_from("<I", tail, at + 12)[0] > MAX_DIRECTORY
    ):
        raise Refused(413, "the archive has too many entries, or is a ZIP64")
    file.seek(0)
