"""The routes: the page, the models, predictions, evidence, health and figures. ``/openapi.json`` describes them.

Nothing that is sent is kept, and no name from outside becomes a path.
"""

import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from .. import __version__
from . import metrics, schema
from .decode import Refused, kind_of
from .frames import Answer, Job
from .guard import OPEN, PROBLEM, Bodies, Guard, problem
from .page.html import page_policy, service_page
from .pool import Model
from .settings import ServeConfig

TASK = re.compile(r"/v1/models/(?P<name>[^/]+)/(?P<task>predict|explain)")
GUARDED = (401, 403, 421)
TASK_ERRORS = (400, 401, 403, 404, 408, 413, 415, 421, 422, 429, 500, 503)
Models = Mapping[str, Model]


class Described(FastAPI):
    """Its description holds what errors are made of, and says where a token is needed."""

    needs_token = False

    def openapi(self) -> dict[str, Any]:
        found: dict[str, Any] = super().openapi()
        parts = found.setdefault("components", {})
        parts.setdefault("schemas", {})["Problem"] = schema.Problem.model_json_schema()
        if self.needs_token:
            parts["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            guarded = (one for path, operations in found["paths"].items() if path not in OPEN for one in operations.values())
            for operation in guarded:
                operation["security"] = [{"token": []}]
        return found


def make_app(models: Models, config: ServeConfig, lifespan: Callable[[], Any] | None = None) -> FastAPI:
    """The application; ``lifespan`` is a context in which the models are loaded."""

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        if lifespan is None:
            yield
        else:
            async with lifespan():
                yield

    html = service_page()
    app = Described(
        title="compress serve",
        version=__version__,
        description="Classifiers behind a port.",
        docs_url=None,
        redoc_url=None,
        lifespan=living,
    )
    app.openapi_version = "3.1.0"
    _add_state(app, models, html)
    _add_tasks(app, models, config)
    app.needs_token = config.token is not None
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(Guard, config=config, policy=page_policy(html), refuse_full=_refuse_full(models))
    return app


def _refuse_full(models: Models) -> Callable[[str], None]:
    def refuse(path: str) -> None:
        if (asked := TASK.fullmatch(path)) and (model := models.get(asked["name"])):
            try:
                model.refuse_full()
            except Refused as error:
                model.counts.answers[asked["task"], error.status] += 1
                raise

    return refuse


def _add_state(app: FastAPI, models: Models, html: str) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(html, media_type="text/html; charset=utf-8")

    @app.get("/healthz", response_model=schema.State, summary="Whether it lives", responses=schema.problems(403, 421))
    async def health() -> Response:
        return _json(b'{"status":"ok"}')

    @app.get("/readyz", response_model=schema.State, summary="Whether all models are loaded", responses=schema.problems(403, 421, 503))
    async def readiness() -> Response:
        if missing := [name for name, model in models.items() if not model.ready]:
            raise Refused(503, f"{', '.join(missing)} is not loaded", **{"retry-after": "1"})
        return _json(b'{"status":"ok"}')

    text: dict[int | str, dict[str, Any]] = {
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus's text format."}
    }
    figures: dict[int | str, dict[str, Any]] = {**text, **schema.problems(*GUARDED)}

    @app.get("/metrics", response_class=Response, summary="Figures for Prometheus", responses=figures)
    async def exposition() -> Response:
        return Response(metrics.exposition(models), media_type=metrics.TYPE)

    @app.get("/v1/models", response_model=schema.Models, summary="The models", responses=schema.problems(*GUARDED))
    async def list_models() -> Response:
        return _json(msgspec.json.encode({"models": [_about(name, model) for name, model in models.items()]}))


def _add_tasks(app: FastAPI, models: Models, config: ServeConfig) -> None:
    bodies = Bodies(config)

    async def answered(task: str, name: str, request: Request, seen: bool) -> Response:
        deadline = time.monotonic() + config.seconds
        model = models.get(name)
        if model is None:
            raise Refused(404, f"there is no model of that name; there is {', '.join(models)}")
        try:
            content_type = request.headers.get("content-type", "")
            kind_of(content_type)
            body = await bodies.read(request.receive, deadline)
            answer, waited = await model.ask(Job(task=task, content_type=content_type, body=body, deadline=deadline, seen=seen))
            if answer.status != 200:
                raise Refused(answer.status, answer.content.decode())
        except Refused as error:
            model.counts.answers[task, error.status] += 1
            raise
        _count(model, task, answer, waited)
        return _json(_whole(task, name, answer, waited))

    @app.post(
        "/v1/models/{name}/predict",
        response_model=schema.Predictions,
        summary="Read images",
        description="`curl --data-binary @letter.png -H 'content-type: image/png' http://127.0.0.1:8000/v1/models/NAME/predict`",
        openapi_extra=schema.body(several=True),
        responses=schema.problems(*TASK_ERRORS),
    )
    async def predict(
        name: str, request: Request, seen: Annotated[bool, Query(description="give back the pixels that were read")] = False
    ) -> Response:
        return await answered("predict", name, request, seen)

    @app.post(
        "/v1/models/{name}/explain",
        response_model=schema.Explanation,
        summary="What of an image speaks for its label",
        description="`curl --data-binary @letter.png -H 'content-type: image/png' http://127.0.0.1:8000/v1/models/NAME/explain`",
        openapi_extra=schema.body(several=False),
        responses=schema.problems(*TASK_ERRORS),
    )
    async def explain(name: str, request: Request) -> Response:
        return await answered("explain", name, request, False)


def _about(name: str, model: Model) -> dict[str, Any]:
    about = model.about
    channels, height, width = about.shape
    found = {"name": name, "ready": model.ready, "hash": about.hash, "shape": (height, width, channels), "classes": about.classes}
    return found | {
        "size": about.size,
        "latency_ms": about.latency_ms,
        "batch": about.batch,
        "drawing": about.drawing,
        "error": model.error,
    }


def _whole(task: str, name: str, answer: Answer, waited: int) -> bytes:
    """The answer's own content with what is known of it."""
    parts = {"decode_ms": answer.decode_ns, "wait_ms": waited, "compute_ms": answer.compute_ns}
    timing = {part: round(ns / 1e6, 4) for part, ns in parts.items()} | {"batch": answer.batch}
    about = {"model": name, "hash": answer.hash, "timing": timing}
    if task == "predict":
        return msgspec.json.encode(about | {"predictions": msgspec.Raw(answer.content)})
    return msgspec.json.encode(about | msgspec.json.decode(answer.content))


def _count(model: Model, task: str, answer: Answer, waited: int) -> None:
    model.counts.answers[task, 200] += 1
    model.counts.images += answer.images
    for part, ns in (("decode", answer.decode_ns), ("wait", waited), ("compute", answer.compute_ns)):
        model.counts.seconds[part].add(ns / 1e9)


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return Response(problem(error.status, error.detail), error.status, error.headers, PROBLEM)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = {
        404: "there is nothing at this path; /openapi.json says what there is",
        405: "this path takes another method; Allow says which",
    }
    detail = told.get(error.status_code, str(error.detail))
    return Response(problem(error.status_code, detail), error.status_code, dict(error.headers or {}), PROBLEM)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return Response(problem(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:200]), 422, None, PROBLEM)
