"""Requests answered by the whole service within this process, put together as for serving."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from app.errors import ArtifactInvalid
from app.main import Gatehouse, gatehouse
from app.server.in_process import Answer, ask
from app.settings import Settings


async def answers(
    settings: Settings, bodies: Mapping[int, bytes], model: str | None
) -> AsyncIterator[tuple[int, Answer]]:
    """Answer JSON bodies, one after the other, and yield each answer with its body's number.

    Args:
        settings: the server's.
        bodies: by number.
        model: who answers; None means the default model.

    Raises:
        ArtifactInvalid: nothing in the store can answer.
        ConfigurationInvalid: a setting cannot be followed.
    """
    path = f"/v1/models/{model}/score" if model else "/v1/score"
    async with _service(settings) as parts:
        for number, body in bodies.items():
            yield number, await ask(parts.app, path, body)


@asynccontextmanager
async def _service(settings: Settings) -> AsyncIterator[Gatehouse]:
    async with gatehouse(settings) as parts:
        await parts.start()
        if not parts.service.is_ready:
            raise ArtifactInvalid("it holds no artifacts")
        yield parts
