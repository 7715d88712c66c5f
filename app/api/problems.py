"""Errors as `application/problem+json` (RFC 9457); the only place that knows how they look.

`type` is `/problems/<slug>`, a page of this server, and `instance` is the request's id. Under `/v2`
it is `{"error": "..."}`, as the Open Inference Protocol says, with the same status and headers.
"""

import inspect
from typing import Annotated

import orjson
from fastapi import APIRouter, FastAPI, Path, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope, Send

from app import errors
from app.errors import (
    GatehouseError,
    InvalidRequest,
    MethodNotAllowed,
    Unauthorized,
    UnsupportedMediaType,
)
from app.scoring.content_coding import ACCEPTED
from app.scoring.context import context_of

MEDIA_TYPE = "application/problem+json"

ERRORS: dict[str, type[GatehouseError]] = {
    each.slug: each
    for each in vars(errors).values()
    if inspect.isclass(each) and issubclass(each, GatehouseError) and each is not GatehouseError
}
"""Every error a caller can see, by slug."""

SCHEMA = {"$ref": "#/components/schemas/Problem"}
"""What a problem document is, in the OpenAPI document."""

router = APIRouter(tags=["operations"])


async def send_problem(send: Send, error: GatehouseError, scope: Scope) -> None:
    """Answer a request with an error, from a plain ASGI callable."""
    body, media_type = _body(error, scope)
    headers = [(b"content-type", media_type.encode()), (b"content-length", b"%d" % len(body))]
    headers += [(name.encode(), value.encode()) for name, value in _headers(error).items()]
    await send({"type": "http.response.start", "status": int(error.status), "headers": headers})
    await send({"type": "http.response.body", "body": body})


def install(app: FastAPI) -> None:
    """Make FastAPI's routes answer with problem documents too."""

    async def known(request: Request, error: Exception) -> Response:
        assert isinstance(error, GatehouseError)
        body, media_type = _body(error, request.scope)
        return Response(body, int(error.status), _headers(error), media_type)

    async def unrouted(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if _is_v2(request.scope):
            content = orjson.dumps({"error": error.detail})
            return Response(content, error.status_code, error.headers, "application/json")
        problem = {
            "type": "about:blank",
            "title": error.detail,
            "status": error.status_code,
            "instance": context_of(request.scope).request_id,
        }
        return Response(orjson.dumps(problem), error.status_code, error.headers, MEDIA_TYPE)

    app.add_exception_handler(GatehouseError, known)
    app.add_exception_handler(HTTPException, unrouted)
    app.include_router(router)


@router.get(
    "/problems/{slug}",
    summary="What an error means: the page that its `type` points to",
    response_class=PlainTextResponse,
    responses={404: {"description": "No such error", "content": {MEDIA_TYPE: {"schema": SCHEMA}}}},
)
async def explain(
    slug: Annotated[str, Path(json_schema_extra={"enum": sorted(ERRORS)})],
) -> PlainTextResponse:
    """Say what an error means: the page that its `type` points to."""
    error = ERRORS.get(slug)
    if error is None:
        raise HTTPException(404)
    text = (
        f"{error.title} ({error.status.value} {error.status.phrase})\n\n{inspect.getdoc(error)}\n"
    )
    return PlainTextResponse(text)


def _headers(error: GatehouseError) -> dict[str, str]:
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = "POST"  # the hot routes take nothing else; FastAPI answers for its own
    if isinstance(error, UnsupportedMediaType) and error.is_coding:
        headers["accept-encoding"] = ACCEPTED
    if isinstance(error, Unauthorized):
        wrong = ' error="invalid_token"' if error.presented else ""
        headers["www-authenticate"] = f"Bearer{wrong}"
    return headers


def _is_v2(scope: Scope) -> bool:
    path: str = scope["path"]
    return path == "/v2" or path.startswith("/v2/")


def _body(error: GatehouseError, scope: Scope) -> tuple[bytes, str]:
    """Return an error's document and its media type."""
    if _is_v2(scope):
        reasons = str(error)
        if isinstance(error, InvalidRequest):
            reasons = "; ".join(f"{each.pointer}: {each.detail}" for each in error.problems)
        return orjson.dumps({"error": reasons}), "application/json"
    problem: dict[str, object] = {
        "type": f"/problems/{error.slug}",
        "title": error.title,
        "status": int(error.status),
        "detail": str(error),
        "instance": context_of(scope).request_id,
    }
    if isinstance(error, InvalidRequest):
        problem["errors"] = [
            {"pointer": each.pointer, "detail": each.detail} for each in error.problems
        ]
    return orjson.dumps(problem), MEDIA_TYPE
