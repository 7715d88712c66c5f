"""Every error that a caller can see: reachable, with its status, headers and body."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from app.api.problems import ERRORS
from app.artifacts.store import Artifact
from app.main import Gatehouse, gatehouse
from app.protocol.problems import MEDIA_TYPE
from app.settings import Settings
from tests.support.fakes import POISON, sums_model

HEADERS = {"content-type": "application/json"}
SCORE = "/v1/models/tiny/score"
V2_ONLY = {"not-supported"}  # errors of the V2 protocol, which has its own form for them


class Caller:
    """Calls a service without a socket; the body may arrive in parts, or never end."""

    def __init__(self, parts: Gatehouse, store: Path) -> None:
        self.parts = parts
        self.store = store

    async def post(
        self,
        path: str = SCORE,
        body: object = None,
        *,
        method: str = "POST",
        text: bytes | None = None,
        stops: bool = False,
        **headers: str,
    ) -> list[Message]:
        content = json.dumps({} if body is None else body).encode() if text is None else text
        incoming = [{"type": "http.request", "body": content, "more_body": stops}]
        outgoing: list[Message] = []

        async def receive() -> Message:
            if not incoming:
                await asyncio.Event().wait()
            return incoming.pop()

        async def send(message: Message) -> None:
            outgoing.append(message)

        named = {name.replace("_", "-"): value for name, value in headers.items()}
        scope: dict[str, Any] = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(n.encode(), v.encode()) for n, v in (HEADERS | named).items()],
        }
        await self.parts.app(scope, receive, send)
        return outgoing

    @asynccontextmanager
    async def another(self, **settings: Any):
        """Return a caller of a second service with other settings."""
        given = {"store": self.store, "lanes": 1, "request_timeout_ms": 30_000} | settings
        async with gatehouse(Settings.model_validate(given)) as parts:
            await parts.deployment.refresh()
            yield Caller(parts, self.store)

    def example(self, rows: int = 1) -> dict[str, Any]:
        """Return a valid request to the tiny model."""
        return {
            "user": {"user_id": 1, "age_bucket": 1, "recent_items": [], "activity": [0.5] * 4},
            "candidates": {
                "item_id": [1] * rows,
                "category": [1] * rows,
                "quality": [[0.5, 0.5]] * rows,
            },
        }


Case = Callable[[Caller], Awaitable[list[Message]]]
CASES: dict[str, Case] = {}


def reaches(slug: str) -> Callable[[Case], Case]:
    """Register a case that ends in the error with this slug."""

    def keep(case: Case) -> Case:
        CASES[slug] = case
        return case

    return keep


@reaches("malformed-body")
async def _body_that_is_not_json(caller):
    return await caller.post(text=b'{"user": ')


@reaches("unauthorized")
async def _missing_api_key(caller):
    async with caller.another(keys="anna:a-key-of-many-characters-0123456789") as guarded:
        return await guarded.post(body=guarded.example())


@reaches("model-not-found")
async def _unknown_model(caller):
    return await caller.post("/v1/models/nobody/score")


@reaches("version-not-found")
async def _inactive_version(caller):
    return await caller.post("/v1/models/tiny/versions/9/score")


@reaches("key-not-found")
async def _item_without_a_table(caller):
    return await caller.post("/v1/models/tiny/items/1", method="GET")


@reaches("path-not-found")
async def _unknown_path(caller):
    return await caller.post("/v1/scores", method="GET")


@reaches("not-supported")
async def _unsupported_extension(caller):
    return await caller.post("/v2/repository/models/tiny/load")


@reaches("method-not-allowed")
async def _wrong_method(caller):
    return await caller.post(method="PUT")


@reaches("request-timeout")
async def _incomplete_body(caller):
    async with caller.another(body_timeout_ms=20) as impatient:
        return await impatient.post(text=b'{"user"', stops=True)


@reaches("payload-too-large")
async def _too_many_candidates(caller):
    return await caller.post(body=caller.example(1001))


@reaches("unsupported-media-type")
async def _wrong_content_type(caller):
    return await caller.post(content_type="text/plain")


@reaches("invalid-request")
async def _unknown_feature(caller):
    return await caller.post(body={"user": {"iq": 1}})


@reaches("overloaded")
async def _full_queue(caller):
    async with caller.another(max_queue_rows=1000, max_candidates=1000) as full:
        return await _last(full.post(body=full.example(600)) for _ in range(2))


@reaches("deadline-unmeetable")
async def _deadline_shorter_than_the_queue(caller):
    async with caller.another() as busy:
        (model,) = busy.parts.service.registry.active_models()
        busy.parts.service.batcher.learn(model, [(1, 100.0), (2, 200.0)])
        return await _last(busy.post(body=busy.example()) for _ in range(2))


@reaches("deadline-exceeded")
async def _body_that_arrives_after_the_deadline(caller):
    return await caller.post(text=b"{", stops=True, x_request_timeout_ms="1")


@reaches("not-ready")
async def _server_without_a_model(caller):
    async with caller.another(store=caller.store / "empty") as empty:
        return await empty.post()


@reaches("draining")
async def _draining_server(caller):
    async with caller.another() as stopping:
        stopping.parts.service.readiness.is_draining = True
        return await stopping.post("/readyz", method="GET")


@reaches("inference-failed")
async def _model_that_raises(caller):
    model = sums_model()
    caller.parts.service.registry.activate(Artifact("sums", 1, caller.store), model)
    body = {"user": {"u": 1}, "candidates": {"c": [1, POISON]}}
    return await caller.post("/v1/models/sums/score", body)


@reaches("internal-error")
async def _bug_in_the_server(caller):
    async with caller.another() as broken:
        broken.parts.service.registry = None
        return await broken.post()


async def _last(calls) -> list[Message]:
    """Make the calls concurrently and return the answer of the last one."""
    answers: list[list[Message]] = await asyncio.gather(*calls)
    return answers[-1]


@pytest.fixture
async def caller(service, store):
    return Caller(service, store.folder)


def test_every_error_has_a_case():
    assert set(CASES) == set(ERRORS)


@pytest.mark.parametrize("slug", CASES)
async def test_error_is_reachable_and_is_a_problem_document(caller, slug):
    start, *rest = await CASES[slug](caller)
    headers = dict(start["headers"])
    content = b"".join(message.get("body", b"") for message in rest)
    error = ERRORS[slug]
    assert start["status"] == error.status
    assert int(headers[b"content-length"]) == len(content)
    problem = json.loads(content)
    if slug in V2_ONLY:
        assert set(problem) == {"error"}
        return
    assert headers[b"content-type"] == MEDIA_TYPE.encode()
    assert problem.pop("errors", []) == [] or slug == "invalid-request"
    assert problem == {
        "type": f"/problems/{slug}",
        "title": error.title,
        "status": error.status,
        "detail": problem["detail"],
        "instance": headers[b"x-request-id"].decode(),
    }
    assert (b"retry-after" in headers) == (error.status in (429, 503))


def test_errors_have_different_slugs_and_titles():
    for one, other in itertools.combinations(ERRORS.values(), 2):
        assert one.slug != other.slug
        assert one.title != other.title
