"""Lists the store, and reports when it cannot be read or has folders that are not artifacts."""

import asyncio
import logging
from collections.abc import Mapping

from app.artifacts.store import Store, StoreListing
from app.lifecycle.registry import Registry
from app.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class StoreScanner:
    """Lists one store again and again; owned by the event loop."""

    def __init__(self, store: Store, registry: Registry, metrics: Metrics) -> None:
        """List nothing yet; `registry` gets the ignored folders, `metrics` counts failures."""
        self._store = store
        self._registry = registry
        self._metrics = metrics
        self._error = ""  # the last one that was logged

    async def scan(self) -> StoreListing:
        """List the store. While nothing is active yet, a store that does not exist is empty.

        Raises:
            OSError: the store cannot be read now. It is logged and counted.
        """
        try:
            listing = await asyncio.to_thread(self._store.scan)
        except FileNotFoundError:
            self._report_error(f'the store "{self._store.folder}" does not exist')
            if self._registry.active_models():
                raise
            listing = StoreListing()
        except OSError as error:  # such as a network volume that is away for a while
            self._report_error(f'the store "{self._store.folder}": {error.strerror or error}')
            raise
        else:
            if self._error:
                logger.info("the store can be read again")
                self._error = ""
        self._report_ignored(listing.ignored)
        return listing

    def _report_error(self, reason: str) -> None:
        """Count each failure; log it once as long as the reason stays the same."""
        self._metrics.versions.store_unreadable()
        if reason != self._error:
            self._error = reason
            logger.error(reason)

    def _report_ignored(self, ignored: Mapping[str, str]) -> None:
        """Log folders that are newly ignored, or for another reason."""
        for folder, reason in ignored.items():
            if self._registry.ignored.get(folder) != reason:
                logger.warning("%s in the store is ignored: %s", folder, reason)
        self._registry.ignored = ignored
