"""API keys: who may score, what others are told, and where no secret ever appears."""

import json
import logging
import os
from hashlib import sha256

import pytest
from hypothesis import example as case, given, strategies as st
from prometheus_client.parser import text_string_to_metric_families

from app.errors import ConfigurationInvalid, Unauthorized
from app.main import gatehouse
from app.scoring.keys import MOST_KEYS, Keys
from app.settings import Settings
from tests.support.in_process import client_of

ANNA, BERT = "anna-has-20-letters-", "4f" * 32
TEXT = f"anna:{ANNA}, bert:{BERT}"


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def caller(keys: Keys, authorization: str | None) -> str:
    return keys.name_of(None if authorization is None else authorization.encode())


def test_without_keys_everyone_may_call():
    assert caller(Keys(), None) == caller(Keys(), f"Bearer {ANNA}") == ""


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_secret_gives_the_name_of_its_key(scheme):
    keys = Keys(text=TEXT)
    assert caller(keys, f"{scheme} {ANNA}") == "anna"
    assert caller(keys, f"{scheme} {BERT}") == "bert"


def test_name_may_have_an_old_and_a_new_secret():
    keys = Keys(text=f"anna:{ANNA} anna:{BERT}")
    assert caller(keys, f"Bearer {ANNA}") == caller(keys, f"Bearer {BERT}") == "anna"


def test_digest_accepts_its_secret_and_is_not_a_secret_itself():
    digest = sha256(ANNA.encode()).hexdigest()
    keys = Keys(text=f"anna:sha256:{digest}")
    assert caller(keys, f"Bearer {ANNA}") == "anna"
    for wrong in (digest, f"sha256:{digest}"):
        with pytest.raises(Unauthorized):
            caller(keys, f"Bearer {wrong}")


@given(st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=80))
@case("")
@case("Bearer")
@case("Bearer ")
@case(f"Bearer {ANNA[:-1]}")
@case(f"Bearer {ANNA}x")
@case(f"Bearer anna:{ANNA}")
@case(f"Basic {ANNA}")
@case(ANNA)
def test_other_authorization_headers_are_refused(authorization):
    with pytest.raises(Unauthorized) as caught:
        Keys(text=TEXT).name_of(authorization.encode("latin-1"))
    assert ANNA[:-1] not in str(caught.value)


