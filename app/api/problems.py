"""Errors of FastAPI's routes, and the pages that explain each kind of error.

How an error looks as bytes is in `app.protocol.problems`.
"""

import inspect
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated

from fastapi import APIRouter, FastAPI, Path, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from app import errors
from app.errors import GatehouseError, InternalError, MethodNotAllowed, PathNotFound, did_you_mean
from app.protocol.native import ROUTES as NATIVE_ROUTES
from app.protocol.open_inference.infer import ROUTES as V2_ROUTES
from app.protocol.problems import MEDIA_TYPE, error_response, is_v2_path
from app.scoring.context import context_of

ERRORS: dict[str, type[GatehouseError]] = {
    error.slug: error
    for error in vars(errors).values()
    if inspect.isclass(error) and issubclass(error, GatehouseError) and error is not GatehouseError
}
"""Every error that a client can see, by slug."""


class FieldErrorSchema(BaseModel):
    """One problem: an RFC 6901 pointer into the request, and what is wrong there."""

    pointer: str
    detail: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str | None = None
    instance: str = Field(description="the request id")
    errors: list[FieldErrorSchema] | None = None


SCHEMA = {"$ref": "#/components/schemas/Problem"}
"""The schema of a problem document, in the OpenAPI document."""

_LONGEST_PATH = 200  # characters of a path that is compared with the known ones
_LEAST_RATIO = 0.8  # of a suggestion; at 0.6, /v1/models/m/x would suggest every path of a model

router = APIRouter(tags=["operations"])


def install(app: FastAPI, routers: Iterable[APIRouter]) -> None:
    """Make `app` answer errors with problem documents; `routers` are the ones it includes."""
    api_routes = [
        route for group in routers for route in group.routes if isinstance(route, APIRoute)
    ]
    templates = [
        *NATIVE_ROUTES,
        *V2_ROUTES,
        *(route.path for route in api_routes if route.include_in_schema),
    ]

    async def answer_error(request: Request, error: Exception) -> Response:
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
        return await answer_error(request, _routing_error(error, request.scope["path"], templates))

    app.add_exception_handler(GatehouseError, answer_error)
    app.add_exception_handler(HTTPException, answer_unrouted)


def nearest_path(path: str, templates: Iterable[str]) -> str | None:
    """Return the path of this server that is most similar to `path`, if any is.

    Args:
        path: the path that was not found.
        templates: known paths; a segment such as `{model}` stands for any segment.
    """
    if len(path) > _LONGEST_PATH or not path.isprintable():
        return None
    segments = [segment for segment in path.split("/") if segment]
    known: list[str] = []
    for template in templates:
        parts = template.strip("/").split("/")
        if len(parts) == len(segments):
            filled = (
                segment if part.startswith("{") else part
                for segment, part in zip(segments, parts, strict=True)
            )
            known.append("/" + "/".join(filled))
        elif "{" not in template:
            known.append(template)
    nearest = get_close_matches("/" + "/".join(segments), known, n=1, cutoff=_LEAST_RATIO)
    return nearest[0] if nearest else None


def _routing_error(error: HTTPException, path: str, templates: Iterable[str]) -> GatehouseError:
    """Return the error for an unknown path, or for a method that the path does not have."""
    if error.status_code == 405:
        allow = ", ".join(sorted(_methods(error)))
        return MethodNotAllowed(f"method not allowed; use {allow}", allow=allow)
    if error.status_code != 404:
        return InternalError("see the server's log")
    nearest = nearest_path(path, templates)
    if nearest == path:  # a scoring path whose version is not an integer
        return PathNotFound("path not found: the version in it must be an integer")
    if nearest is None:
        return PathNotFound("path not found; /docs lists all paths")
    return PathNotFound(f'path not found; did you mean "{nearest}"?')


def _methods(error: HTTPException) -> set[str]:
    allowed = {method.strip() for method in (error.headers or {}).get("Allow", "").split(",")}
    return allowed | {"HEAD"} if "GET" in allowed else allowed


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
        known = ", ".join(sorted(ERRORS))
        raise PathNotFound(f"unknown kind of error{did_you_mean(slug, ERRORS)} (known: {known})")
    page = (
        f"{error.title} ({error.status.value} {error.status.phrase})\n\n{inspect.getdoc(error)}\n"
    )
    return PlainTextResponse(page)
