"""Routes for operators: health, readiness, engine state, metrics and the home page."""

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from pydantic import BaseModel, Field

from app.api.home import home_page
from app.api.openapi.responses import problems
from app.engine.state import EngineState
from app.errors import Draining, NotReady, PathNotFound
from app.scoring.keys import Keys
from app.scoring.service import Service
from app.telemetry.events import Event
from app.telemetry.siblings import Render


class EventSchema(BaseModel):
    """Something that happened to this process."""

    at: datetime
    kind: str = Field(description="version, table, traffic or file")
    text: str
    is_problem: bool = Field(description="whether somebody should do something about it")


class EventList(BaseModel):
    """The last events of this process, the latest first."""

    events: list[EventSchema]


def routes(
    service: Service,
    scrape: Render,
    keys: Keys,
    *,
    lane_hang_s: float,
    metrics_port: int | None = None,
) -> APIRouter:
    """Return the routes; if `metrics_port` is given, /metrics answers on that port only.

    `scrape` returns what /metrics answers, in the Prometheus format.
    """
    router = APIRouter(tags=["operations"])

    @router.get(
        "/livez",
        response_class=PlainTextResponse,
        responses={503: {"description": "A lane is stuck", "content": {"text/plain": {}}}},
        summary="200 while the event loop and every lane respond; otherwise restart the server",
    )
    async def livez() -> PlainTextResponse:
        alive = service.is_alive(lane_hang_s)
        return PlainTextResponse("alive\n" if alive else "a lane is stuck\n", 200 if alive else 503)

    @router.get(
        "/readyz",
        response_class=PlainTextResponse,
        responses=problems(Draining, NotReady),
        summary="200 while the server accepts requests to a model; otherwise use another replica",
    )
    async def readyz() -> PlainTextResponse:
        service.readiness.check()
        return PlainTextResponse("ready\n")

    @router.get("/v1/engine", summary="State of the engine: queues, lanes and batch costs")
    async def engine() -> EngineState:
        return service.state(lane_hang_s)

    @router.get(
        "/v1/events",
        summary="The last events of this process: versions, tables, traffic and files",
    )
    async def events() -> EventList:
        return EventList(events=[_shown(event) for event in service.registry.events.latest()])

    @router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        if metrics_port is not None and request.scope["server"][1] != metrics_port:
            raise PathNotFound("metrics are served on a separate port")
        return Response(await scrape(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @router.get("/", summary="Home page: active models and links", response_class=HTMLResponse)
    async def home(request: Request) -> HTMLResponse:
        origin = str(request.base_url).rstrip("/")
        page = home_page(service.registry, origin, needs_key=keys.are_required)
        return HTMLResponse(page)

    return router


def _shown(event: Event) -> EventSchema:
    return EventSchema(
        at=datetime.fromtimestamp(event.unix_s, UTC),
        kind=event.kind,
        text=event.text,
        is_problem=event.is_problem,
    )
