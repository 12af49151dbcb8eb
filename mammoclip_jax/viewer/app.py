"""The server's addresses. Every answer is JSON, or a line of JSON with arrays behind it; nothing is written anywhere.

/                                       the page; /static/NAME its files
/api/about                              data set, models, what one may filter by, error slices
/api/exams?...                          a part of the list (`_filters`), with scores of one label
/api/exams/ID                           an exam: how its views hang, labels, boxes, reports, scores
/api/exams/ID/map?side=&method=&stage=&label= or &phrase=
/api/exams/ID/said?side=&phrase=        how like a phrase each view is
/api/exams/ID/scores?side=              scores that are not stored
/api/exams/ID/found?side=               detections
/api/images/ID/pixels                   a canvas; /thumbnail a small PNG, as it hangs
/api/near?side=&image= or &phrase=      nearest exams and reports
/api/survey?side=&start=1               how far the survey of the data set is
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import cv2
import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mammoclip_jax.data.store.shards import read
from mammoclip_jax.errors import UserError
from mammoclip_jax.evaluation.result import plain
from mammoclip_jax.provenance import without_paths
from mammoclip_jax.viewer.catalogue import APART, COLUMNS, ORDERS, Catalogue, Filters
from mammoclip_jax.viewer.error_slices import Slice
from mammoclip_jax.viewer.guard import Guard
from mammoclip_jax.viewer.reader import LONGEST
from mammoclip_jax.viewer.scored import WRONG, apart
from mammoclip_jax.viewer.side import Side
from mammoclip_jax.viewer.survey import Near

STATIC = Path(__file__).with_name("static")
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
PAGE = 200  # exams of the list that are sent at a time, at most
THUMBNAIL = 160  # pixels of its longer side
GONE = 499  # nobody waits any more


class Viewer:
    """What the addresses answer from.

    Attributes:
        sides: one or two; slices: of the command `slices`, if it was run.
    """

    def __init__(self, catalogue: Catalogue, sides: Sequence[Side], slices: Sequence[Slice] = ()):
        self.catalogue, self.sides, self.slices = catalogue, list(sides), list(slices)
        self._busy: dict[int, anyio.Lock] = {}

    def app(self, hosts, token: str = "") -> Starlette:
        """The ASGI application; `hosts` and `token`: see `guard.Guard`."""
        routes = [
            Route("/", self._page),
            Route("/static/{name}", self._static),
            Route("/api/about", self._about),
            Route("/api/exams", self._exams),
            Route("/api/exams/{id}", self._exam),
            Route("/api/exams/{id}/map", self._map),
            Route("/api/exams/{id}/said", self._said),
            Route("/api/exams/{id}/scores", self._scores),
            Route("/api/exams/{id}/found", self._found),
            Route("/api/images/{id}/pixels", self._pixels),
            Route("/api/images/{id}/thumbnail", self._thumbnail),
            Route("/api/near", self._near),
            Route("/api/survey", self._survey),
        ]
        return Starlette(
            routes=routes,
            middleware=[
                Middleware(Guard, hosts=hosts, token=token),
                Middleware(GZipMiddleware, minimum_size=500, compresslevel=1),
            ],
            exception_handlers={UserError: _told, HTTPException: _told},
        )

    def _page(self, request: Request) -> Response:
        return _file("index.html")

    def _static(self, request: Request) -> Response:
        return _file(request.path_params["name"])

    def _about(self, request: Request) -> Response:
        info, catalogue = self.catalogue.dataset.info, self.catalogue
        return _json(
            {
                "dataset": info["name"],
                "real": bool(info.get("real", True)),
                "exams": len(catalogue.exams),
                "images": len(catalogue.images),
                "facets": catalogue.facets,
                "columns": [name for name in COLUMNS if name in catalogue.facets],
                "orders": self._orders(),
                "wrong": WRONG,
                "sides": [side.about() for side in self.sides],
                "slices": [
                    {"title": one.title, "images": int(one.inside.sum()), "wrong": int(one.wrong.sum())}
                    for one in self.slices
                ],
                "colours": _colours(),
            }
        )

    def _exams(self, request: Request) -> Response:
        query, catalogue = request.query_params, self.catalogue
        side = self._side(request) if self.sides else None
        scores = side.scores() if side else {}
        one, wrong = scores.get(query.get("by", ""), (None, None))
        order = query.get("order", ORDERS[0])
        if order not in self._orders():
            raise HTTPException(400, f"order is one of {', '.join(self._orders())}")
        if order == APART:
            scores = [side.scores().get(query.get("by", ""), (None,))[0] for side in self.sides]
            wrong = apart(*(each.score for each in scores)) if all(scores) else None
        chosen = catalogue.select(self._filters(query), order, one.score if one else None, wrong)
        start, count = _number(query, "start", 0), min(_number(query, "count", PAGE), PAGE)
        listed = [
            catalogue.summary(exam)
            | {"scores": {one.label: side.of_exam(exam)[one.label]} if one else {}, "number": start + place}
            for place, exam in enumerate(chosen[start : start + count].tolist())
        ]
        here = query.get("find", "")
        place = np.flatnonzero(chosen == catalogue.exam(here)) if here in catalogue.exams else ()
        return _json({"count": len(chosen), "exams": listed, "found": int(place[0]) if len(place) else None})

    def _orders(self) -> tuple[str, ...]:
        return (*ORDERS, APART) if len(self.sides) > 1 else ORDERS

    def _filters(self, query) -> Filters:
        """Filters of the query: COLUMNS and "label.NAME" as they are, "slice" (number), "slice_wrong", "text", "low", "high"."""
        columns = {name: query[name] for name in COLUMNS if query.get(name)}
        labels = {name[6:]: value for name, value in query.items() if name.startswith("label.") and value}
        unknown = [name for name in (*columns, *labels) if name not in self.catalogue.facets]
        if unknown:
            raise HTTPException(400, f"nothing to filter by is called {unknown[0]}")
        inside = None
        if query.get("slice"):
            number = _number(query, "slice", 0)
            if not 0 <= number < len(self.slices):
                raise HTTPException(404, "there is no such slice")
            one = self.slices[number]
            inside = one.wrong if query.get("slice_wrong") else one.inside
        low, high = (float(query[name]) if _is_number(query.get(name)) else None for name in ("low", "high"))
        return Filters(columns, labels, inside, query.get("text", "")[:LONGEST], low, high)

    def _exam(self, request: Request) -> Response:
        exam, catalogue = self._of_exam(request), self.catalogue
        return _json(
            catalogue.summary(exam)
            | {
                "all_labels": catalogue.labels(catalogue.members[exam]),
                "images": catalogue.views(exam),
                "rows": catalogue.hung(exam),
                "reports": catalogue.reports(exam),
                "others": catalogue.others(exam),
                "scores": [side.of_exam(exam) for side in self.sides],
            }
        )

    async def _map(self, request: Request) -> Response:
        exam, reader = self._of_exam(request), self._reader(request)
        asked = {name: request.query_params.get(name, "") for name in ("label", "phrase", "method", "stage")}
        asked["phrase"] = asked["phrase"].strip()[:LONGEST]

        def make():
            places = self.catalogue.members[exam]
            with reader.first():
                return reader.maps(str(exam), lambda: read(self.catalogue.dataset, places), **asked)

        maps = await self._when_free(request, make)
        return _framed({"shape": list(maps.shape)}, maps)

    async def _said(self, request: Request) -> Response:
        exam, side, reader = self._of_exam(request), self._side(request), self._reader(request)
        phrase = request.query_params.get("phrase", "").strip()[:LONGEST]
        if not phrase:
            raise HTTPException(400, "there is no phrase")

        def make():
            places, survey = self.catalogue.members[exam], side.survey
            with reader.first():
                (words,) = reader.phrases([phrase])
                known = survey.there[places].all()
                vectors = survey.vectors[places] if known else reader.vectors(read(self.catalogue.dataset, places))
            cosines = vectors @ words
            return [{"cosine": float(one), "above": survey.share_below(float(one), words)} for one in cosines]

        return _json({"phrase": phrase, "views": await self._when_free(request, make)})

    async def _scores(self, request: Request) -> Response:
        exam, reader = self._of_exam(request), self._reader(request)
        places = self.catalogue.members[exam]

        def make():
            with reader.first():
                return reader.scores(read(self.catalogue.dataset, places))

        side, found = self._side(request), await self._when_free(request, make)
        return _json({"scores": {label: side.just_now(label, values, exam) for label, values in found.items()}})

    async def _found(self, request: Request) -> Response:
        exam, reader = self._of_exam(request), self._reader(request)
        if not reader.about()["detects"]:
            raise HTTPException(404, "this model finds no boxes")

        def make():
            with reader.first():
                return reader.detections(read(self.catalogue.dataset, self.catalogue.members[exam]))

        return _json({"views": await self._when_free(request, make)})

    async def _near(self, request: Request) -> Response:
        side, reader, query = self._side(request), self._reader(request), request.query_params
        phrase, image = query.get("phrase", "").strip()[:LONGEST], query.get("image", "")
        catalogue, survey = self.catalogue, side.survey
        survey.start()
        if not phrase and image not in catalogue.images:
            raise HTTPException(404, "there is no such image")
        leave_out = np.zeros(len(catalogue.images), bool)
        if not phrase:
            leave_out = catalogue.exam_of == catalogue.exam_of[catalogue.image(image)]

        def make():
            place = -1 if phrase else catalogue.image(image)
            if not phrase and survey.there[place]:
                return survey.vectors[place]
            with reader.first():
                return reader.phrases([phrase])[0] if phrase else reader.vectors(read(catalogue.dataset, [place]))[0]

        vector = await self._when_free(request, make)
        pictures = survey.nearest(vector, leave_out, groups=catalogue.exam_of)
        reports = survey.nearest_texts(vector)
        return _json(
            {
                "survey": survey.progress(),
                "exams": [self._near_exam(place, cosine) for place, cosine in _pairs(pictures)],
                "reports": [
                    {
                        "text": survey.texts[place],
                        "cosine": cosine,
                        "exams": list(
                            dict.fromkeys(catalogue.exams[catalogue.exam_of[row]] for row in survey.rows[place])
                        )[:3],
                        "count": len({int(catalogue.exam_of[row]) for row in survey.rows[place]}),
                    }
                    for place, cosine in _pairs(reports)
                ],
            }
        )

    def _near_exam(self, image: int, cosine: float) -> dict[str, Any]:
        exam = int(self.catalogue.exam_of[image])
        return {
            "exam": self.catalogue.exams[exam],
            "image": self.catalogue.images[image],
            "view": self.catalogue.view_of(image),
            "cosine": cosine,
            "labels": {k: v for k, v in self.catalogue.labels([image]).items() if k in self.catalogue.facets},
            "text": next(iter(self.catalogue.dataset.index["texts"].iloc[image]), ""),
        }

    def _survey(self, request: Request) -> Response:
        survey = self._side(request).survey
        if survey is None:
            raise HTTPException(404, "there is no model here")
        if request.query_params.get("start"):
            survey.start()
        return _json(survey.progress())

    def _pixels(self, request: Request) -> Response:
        canvas = self.catalogue.dataset.read(self._of_image(request))
        canvas = canvas.astype(canvas.dtype.newbyteorder("<"), copy=False)
        height, width = canvas.shape
        return _framed({"height": height, "width": width, "bits": 8 * canvas.dtype.itemsize}, canvas)

    def _thumbnail(self, request: Request) -> Response:
        image = self._of_image(request)
        canvas = self.catalogue.dataset.read(image)
        scale = min(1.0, THUMBNAIL / max(canvas.shape))
        small = cv2.resize(canvas, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        if small.dtype != np.uint8:
            small = (small >> 8).astype(np.uint8)
        if self.catalogue.mirrored(image):
            small = small[:, ::-1]
        return Response(cv2.imencode(".png", small)[1].tobytes(), media_type="image/png")

    async def _when_free(self, request: Request, make):
        """What `make` returns, of one request of a side at a time; those that nobody waits for any more are left out."""
        lock = self._busy.setdefault(id(self._side(request)), anyio.Lock())
        async with lock:
            if await request.is_disconnected():
                raise HTTPException(GONE, "nobody waits")
            return await run_in_threadpool(make)

    def _side(self, request: Request) -> Side:
        number = _number(request.query_params, "side", 0)
        if not 0 <= number < len(self.sides):
            raise HTTPException(404, "there is no such model")
        return self.sides[number]

    def _reader(self, request: Request):
        reader = self._side(request).reader
        if reader is None:
            raise HTTPException(404, "there are predictions here, and no model to ask")
        return reader

    def _of_exam(self, request: Request) -> int:
        try:
            return self.catalogue.exam(request.path_params["id"])
        except KeyError:
            raise HTTPException(404, "there is no such exam") from None

    def _of_image(self, request: Request) -> int:
        try:
            return self.catalogue.image(request.path_params["id"])
        except KeyError:
            raise HTTPException(404, "there is no such image") from None


def _file(name: str) -> Response:
    """A file of the page; only those that lie in its folder have a name there."""
    known = {path.name: path for path in STATIC.iterdir() if path.suffix in TYPES}
    if name not in known:
        raise HTTPException(404, "there is no such file")
    return Response(known[name].read_bytes(), media_type=f"{TYPES[known[name].suffix]}; charset=utf-8")


def _told(request: Request, error: Exception) -> Response:
    status, text = (error.status_code, error.detail) if isinstance(error, HTTPException) else (400, str(error))
    return JSONResponse({"error": without_paths(text)}, status)


def _json(value: Any) -> Response:
    return Response(json.dumps(plain(value), allow_nan=False), media_type="application/json")


def _framed(about: dict[str, Any], array: np.ndarray) -> Response:
    """A line of JSON and the array's bytes, little-endian."""
    return Response(
        json.dumps(about).encode() + b"\n" + np.ascontiguousarray(array).tobytes(),
        media_type="application/octet-stream",
    )


def _colours() -> list[int]:
    """Red, green, blue of 256 steps of heat, as inference/overlay.py paints it."""
    steps = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], cv2.COLORMAP_TURBO)
    return steps[:, 0, ::-1].ravel().tolist()


def _pairs(near: Near) -> list[tuple[int, float]]:
    return list(zip(near.place.tolist(), near.cosine.tolist()))


def _number(query, name: str, default: int) -> int:
    text = query.get(name, "")
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise HTTPException(400, f"{name} is a whole number")
    return int(text) if text else default


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and np.isfinite(float(text))
    except ValueError:
        return False
