"""The console at `/console`: one page that shows the service at work, and a ranking playground.

The page is a single file without foreign content. It reads `/v1/models`, `/v1/engine` and
`/metrics` every two seconds, and its playground calls the score API, as any client would.
"""

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse


def routes() -> APIRouter:
    """Return the route of the page."""
    router = APIRouter(tags=["operations"])
    page = files("app.api").joinpath("console.html").read_text(encoding="utf-8")

    @router.get(
        "/console",
        summary="Console: charts, models and a ranking playground",
        response_class=HTMLResponse,
    )
    async def console() -> HTMLResponse:
        return HTMLResponse(page)

    return router
