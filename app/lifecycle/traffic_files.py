"""Follows the traffic file of each model: a file that is wrong changes nothing, and is reported."""

import asyncio
import hashlib
import logging
from collections.abc import Collection
from pathlib import Path

from app.errors import ConfigurationInvalid
from app.files import read_small_file
from app.lifecycle.registry import Registry
from app.lifecycle.traffic import MAX_FILE_BYTES, TRAFFIC, Traffic
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_WATCHED = "traffic"  # label of metrics


class TrafficFiles:
    """The traffic file of each model as it was last good; owned by the event loop."""

    def __init__(self, store: Path, registry: Registry, metrics: Metrics) -> None:
        """Read nothing yet; problems are put into `registry` and counted in `metrics`."""
        self._store = store
        self._registry = registry
        self._metrics = metrics
        self._seen: dict[str, bytes | str] = {}
        metrics.watch_file(_WATCHED)

    async def read(self, model: str) -> None:
        """Read the file of a model if it has changed; what is good goes into the registry."""
        content, seen = await asyncio.to_thread(_read, self._store / model / TRAFFIC)
        if self._seen.get(model) == seen:
            return
        is_first, self._seen[model] = model not in self._seen, seen
        try:
            if isinstance(content, str):
                raise ConfigurationInvalid(content)
            traffic = Traffic() if content is None else Traffic.parse(content)
        except ConfigurationInvalid as error:
            self._registry.traffic_problems[model] = f"{TRAFFIC}: {error}"
            logger.error(  # noqa: TRY400
                "%s/%s cannot be used, the previous one stays: %s", model, TRAFFIC, error
            )
            self._metrics.reloaded(_WATCHED, succeeded=False)  # one wrong file is enough
            event = f"{model}/{TRAFFIC} cannot be used, the previous one stays: {error}"
            self._metrics.events.add("file", event, is_problem=True)
            return
        self._registry.traffic[model] = traffic
        self._registry.traffic_problems.pop(model, None)
        if content is not None or not is_first:
            logger.info("%s/%s: %s", model, TRAFFIC, _summary(traffic))
            all_good = not self._registry.traffic_problems
            self._metrics.reloaded(_WATCHED, succeeded=True, all_good=all_good)
            self._metrics.events.add("file", f"{model}/{TRAFFIC}: {_summary(traffic)}")

    def forget_all_but(self, models: Collection[str]) -> None:
        """Forget what is wrong with the files of models that the store does not have any more."""
        problems = self._registry.traffic_problems
        if gone := problems.keys() - set(models):
            for model in gone:
                del problems[model], self._seen[model]
            self._metrics.show_reloaded(_WATCHED, all_good=not problems)


def _read(path: Path) -> tuple[bytes | str | None, bytes | str]:
    """Return the content (None without a file, a text if it cannot be read), and its digest."""
    try:
        content = read_small_file(path, max_bytes=MAX_FILE_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        return reason, reason
    return content, hashlib.sha256(content).digest()


def _summary(traffic: Traffic) -> str:
    return ", ".join([line for line in traffic.to_toml().splitlines() if line])
