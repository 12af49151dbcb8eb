"""The HTTP side of the service, as an ASGI application.

POST   /exams                   an exam's files -> 202, its id, and where to ask for it; 200 if it was there already
GET    /exams/ID                its state, and its scores when it has been scored
GET    /exams/ID/report.dcm     its DICOM Structured Report (?exam=1: of the second, where an upload holds several)
GET    /exams/ID/exam.html      the page for people; likewise
DELETE /exams/ID                removes one that is finished
GET    /health/live, /health/ready, /health; /metrics

400 and 415: not an upload; 401: no token; 403: sent by another site's page; 404; 408: sent too slowly; 409: not
finished; 413: too large; 422: it cannot be scored; 429: the queue is full; 503: the model is being loaded; 504: scoring
took longer than it may; 507: the disk is full.
"""

import asyncio
import datetime
import errno
import hmac
import json
import logging
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mammoclip_jax.service import metrics, spool, uploads
from mammoclip_jax.service.worker import told

RETRY_AFTER = "10"  # seconds
UPLOAD_SECONDS = 600  # that sending an exam may take
_OVERHEAD = 2**20  # bytes of a request beside its files
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_KINDS = {"report.dcm": "application/dicom", "exam.html": "text/html; charset=utf-8"}
_PAGE = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; sandbox allow-scripts"
)


def app(service, *, hosts: Sequence[str], token: str, limit: int) -> Starlette:
    """The application of a `server.Service`.

    Args:
        hosts: what the header Host may name.
        token: what Authorization: Bearer must have, but for /health; "" asks for none.
        limit: bytes of an upload's files.
    """
    application = Starlette(
        routes=[
            Route("/exams", _post, methods=["POST"]),
            Route("/exams/{id}", _get, methods=["GET"]),
            Route("/exams/{id}", _delete, methods=["DELETE"]),
            Route("/exams/{id}/{name}", _file, methods=["GET"]),
            Route("/health", _ready),
            Route("/health/live", _live),
            Route("/health/ready", _ready),
            Route("/metrics", _metrics),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
            Middleware(_Guard, hosts=hosts, token=token),
            Middleware(RequestBodyLimitMiddleware, max_body_size=limit + _OVERHEAD),
        ],
        exception_handlers={
            HTTPException: _error,
            uploads.Refused: _refused,
            spool.Full: _full,
            spool.NoRoom: _no_room,
            OSError: _disk,
            Exception: _fault,
        },
    )
    application.state.service, application.state.limit = service, limit
    return application


class _Guard:
    """Lets pass who has the token, and no page of another site: a browser says where a request comes from."""

    def __init__(self, inner, hosts: Sequence[str], token: str):
        self.inner, self.hosts, self.token = inner, hosts, token

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.inner(scope, receive, send)
        request = Request(scope)
        service = scope["app"].state.service
        if "origin" in request.headers and not _same_site(request.headers["origin"], request.headers.get("host", "")):
            return await _answer(service, 403, "a page of another site may not ask")(scope, receive, send)
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        right = kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token.encode())
        if self.token and not right and not scope["path"].startswith("/health"):
            more = {"WWW-Authenticate": "Bearer"}
            return await _answer(service, 401, "send the token: Authorization: Bearer TOKEN", more)(
                scope, receive, send
            )
        return await self.inner(scope, receive, send)


def _same_site(origin: str, host: str) -> bool:
    return origin.partition("://")[2] == host


async def _post(request: Request) -> Response:
    service = request.app.state.service
    if not service.ready:
        return _answer(service, 503, "the model is being loaded", {"Retry-After": RETRY_AFTER})
    service.spool.check()
    with service.spool.arrival() as folder:
        try:
            async with asyncio.timeout(UPLOAD_SECONDS):
                names = await uploads.receive(request, folder / spool.FILES, request.app.state.limit)
        except TimeoutError:
            return _answer(service, 408, f"sending it took longer than {UPLOAD_SECONDS} s")
        record, state, new = await service.in_thread(service.spool.add_upload, folder)
    if new:
        service.log_received(record, len(names))
    place = f"/exams/{record.id}"
    return JSONResponse(
        _described(state, record) | {"files": names},
        200 if state in spool.FINISHED else 202,
        _HEADERS | {"Location": place},
    )


