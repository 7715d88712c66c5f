"""The OpenAPI document: valid, complete, and with examples that match their schemas."""

import shutil

import jsonschema_rs
import pytest
import schemathesis

from app.api.problems import ERRORS
from app.errors import MethodNotAllowed
from app.main import gatehouse
from app.settings import Settings
from tests.support.artifacts import add_version
from tests.support.in_process import client_of


@pytest.fixture
async def document(client):
    return (await client.get("/openapi.json")).json()


def operations(document):
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def scoring(document):
    return [
        operation for name, operation in operations(document) if name.endswith(("/score", "/infer"))
    ]


async def test_document_is_valid_openapi(document):
    schemathesis.openapi.from_dict(document).validate()


async def test_every_operation_has_summary_tag_and_unique_id(document):
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    for name, operation in operations(document):
        assert operation["summary"], name
        assert operation["tags"], name


async def test_scoring_operations_list_every_error_status(document):
    statuses = {str(int(error.status)) for error in ERRORS.values() if error != MethodNotAllowed}
    for operation in scoring(document):
        assert operation["responses"].keys() == statuses | {"200"}


async def test_every_response_lists_its_headers(document):
    for name, operation in operations(document):
        for status, answer in operation["responses"].items():
            assert "x-request-id" in answer["headers"], name
            assert ("retry-after" in answer["headers"]) == (
                status in ("429", "503") and name != "GET /livez"
            ), (name, status)


async def test_every_example_matches_its_schema(document):
    def check(content) -> int:
        schema = {**content["schema"], "components": document["components"]}
        validator = jsonschema_rs.validator_for(schema)
        examples = [example["value"] for example in content.get("examples", {}).values()]
        for example in examples:
            validator.validate(example)
        return len(examples)

    checked = 0
    for _, operation in operations(document):
        for part in (operation.get("requestBody", {}), *operation["responses"].values()):
            for content in part.get("content", {}).values():
                checked += check(content) if "schema" in content else 0
    assert checked > 40


async def test_security_is_required_only_if_the_server_has_keys(document, store):
    for operation in scoring(document):
        assert operation["security"] == [{"key": []}, {}]
    settings = Settings.model_validate({"store": store.folder, "lanes": 1, "keys": "a:" + "b" * 20})
    async with gatehouse(settings) as parts:
        await parts.start()
        async with client_of(parts) as client:
            guarded = (await client.get("/openapi.json")).json()
            needing = {
                name
                for name, operation in operations(guarded)
                if operation.get("security") == [{"key": []}]
            }
            names = {"model": "tiny", "version": "1", "key": "7", "slug": "draining"}
            answers = {
                name: await client.request(name.split()[0], name.split()[1].format(**names))
                for name, _ in operations(guarded)
            }
    assert all("WWW-Authenticate" in answers[name].headers for name in needing)
    assert {name for name, answer in answers.items() if answer.status_code == 401} == needing
    assert len(needing) > len(scoring(guarded)) > 0
    for operation in scoring(guarded):
        assert operation["security"] == [{"key": []}]


async def test_request_schema_lists_the_features_of_the_model(document):
    schema = document["components"]["schemas"]["ScoreRequest.tiny"]
    assert schema["properties"]["user"]["required"] == [
        *("user_id", "age_bucket", "recent_items", "activity")
    ]
    (columns, _) = schema["properties"]["candidates"]["anyOf"]
    assert columns["properties"]["quality"]["items"]["minItems"] == 2


async def test_new_model_appears_in_the_document(store, tmp_path):
    shutil.copytree(store.folder, tmp_path / "store")
    async with (
        gatehouse(Settings(store=tmp_path / "store", lanes=1)) as parts,
        client_of(parts) as client,
    ):

        async def described() -> set[str]:
            schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
            return {name for name in schemas if name.startswith("ScoreRequest.")}

        assert await described() == set()
        await parts.deployment.refresh()
        assert await described() == {"ScoreRequest.tiny"}
        add_version(tmp_path / "store", "other", 1, name="other")
        await parts.deployment.refresh()
        assert await described() == {"ScoreRequest.tiny", "ScoreRequest.other"}