WRONG = {
    "nothing": "",
    "a comment only": "# anna",
    "no name": ANNA,
    "an empty name": f":{ANNA}",
    "a name that is no label": f"a{{b:{ANNA}",
    "a secret that is short": "anna:0123456789",
    "a secret that no header can carry": "anna:" + "ü" * 30,
    "a digest of another length": "anna:sha256:" + "f" * 63,
    "too many": " ".join(f"k{i}:{BERT}" for i in range(MOST_KEYS + 1)),
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_error_in_the_keys_names_the_place_and_repeats_no_secret(tmp_path, text):
    file = tmp_path / "keys"
    file.write_text(text)
    for source, arguments in (("GATEHOUSE_KEYS", {"text": text}), (str(file), {"file": file})):
        with pytest.raises(ConfigurationInvalid, match=f"^{source}: ") as caught:
            Keys(**arguments)
        said = str(caught.value).removeprefix(source)
        assert not any(part in said for part in (ANNA, BERT, "0123456789", "ü", "f" * 63, "a{b"))


def test_key_file_has_comments_and_one_key_per_line(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# who may score\nanna:{ANNA}  # since May\n\nbert:{BERT}\n")
    assert caller(Keys(file=file), f"Bearer {BERT}") == "bert"


def test_missing_or_huge_key_file_is_refused(tmp_path):
    with pytest.raises(ConfigurationInvalid, match="No such file"):
        Keys(file=tmp_path / "keys")
    (tmp_path / "keys").write_text(f"# {'x' * 70_000}")
    with pytest.raises(ConfigurationInvalid, match="larger than"):
        Keys(file=tmp_path / "keys")


def test_byte_order_mark_is_not_part_of_the_first_name(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"anna:{ANNA}", encoding="utf-8-sig")
    assert caller(Keys(file=file), f"Bearer {ANNA}") == "anna"


def test_a_fifo_is_refused_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "keys")
    with pytest.raises(ConfigurationInvalid, match=r"keys: not a regular file"):
        Keys(file=tmp_path / "keys")


@pytest.fixture(scope="module")
async def guarded(store):
    """A client of a service that needs a key."""
    settings = Settings.model_validate(
        {"store": store.folder, "lanes": 1, "keys": TEXT, "log_sample": 1, "port": 0}
    )
    async with gatehouse(settings) as parts:
        await parts.deployment.refresh()
        async with client_of(parts) as client:
            yield client


@pytest.fixture
async def sent(guarded):
    return (await guarded.get("/v1/models/tiny")).json()["example_request"]


async def test_scoring_needs_a_key(guarded, sent):
    for path in ("/v1/score", "/v1/models/tiny/score", "/v1/models/tiny/versions/1/score"):
        refused = await guarded.post(path, json=sent)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.json()["type"] == "/problems/unauthorized"
        answered = await guarded.post(path, json=sent, headers=bearer(ANNA))
        assert answered.status_code == 200


async def test_open_inference_protocol_needs_a_key_too(guarded, sent):
    infer = "/v2/models/tiny/infer"
    refused = await guarded.post(infer, json=sent)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert "API key required" in refused.json()["error"]
    holder = await guarded.post(infer, json=sent, headers=bearer(BERT))
    assert holder.status_code == 422  # it is no request of this protocol


async def test_wrong_key_is_an_invalid_token(guarded, sent):
    refused = await guarded.post("/v1/score", json=sent, headers=bearer("x" * 30))
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    assert "x" * 30 not in refused.text


async def test_request_without_a_key_is_not_read_or_checked(guarded):
    """Without a key, a client does not learn which models there are either."""

    async def unread():
        raise AssertionError("the body was read")
        yield b""

    for path in ("/v1/score", "/v1/models/nobody/score"):
        refused = await guarded.post(
            path, content=unread(), headers={"x-request-timeout-ms": "soon"}
        )
        assert refused.status_code == 401


async def test_example_of_the_front_page_shows_where_the_key_belongs(guarded, client):
    page = (await guarded.get("/")).text
    assert "(set GATEHOUSE_KEY to your API key)" in page
    assert '-H "authorization: Bearer $GATEHOUSE_KEY" \\\n  -H ' in page
    assert "GATEHOUSE_KEY" not in (await client.get("/")).text


async def test_other_routes_need_no_key(guarded):
    for path in ("/livez", "/readyz", "/metrics", "/", "/docs", "/openapi.json", "/v1/models"):
        assert (await guarded.get(path)).status_code == 200


async def test_log_and_metrics_show_the_name_of_a_key_and_no_secret(guarded, sent, caplog):
    async def count() -> float:
        text = (await guarded.get("/metrics")).text
        assert ANNA not in text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        samples = families["gatehouse_requests_by_key"].samples
        labels = {"key": "anna", "status": "200"}
        return sum(sample.value for sample in samples if sample.labels == labels)

    await guarded.post("/v1/score", json=sent, headers=bearer(ANNA))
    before = await count()
    with caplog.at_level(logging.DEBUG):
        await guarded.post("/v1/score", json=sent, headers=bearer(ANNA))
        await guarded.post("/v1/score", json=sent, headers=bearer(ANNA[1:]))
    assert await count() == before + 1
    logged = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert [fields.get("key") for fields in logged] == ["anna", None]
    assert ANNA[1:] not in json.dumps(logged) + caplog.text


def test_settings_show_no_secret(monkeypatch):
    monkeypatch.setenv("GATEHOUSE_KEYS", TEXT)
    settings = Settings()
    assert settings.keys is not None
    assert ANNA not in repr(settings) + str(settings) + settings.model_dump_json()
