"""`GET /v1/models`: the active models, each with an example request, and refused versions."""

from typing import Any

from fastapi import APIRouter, Request

from app.api.examples import DEFAULT_CANDIDATES, MOST_CANDIDATES, example_request
from app.api.openapi.model_schemas import (
    CanaryState,
    DriftState,
    FoldState,
    GateLevelUse,
    GateUse,
    GoldenCheck,
    IgnoredFolder,
    LoadedVersion,
    ModelCard,
    ModelList,
    OfferedPolicy,
    PolicyState,
    RefusedArtifact,
    RefusedTable,
    ShadowState,
    TableState,
    TrafficState,
)
from app.api.openapi.responses import problems
from app.artifacts.golden import device_name
from app.artifacts.loader import Model
from app.artifacts.model_tables import NO_TABLES, BoundTable
from app.errors import FieldError, InvalidRequest, ModelNotFound, NotReady, Unauthorized
from app.lifecycle.registry import Registry
from app.lifecycle.traffic import Traffic
from app.ranking.ranker import Ranker
from app.scoring.drift import Drift
from app.scoring.keys import Keys
from app.scoring.request_headers import read_headers
from app.scoring.service import Service
from app.telemetry.gates import GateMetrics

_CANDIDATES = {
    "name": "candidates",
    "in": "query",
    "description": "how many candidates the example may have",
    "schema": {
        "type": "integer",
        "minimum": 1,
        "maximum": MOST_CANDIDATES,
        "default": DEFAULT_CANDIDATES,
    },
}


def routes(service: Service, gates: GateMetrics, keys: Keys) -> APIRouter:
    """Return the routes over a service's registry; `gates` has what gates choose.

    None needs an API key; where `keys` are required, no user of a table is shown without one.
    """
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("", summary="Active models and refused versions")
    async def list_models() -> ModelList:
        registry = service.registry
        return ModelList(
            models=[_card(model, service, gates, keys) for model in registry.active_models()],
            refused=refused_versions(registry),
            ignored=[
                IgnoredFolder(folder=folder, reason=reason)
                for folder, reason in registry.ignored.items()
            ],
            refused_tables=refused_tables(registry),
            policies=PolicyState(
                version=service.policies.active.version or None,
                refused=list(service.policies.refused),
            ),
        )

    @router.get(
        "/{model}",
        summary="One model: inputs, tasks, policies, evaluation and an example request",
        responses=problems(ModelNotFound, NotReady),
    )
    async def show_model(model: str) -> ModelCard:
        registry = service.registry
        return _card(registry.active(model), service, gates, keys)

    @router.get(
        "/{model}/example",
        summary="An example request of a model, with up to that many candidates",
        responses=problems(Unauthorized, ModelNotFound, NotReady, InvalidRequest),
        openapi_extra={"parameters": [_CANDIDATES]},
    )
    async def show_example(model: str, request: Request) -> dict[str, Any]:
        candidates = _candidates(request.query_params.get("candidates"))
        active = service.registry.active(model)
        tables = service.registry.tables.get(active, NO_TABLES)
        authorization = read_headers(request.scope["headers"]).get(b"authorization")
        has_key = bool(authorization is not None and keys.name_of(authorization))
        shows_users = has_key or not keys.are_required
        return example_request(active, candidates, tables, shows_users=shows_users)

    return router


def refused_versions(registry: Registry) -> list[RefusedArtifact]:
    """Return the versions in the store that do not serve, with the reasons."""
    return [
        RefusedArtifact(model=artifact.model, version=artifact.version, reason=reason)
        for artifact, reason in registry.refused.items()
    ]


def refused_tables(registry: Registry) -> list[RefusedTable]:
    """Return the tables and deltas in the store that do not serve, with the reasons."""
    return [
        RefusedTable(model=model, table=place, reason=reason)
        for (model, place), reason in registry.refused_tables.items()
    ]


def _candidates(parameter: str | None) -> int:
    if parameter is None:
        return DEFAULT_CANDIDATES
    is_number = parameter.isascii() and parameter.isdigit() and len(parameter) <= 9
    if is_number and 1 <= int(parameter) <= MOST_CANDIDATES:
        return int(parameter)
    detail = f"query parameter candidates must be a whole number from 1 to {MOST_CANDIDATES}"
    raise InvalidRequest([FieldError("", detail)])


