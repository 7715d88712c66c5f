"""Which version scores a call while a canary runs: the canary, or the active version beside it."""

from app.artifacts.model_tables import NO_TABLES
from app.errors import GatehouseError
from app.protocol.dialect import ParseContext, ParsedRequest
from app.scoring.call import ScoreCall
from app.scoring.service import Service


def assign(
    call: ScoreCall, body: bytes, service: Service, max_candidates: int
) -> ParsedRequest | None:
    """Give a call to the canary of its model if its key says so.

    The key is the header `x-routing-key`, else the user's id, else the request's id. To find the
    user's id, the body is parsed: returns the parsed request if the active version scores it.
    Bodies that cannot be parsed are assigned too, so that the error rates of both stay comparable.

    Raises:
        GatehouseError: the body cannot be parsed, and the call stays with the active version.
    """
    model, policies, head = call.model, call.policies, call.head
    assert model is not None
    assert policies is not None
    assert head is not None
    registry = service.registry
    canary = registry.canaries.get(model.manifest.name)
    if canary is None or canary.active is not model:
        return None
    parsed, error = None, None
    key = head.headers.get(b"x-routing-key")
    if not key and canary.key_feature:
        context = ParseContext(
            model,
            policies,
            head.headers,
            max_candidates,
            role=registry.role(model),
            key_feature=canary.key_feature,
            tables=registry.tables.get(model, NO_TABLES),
            keeps_ids=call.recording is not None,
        )
        try:
            parsed = call.route.dialect.parse(body, context)
        except GatehouseError as caught:
            error = caught
        else:
            if parsed.routing_key is not None:
                key = str(parsed.routing_key).encode()
    call.is_assigned = True
    if canary.takes(key or call.request_id.encode()):
        call.model = canary.model
        call.policies = service.policies.of(canary.model)
        return None
    if error is not None:
        raise error
    return parsed
