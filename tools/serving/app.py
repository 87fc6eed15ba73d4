"""The routes of the server, and errors as OpenAI's API has them."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from bsformat import __version__
from bsformat.errors import BstkError

from .answering import answer_chat, answer_completion, unknown_model
from .errors import ApiError, error_object, of_bstk
from .guard import Guard
from .schemas import BudgetRequest, ChatRequest, CompletionRequest
from .service import Service

#: How pydantic names types, where a parameter may have several.
_TYPES = frozenset({"str", "int", "float", "bool"})


def build_app(service: Service, token: str | None = None) -> Guard:
    """The ASGI application of a service.

    Args:
        token: what clients must send; None: nothing, and then only this machine may reach it.
    """
    # No pages that load scripts from elsewhere; the schema is at /openapi.json.
    app = FastAPI(title="bstk serve", version=__version__, docs_url=None, redoc_url=None)
    _add_answers(app, service)
    _add_budget(app, service)
    _add_state(app, service)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _wrong_body)
    app.add_exception_handler(Exception, _unexpected)
    return Guard(_Counted(app, service), token, service.limits.body)


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await answer_chat(service, request, body)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await answer_completion(service, request, body)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != service.name:
            raise unknown_model(name, service.name)
        return described()

    def described() -> dict[str, Any]:
        out: dict[str, Any] = {"id": service.name, "object": "model", "created": service.created, "owned_by": "bstk"}
        if service.budget is not None:
            container = service.budget.elastic.container
            out["bitstack"] = {"root": container.root, "context": service.limits.context}
        return out


def _add_budget(app: FastAPI, service: Service) -> None:
    @app.get("/v1/budget")
    async def budget() -> dict[str, Any]:
        return service.ready()[2].state()

    @app.put("/v1/budget")
    async def set_budget(body: BudgetRequest) -> dict[str, Any]:
        budget = service.ready()[2]
        result = "failed"
        try:
            await asyncio.to_thread(budget.set, body.budget, progressive=body.progressive)
            result = "done"
        except BstkError as error:
            raise of_bstk(error, "budget") from None
        finally:
            service.metrics.resizes.labels(result).inc()
        return budget.state()


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        service.ready()
        return {"status": "ready"}

    @app.get("/metrics")
    async def metrics() -> Response:
        text = await asyncio.to_thread(service.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


class _Counted:
    """Counts the answers of an application, by route and status."""

    def __init__(self, app: FastAPI, service: Service) -> None:
        self._app, self._requests = app, service.metrics.requests

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        async def counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                # Paths that are none of ours are one: who asks for many must not make many counters.
                path = getattr(scope.get("route"), "path", "other")
                self._requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, counted)


async def _http_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ApiError):
        return JSONResponse(error.to_json(), error.status_code, headers=error.headers)
    status = getattr(error, "status_code", 500)
    message = f"{request.method} {request.url.path[:100]}: {getattr(error, 'detail', 'failed')}"
    return JSONResponse(error_object(status, message), status, headers=getattr(error, "headers", None))


async def _wrong_body(request: Request, error: Exception) -> Response:
    """The first thing that is wrong with the body of a request."""
    first: dict[str, Any] = dict(error.errors()[0]) if isinstance(error, RequestValidationError) else {}
    kind, path = str(first.get("type")), [str(part) for part in first.get("loc", ())[1:]]
    # Of a union pydantic names the alternative that it tried, which is none of the client's parameters.
    names = [part for part in path if part not in _TYPES and (part.isidentifier() or part.isdigit())]
    param = ".".join(names[:3])[:100] or None
    if kind == "json_invalid":
        return _refused("The body is no JSON.", None, "invalid_json")
    if param is None:
        return _refused("The body must be a JSON object, of content type application/json.", None, "invalid_json")
    if kind == "extra_forbidden":
        return _refused(f"This server knows no parameter {param!r}.", param, "unknown_parameter")
    if kind == "missing":
        return _refused(f"{param!r} is missing.", param, "missing_parameter")
    if len(names) < len(path):
        return _refused(f"{param!r} has none of the types that it may have.", param, "invalid_value")
    return _refused(f"{param!r}: {first.get('msg')}.", param, "invalid_value")


def _refused(message: str, param: str | None, code: str) -> Response:
    return JSONResponse(error_object(400, message, param, code), 400)


async def _unexpected(request: Request, error: Exception) -> Response:
    return JSONResponse(error_object(500, "Answering failed within the server.", code="internal_error"), 500)
