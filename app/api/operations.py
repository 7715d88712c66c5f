"""What a supervisor, a load balancer, Prometheus and a person in a browser call."""

import asyncio

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from app.api.home import home_page
from app.api.openapi.responses import problems
from app.engine.state import EngineState
from app.errors import Draining, NotReady
from app.scoring.keys import Keys
from app.scoring.service import Service
from app.telemetry.metrics import Metrics


def routes(
    service: Service,
    metrics: Metrics,
    keys: Keys,
    *,
    lane_hang_s: float,
    metrics_port: int | None = None,
) -> APIRouter:
    """Return the operations' routes; /metrics on `metrics_port` only, where there is one."""
    router = APIRouter(tags=["operations"])

    @router.head("/livez", include_in_schema=False)
    @router.get(
        "/livez",
        response_class=PlainTextResponse,
        responses={503: {"description": "A lane is stuck", "content": {"text/plain": {}}}},
        summary="200 while the loop and every lane answer; else restart it",
    )
    async def livez() -> PlainTextResponse:
        alive = service.is_alive(lane_hang_s)
        return PlainTextResponse("alive\n" if alive else "a lane is stuck\n", 200 if alive else 503)

    @router.head("/readyz", include_in_schema=False)
    @router.get(
        "/readyz",
        response_class=PlainTextResponse,
        responses=problems(Draining, NotReady),
        summary="200 while requests are welcome; else send them elsewhere",
    )
    async def readyz() -> PlainTextResponse:
        if service.draining:
            raise Draining("the server is shutting down")
        if not service.is_ready:
            raise NotReady("models are still loading, or none is active")
        return PlainTextResponse("ready\n")

    @router.get("/v1/engine", summary="What waits, what runs, and what batches cost, now")
    async def engine() -> EngineState:
        return service.state(lane_hang_s)

    @router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def scrape(request: Request) -> Response:
        if metrics_port is not None and request.scope["server"][1] != metrics_port:
            raise HTTPException(404, "The metrics are on a port of their own")
        text = await asyncio.to_thread(metrics.render)
        return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)

    @router.get("/", summary="What runs here, for a person", response_class=HTMLResponse)
    async def home(request: Request) -> HTMLResponse:
        origin = str(request.base_url).rstrip("/")
        page = home_page(service.registry, origin, needs_key=keys.are_needed)
        return HTMLResponse(page)

    return router