def _card(model: Model, service: Service, gates: GateMetrics, keys: Keys) -> ModelCard:
    manifest, policies, registry = model.manifest, service.policies, service.registry
    rankers = policies.of(model)
    tables = registry.tables.get(model, NO_TABLES)
    methods = zip(rankers.default.tasks, rankers.default.calibrations, strict=True)
    return ModelCard(
        name=manifest.name,
        version=manifest.version,
        not_ready=service.readiness.why_not_ready(model) or None,
        versions=[_loaded(loaded, registry, gates) for loaded in registry.versions(manifest.name)],
        traffic=traffic_state(manifest.name, registry),
        architecture=manifest.architecture,
        created=manifest.created,
        device=str(model.program.device),
        inputs=manifest.inputs,
        tasks=manifest.tasks,
        ranking=manifest.ranking,
        default_policy=rankers.default.policy.name,
        policies=[_offered(ranker) for ranker in rankers.by_name.values()],
        calibrations={task: fit.method for task, fit in methods if fit.method != "none"},
        policy_problem=policies.incompatible.get(model.label),
        precision=manifest.precision,
        evaluation=manifest.evaluation,
        drift=_drift(service.drift.of(manifest.name)),
        score_url=f"/v1/models/{manifest.name}/score",
        tables=[_table(registry, manifest.name, bound) for bound in tables.all],
        example_request=example_request(model, tables=tables, shows_users=not keys.are_required),
    )


def _loaded(model: Model, registry: Registry, gates: GateMetrics) -> LoadedVersion:
    manifest = model.manifest
    golden = GoldenCheck(
        examples=model.golden.requests,
        largest_difference=model.golden_difference,
        tolerance=manifest.precision.tolerance[device_name(model.program)],
    )
    return LoadedVersion(
        version=manifest.version,
        role=registry.role(model),
        created=manifest.created,
        architecture=manifest.architecture,
        precision=manifest.precision,
        golden=golden,
        evaluation=manifest.evaluation,
        gates=_gate_use(model, gates),
        score_url=f"/v1/models/{manifest.name}/versions/{manifest.version}/score",
        problem=registry.damaged.get(model.label),
        replay=registry.replays.get(model.label),
    )


def _gate_use(model: Model, gates: GateMetrics) -> GateUse | None:
    if not model.manifest.gates:
        return None
    requests, means = gates.recent(model.label)
    left = iter(() if means is None else means.tolist())
    levels = []
    for level in model.manifest.gates:
        weights = None
        if means is not None:
            weights = [[None] * len(level.experts) for _ in level.gates]
            for row, positions in zip(weights, level.sees, strict=True):
                for position in positions:
                    row[position] = next(left)
        levels.append(
            GateLevelUse(gates=list(level.gates), experts=list(level.experts), weights=weights)
        )
    return GateUse(requests=requests, levels=levels)


def traffic_state(name: str, registry: Registry) -> TrafficState:
    """Return what the traffic file of a model says, and how its canary and shadow go."""
    traffic = registry.traffic.get(name) or Traffic()
    reasons = (registry.traffic_problems.get(name), registry.unassigned.get(name))
    canary = registry.last_canaries.get(name)
    state = None
    if canary is not None:
        state = CanaryState(
            version=canary.settings.version,
            share=canary.settings.share,
            state=canary.state,
            reason=canary.reason,
            **canary.report()._asdict(),
        )
    return TrafficState(
        active=traffic.active,
        keep=traffic.keep,
        canary=state,
        shadow=_shadow(name, registry),
        problems=[reason for reason in reasons if reason],
    )


def _shadow(name: str, registry: Registry) -> ShadowState | None:
    shadow = registry.shadows.get(name)
    if shadow is None:
        return None
    compared = shadow.compared
    return ShadowState(
        version=shadow.other.manifest.version,
        share=shadow.share,
        compared=compared,
        dropped=shadow.dropped,
        failed=shadow.failed,
        kendall_tau=shadow.kendall_tau,
        top_10_overlap=shadow.overlap_sum / compared if compared else None,
        score_difference={task: total / compared for task, total in shadow.difference_sums.items()},
    )


def _drift(drift: Drift | None) -> DriftState | None:
    if drift is None:
        return None
    return DriftState(features=dict(drift.features), scores=dict(drift.scores))


def _table(registry: Registry, name: str, bound: BoundTable) -> TableState:
    """Return what is shown of a table that a model serves from."""
    table = bound.table
    return TableState(
        table=bound.kind,
        version=table.label,
        key=table.key,
        key_type="string" if table.key_type is str else "int64",
        unknown=table.unknown,
        rows=table.rows,
        bytes=table.size,
        columns=list(table.columns),
        created=table.created,
        max_age_s=table.max_age_s,
        problem=registry.table_problems.get((name, f"{bound.kind}/{table.version}")),
        folded=_fold(bound),
    )


def _fold(bound: BoundTable) -> FoldState | None:
    fold = bound.table.description.fold
    if fold is None:
        return None
    serves = bound.folded_for is not None
    return FoldState(
        version=fold.version,
        bytes_per_item=4 * fold.width,
        serves=serves,
        problem=None if serves else bound.fold_problem or "it has not been examined yet",
    )


def _offered(ranker: Ranker) -> OfferedPolicy:
    shadow = None if ranker.shadow is None else ranker.shadow.policy.name
    return OfferedPolicy.model_validate(
        ranker.description | {"bounds": dict(ranker.adjustable), "shadow": shadow}
    )