async def _get(request: Request) -> Response:
    service = request.app.state.service
    state, record = _found(request)
    said = _described(state, record)
    folder = service.spool.results(record.id)
    if folder and state in (spool.DONE, spool.SENT):
        said["result"] = json.loads((folder / spool.RESULT_JSON).read_bytes())
        said["reports"] = [
            f"/exams/{record.id}/report.dcm?exam={number}" for number in range(len(_all(folder, "report.dcm")))
        ]
    return JSONResponse(said, 200, _HEADERS)


async def _file(request: Request) -> Response:
    service = request.app.state.service
    state, record = _found(request)
    name, number = request.path_params["name"], request.query_params.get("exam", "0")
    if name not in _KINDS or not number.isdigit():
        raise HTTPException(404, "there is no such file")
    if state in spool.QUEUED:
        return _answer(service, 409, "it has not been scored yet", {"Retry-After": RETRY_AFTER})
    folder = service.spool.results(record.id)
    if not folder:
        return _answer(service, 504 if record.timed_out else 422, f"it was not scored: {record.reason}")
    paths = _all(folder, name)[int(number[:6]) :][:1]
    if not paths:
        raise HTTPException(404, "there is no such file")
    more = {"Content-Security-Policy": _PAGE} if name.endswith(".html") else {}
    return Response(paths[0].read_bytes(), 200, _HEADERS | more, media_type=_KINDS[name])


def _all(folder, name: str) -> list:
    return sorted(folder.glob(f"*/{name}"))


async def _delete(request: Request) -> Response:
    service = request.app.state.service
    _, record = _found(request)
    if not service.spool.delete(record.id):
        return _answer(service, 409, "it is being scored, or waits for it")
    return Response(status_code=204)


def _found(request: Request) -> tuple[str, spool.Record]:
    found = request.app.state.service.spool.find(request.path_params["id"])
    if not found:
        raise HTTPException(404, "there is no such exam")
    return found


def _described(state: str, record: spool.Record) -> dict:
    said = {
        "id": record.id,
        "state": state,
        "version": record.version,
        "received": _time(record.received),
        "finished": _time(record.finished) if record.finished else None,
        "seconds": round(record.seconds, 3) if record.finished else None,
    }
    if state == spool.FAILED:
        said |= {"reason": record.reason, "timed_out": record.timed_out}
    return said


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


async def _live(request: Request) -> Response:
    return JSONResponse({"live": True}, 200, _HEADERS)


async def _ready(request: Request) -> Response:
    ready = request.app.state.service.ready
    return JSONResponse({"live": True, "ready": ready}, 200 if ready else 503, _HEADERS)


async def _metrics(request: Request) -> Response:
    text = await request.app.state.service.in_thread(request.app.state.service.metrics.text)
    return Response(text, media_type=metrics.CONTENT_TYPE)


def _answer(service, status: int, reason: str, headers: dict | None = None) -> JSONResponse:
    service.metrics.refused.labels(str(status)).inc()
    return JSONResponse({"error": reason}, status, _HEADERS | (headers or {}))


async def _error(request: Request, error: HTTPException) -> Response:
    return _answer(request.app.state.service, error.status_code, str(error.detail), dict(error.headers or {}))


async def _refused(request: Request, error: uploads.Refused) -> Response:
    return _answer(request.app.state.service, error.status, error.reason)


async def _full(request: Request, error: spool.Full) -> Response:
    return _answer(
        request.app.state.service, 429, "the queue is full: send it again later", {"Retry-After": RETRY_AFTER}
    )


async def _disk(request: Request, error: OSError) -> Response:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return await _no_room(request, error)
    if isinstance(error, FileNotFoundError):  # it has just been removed
        return _answer(request.app.state.service, 404, "there is no such exam")
    return await _fault(request, error)


async def _fault(request: Request, error: Exception) -> Response:
    logging.error("a request failed: %s", told(error))
    return _answer(request.app.state.service, 500, "a fault of the service; its log says where")


async def _no_room(request: Request, error: Exception) -> Response:
    return _answer(request.app.state.service, 507, "the disk of the service is full")
