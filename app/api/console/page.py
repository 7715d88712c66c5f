"""The console at `/console`: one page that shows the service at work, and a ranking playground.

The page is one response: style and scripts are inside it, and its content security policy allows
exactly these (by their hashes), and requests to this server. It reads `/v1/models`, `/v1/engine`,
`/v1/events` and `/metrics` every two seconds, and its playground calls the API, as any client
would.
"""

import base64
import hashlib
from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

_SCRIPTS = ("charts.js", "service.js", "playground.js", "polling.js")


def routes() -> APIRouter:
    """Return the route of the page."""
    router = APIRouter(tags=["operations"])
    page, policy = _page()

    @router.get(
        "/console",
        summary="Console: charts, models and a ranking playground",
        response_class=HTMLResponse,
    )
    async def console() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": policy})

    return router


def _page() -> tuple[str, str]:
    """Return the page, and the content security policy that allows its own style and script."""
    folder = files("app.api.console")

    def read(name: str) -> str:
        return folder.joinpath(name).read_text(encoding="utf-8")

    style = read("console.css")
    script = "\n".join(["'use strict';", *map(read, _SCRIPTS)])
    page = read("console.html").replace("/*css*/", style).replace("/*js*/", script)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "connect-src 'self'; img-src data:; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
    return page, policy


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
