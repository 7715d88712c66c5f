"""How many rows a request body has at least, which admission asks before the body is read."""

from app.artifacts.loader import Model


class RowSizes:
    """The largest size of a row in recent request bodies (bytes), by version.

    From it follows, before a body is read, how many rows the body has at least.
    """

    def __init__(self) -> None:
        """Start with no sizes: a body has at least one row."""
        self._bytes: dict[str, float] = {}

    def learn(self, model: Model, body_bytes: int, rows: int) -> None:
        """Learn from a request."""
        row_bytes = body_bytes / rows
        known = self._bytes.get(model.label, 0.0) * 0.999  # large rows are forgotten slowly
        self._bytes[model.label] = row_bytes if row_bytes > known else known

    def forget(self, model: Model) -> None:
        """Forget a version that is no longer loaded."""
        self._bytes.pop(model.label, None)

    def min_rows(self, model: Model, body_bytes: int) -> int:
        """Return how many rows a body has at least."""
        row_bytes = self._bytes.get(model.label)
        return max(1, int(body_bytes / row_bytes)) if row_bytes else 1
