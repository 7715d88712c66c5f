"""The interface of a dialect of score calls: it reads request bodies and writes response bodies."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from app.artifacts.loader import Model
from app.artifacts.model_tables import NO_TABLES, ModelTables
from app.engine.request import Priority, RequestFeatures
from app.ranking.batch import RankedRequest
from app.ranking.policies import ModelPolicies
from app.ranking.ranker import RankingOptions

Headers = Mapping[bytes, bytes]
"""A request's headers that score calls read: lower-case names; repeated ones joined by commas."""

Content = tuple[bytes, bytes]
"""Header lines, each with its line end and none of them the length; and a body."""


@dataclass(slots=True)
class ParseContext:
    """The context in which a body is parsed.

    Attributes:
        model: the version that scores it.
        policies: the model's policies, all of one policy set.
        headers: of the request.
        max_candidates: the most candidates of one request.
        role: the version's role in traffic, which the response states.
        key_feature: the user feature whose value is wanted as the routing key, or empty.
        tables: the item and user tables that the version serves from.
        keeps_ids: whether the ids are wanted as they were sent.
    """

    model: Model
    policies: ModelPolicies
    headers: Headers
    max_candidates: int
    role: str = "active"
    key_feature: str = ""
    tables: ModelTables = NO_TABLES
    keeps_ids: bool = False


class ResponseWriter(Protocol):
    """Writes the response to one request."""

    def write(self, ranked: RankedRequest) -> Content:
        """Return the response's content."""


@dataclass(slots=True)
class ParsedRequest:
    """A request of any dialect, completely checked.

    Attributes:
        features: the user's and the candidates' columns.
        ranking: how to rank the candidates.
        writer: writes the response in the dialect of the request.
        decoded_at: `time.perf_counter()` after the body was parsed, before its features were
            encoded (s).
        timeout_s: counted from the request's arrival, if the body states it.
        priority: if the body states it.
        routing_key: the value of the user feature that the context asks for, if it is there.
        ids: the ids as they were sent, if the context asks for them; see `app.protocol.sent_ids`.
    """

    features: RequestFeatures
    ranking: RankingOptions
    writer: ResponseWriter
    decoded_at: float
    timeout_s: float | None = None
    priority: Priority | None = None
    routing_key: object = None
    ids: Mapping[str, object] | None = None


class Dialect(Protocol):
    """A format of score calls."""

    path: re.Pattern[str]
    """Matches the paths of its calls; the groups `model` and `version` may be empty."""
    media_types: frozenset[bytes]
    """The content types of its requests, in lower case."""

    def route(self, model: str | None, version: str | None) -> str:
        """Return the template of a path."""

    def parse(self, body: bytes, context: ParseContext) -> ParsedRequest:
        """Read a request body.

        Raises:
            MalformedBody: it cannot be parsed.
            InvalidRequest: it breaks rules; lists every problem (the first 20).
            PayloadTooLarge: it has too many candidates.
        """
