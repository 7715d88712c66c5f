"""Errors of FastAPI's routes, and the pages that explain each kind of error.

How an error looks as bytes is in `app.protocol.problems`.
"""

import inspect
from typing import Annotated

import orjson
from fastapi import APIRouter, FastAPI, Path, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from app import errors
from app.errors import GatehouseError
from app.protocol.problems import MEDIA_TYPE, error_response, is_v2_path
from app.scoring.context import context_of

ERRORS: dict[str, type[GatehouseError]] = {
    each.slug: each
    for each in vars(errors).values()
    if inspect.isclass(each) and issubclass(each, GatehouseError) and each is not GatehouseError
}
"""Every error that a caller can see, by slug."""

SCHEMA = {"$ref": "#/components/schemas/Problem"}
"""The schema of a problem document, in the OpenAPI document."""

router = APIRouter(tags=["operations"])


def install(app: FastAPI) -> None:
    """Make FastAPI's routes answer with problem documents, and add the pages that explain them."""

    async def answer_known(request: Request, error: Exception) -> Response:
        assert isinstance(error, GatehouseError)
        status, headers, body = error_response(
            error,
            is_v2=is_v2_path(request.scope["path"]),
            request_id=context_of(request.scope).request_id,
        )
        response = Response(body, status)
        response.raw_headers = headers
        return response

    async def answer_unrouted(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if is_v2_path(request.scope["path"]):
            content = orjson.dumps({"error": error.detail})
            return Response(content, error.status_code, error.headers, "application/json")
        problem = {
            "type": "about:blank",
            "title": error.detail,
            "status": error.status_code,
            "instance": context_of(request.scope).request_id,
        }
        return Response(orjson.dumps(problem), error.status_code, error.headers, MEDIA_TYPE)

    app.add_exception_handler(GatehouseError, answer_known)
    app.add_exception_handler(HTTPException, answer_unrouted)
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
    """Explain an error: the page that its `type` points to."""
    error = ERRORS.get(slug)
    if error is None:
        raise HTTPException(404)
    text = (
        f"{error.title} ({error.status.value} {error.status.phrase})\n\n{inspect.getdoc(error)}\n"
    )
    return PlainTextResponse(text)
