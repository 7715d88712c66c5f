"""`GET /v1/models`: the active models, each with an example request, and refused versions."""

from fastapi import APIRouter

from app.api.examples import example_request
from app.api.openapi.responses import problems
from app.api.openapi.schemas import (
    IgnoredFolder,
    ModelCard,
    ModelList,
    OfferedPolicy,
    PolicyState,
    RefusedArtifact,
)
from app.artifacts.loader import Model
from app.errors import ModelNotFound, NotReady
from app.lifecycle.policies import Policies
from app.ranking.ranker import Ranker
from app.scoring.service import Service


def routes(service: Service) -> APIRouter:
    """Return the routes over a service's registry."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("", summary="Active models and refused versions")
    async def list_models() -> ModelList:
        registry = service.registry
        return ModelList(
            models=[_card(model, service.policies) for model in registry.models()],
            refused=[
                RefusedArtifact(model=artifact.model, version=artifact.version, reason=reason)
                for artifact, reason in registry.refused.items()
            ],
            ignored=[
                IgnoredFolder(folder=folder, reason=reason)
                for folder, reason in registry.ignored.items()
            ],
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
        return _card(service.registry.active(model), service.policies)

    return router


def _card(model: Model, policies: Policies) -> ModelCard:
    manifest = model.manifest
    own = policies.of(model)
    calibrations = zip(own.default.tasks, own.default.calibrations, strict=True)
    return ModelCard(
        name=manifest.name,
        version=manifest.version,
        architecture=manifest.architecture,
        created=manifest.created,
        device=str(model.program.device),
        inputs=manifest.inputs,
        tasks=manifest.tasks,
        ranking=manifest.ranking,
        default_policy=own.default.policy.name,
        policies=[_offered(ranker) for ranker in own.by_name.values()],
        calibrations={task: each.method for task, each in calibrations if each.method != "none"},
        policy_problem=policies.incompatible.get(manifest.name),
        precision=manifest.precision,
        evaluation=manifest.evaluation,
        score_url=f"/v1/models/{manifest.name}/score",
        example_request=example_request(model),
    )


def _offered(ranker: Ranker) -> OfferedPolicy:
    shadow = None if ranker.shadow is None else ranker.shadow.policy.name
    return OfferedPolicy.model_validate(
        ranker.description | {"bounds": dict(ranker.adjustable), "shadow": shadow}
    )
