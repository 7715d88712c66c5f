"""`GET /v1/models`: what is served, and an example request for each that works as it is."""

from fastapi import APIRouter

from app.api.described import problems
from app.api.examples import example_request
from app.api.schemas import ModelCard, ModelList, RefusedArtifact
from app.artifacts.loader import Model
from app.engine.service import Service
from app.errors import ModelNotFound, NotReady


def routes(service: Service) -> APIRouter:
    """Return the routes over a service's registry."""
    router = APIRouter(prefix="/v1/models", tags=["models"])

    @router.get("", summary="Every active model, and every refused version")
    async def list_models() -> ModelList:
        registry = service.registry
        return ModelList(
            models=[_card(model) for model in registry.models()],
            refused=[
                RefusedArtifact(model=artifact.model, version=artifact.version, reason=reason)
                for artifact, reason in registry.refused.items()
            ],
        )

    @router.get(
        "/{model}",
        summary="One model: inputs, tasks, policy, figures, an example request",
        responses=problems(ModelNotFound, NotReady),
    )
    async def show_model(model: str) -> ModelCard:
        return _card(service.registry.active(model))

    return router


def _card(model: Model) -> ModelCard:
    manifest = model.manifest
    return ModelCard(
        name=manifest.name,
        version=manifest.version,
        architecture=manifest.architecture,
        created=manifest.created,
        device=str(model.program.device),
        inputs=manifest.inputs,
        tasks=manifest.tasks,
        ranking=manifest.ranking,
        precision=manifest.precision,
        evaluation=manifest.evaluation,
        score_url=f"/v1/models/{manifest.name}/score",
        example_request=example_request(model),
    )
