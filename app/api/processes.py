"""`GET /v1/processes`: what each process of this server serves, whichever one answers.

Processes poll the store at different times, so for a while they serve different versions and
tables. A client that waits for a change waits until all of them have applied it.
"""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.api.models import refused_tables, refused_versions, traffic_state
from app.api.openapi.model_schemas import RefusedArtifact, RefusedTable, TrafficState
from app.artifacts.model_tables import NO_TABLES
from app.lifecycle.registry import Registry
from app.telemetry.siblings import Member, texts_of_all

STATE = "state"
"""The name under which siblings ask for a process's `ProcessState`."""


class ServedTable(BaseModel):
    """A table that a model serves from."""

    table: str = Field(description="items or users")
    version: str = Field(description="the table's version and, after a dot, its last delta")


class ServedModel(BaseModel):
    """The active version of a model in one process."""

    name: str
    version: int
    traffic: TrafficState
    tables: list[ServedTable]


class ProcessState(BaseModel):
    """What one process serves. It is empty for one that does not respond."""

    process: int = Field(description="its number, from 0, as in the label process of /metrics")
    responds: bool = Field(description="false while it starts, if it hangs, and after its end")
    models: list[ServedModel]
    refused: list[RefusedArtifact]
    refused_tables: list[RefusedTable]


class ProcessList(BaseModel):
    """All processes of this server."""

    process: int = Field(description="the number of the process that answers")
    processes: list[ProcessState]


def routes(registry: Registry, member: Member | None) -> APIRouter:
    """Return the route; one of several processes gets its `member`."""
    router = APIRouter(tags=["operations"])

    @router.get(
        "/v1/processes",
        summary="Active versions and tables of every process of this server",
    )
    async def list_processes() -> ProcessList:
        if member is None:
            return ProcessList(process=0, processes=[_state(registry, 0)])
        texts = await texts_of_all(member, STATE, lambda: render_state(registry, member))
        states = [_read(number, text) for number, text in texts.items()]
        return ProcessList(process=member.number, processes=states)

    return router


async def render_state(registry: Registry, member: Member | None) -> bytes:
    """Return the `ProcessState` of this process as JSON."""
    return _state(registry, member.number if member else 0).model_dump_json().encode()


def _read(number: int, text: bytes | None) -> ProcessState:
    if text is None:
        return ProcessState(
            process=number, responds=False, models=[], refused=[], refused_tables=[]
        )
    return ProcessState.model_validate_json(text)


def _state(registry: Registry, number: int) -> ProcessState:
    models = [
        ServedModel(
            name=model.manifest.name,
            version=model.manifest.version,
            traffic=traffic_state(model.manifest.name, registry),
            tables=[
                ServedTable(table=bound.kind, version=bound.table.label)
                for bound in registry.tables.get(model, NO_TABLES).all
            ],
        )
        for model in registry.active_models()
    ]
    return ProcessState(
        process=number,
        responds=True,
        models=models,
        refused=refused_versions(registry),
        refused_tables=refused_tables(registry),
    )
