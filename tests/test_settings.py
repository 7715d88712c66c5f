"""Settings: from flags and the environment, within their ranges."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No setting of the machine that runs the tests counts."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"GATEHOUSE_{name.upper()}", raising=False)


def test_every_setting_has_a_default_and_a_line_of_help():
    Settings()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        unit = next((u for u in ("_ms", "_s", "_bytes", "_rows") if name.endswith(u)), "")
        if unit:
            assert field.description.endswith(f"({unit[1:]})"), name


def test_the_environment_sets_what_it_names(monkeypatch):
    monkeypatch.setenv("GATEHOUSE_PORT", "9000")
    monkeypatch.setenv("GATEHOUSE_STORE", "/srv/models")
    monkeypatch.setenv("PORT", "1")
    settings = Settings()
    assert (settings.port, settings.store) == (9000, Path("/srv/models"))


def test_an_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("GATEHOUSE_PORT", "9000")
    assert Settings(port=9001).port == 9001


ACCESS = {"keys", "keys_file", "tls_cert", "tls_key", "cors_origins"}
OUT_OF_RANGE: dict[str, list[int | float | str]] = {
    "port": [-1, 65536, "http"],
    "processes": [0, 65],
    "metrics_port": [-1, 65536],
    "store_poll_s": [0, 3601],
    "device": ["tpu"],
    "lanes": [0, 257],
    "max_batch_rows": [0, 65537],
    "min_chunk_rows": [0, 65537],
    "max_wait_ms": [-0.1, 1001, "nan"],
    "max_queue_rows": [0],
    "max_candidates": [0],
    "max_body_bytes": [1023],
    "max_bodies_bytes": [1023],
    "body_timeout_ms": [0, "nan"],
    "request_timeout_ms": [0, 600_001, "nan"],
    "keep_alive_s": [0],
    "drain_delay_s": [-1, 601],
    "drain_timeout_s": [0, 3601],
    "lane_hang_s": [0],
    "log_level": ["loud", "INFO"],
    "log_sample": [-0.1, 1.1],
    "slow_request_ms": [-1],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in OUT_OF_RANGE.items() for value in values]
)
def test_a_value_out_of_its_range_is_refused_and_not_repeated(monkeypatch, name, value):
    monkeypatch.setenv(f"GATEHOUSE_{name.upper()}", str(value))
    with pytest.raises(ValidationError) as caught:
        Settings()
    (error,) = caught.value.errors()
    assert error["loc"] == (name,)
    assert "input_value" not in str(caught.value)


def test_every_number_and_choice_has_a_range():
    free = {"host", "store", "default_model", "policies", *ACCESS}
    assert set(OUT_OF_RANGE) == set(Settings.model_fields) - free


@pytest.mark.parametrize(
    ("limits", "rule"),
    [
        ({"max_candidates": 11, "max_queue_rows": 10}, "max_candidates must not be above"),
        ({"min_chunk_rows": 11, "max_batch_rows": 10}, "min_chunk_rows must not be above"),
        ({"max_body_bytes": 2048, "max_bodies_bytes": 2047}, "max_body_bytes must not be above"),
    ],
)
def test_limits_that_disagree_are_refused(limits, rule):
    with pytest.raises(ValidationError, match=rule):
        Settings.model_validate(limits)
    Settings.model_validate(dict.fromkeys(limits, 4096))


def test_several_processes_need_ports_for_their_metrics_beside_the_shared_one():
    with pytest.raises(ValidationError, match="more than one of processes needs metrics_port"):
        Settings(processes=2)
    for port in (9000, 8999, 8998):
        with pytest.raises(ValidationError, match="must be free of port"):
            Settings(processes=3, port=9000, metrics_port=port)
    with pytest.raises(ValidationError, match="must be free of port"):
        Settings(processes=3, metrics_port=65534)
    for port in (0, 8997, 9001):
        Settings(processes=3, port=9000, metrics_port=port)


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        ({"keys": "a", "keys_file": "b"}, "keys and keys_file must not both be set"),
        ({"tls_key": "a"}, "tls_key must not be set without tls_cert"),
    ],
)
def test_files_of_secrets_that_do_not_fit_together_are_refused(files, rule):
    with pytest.raises(ValidationError, match=rule):
        Settings.model_validate(files)


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        Settings.model_validate({"prot": 1})


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]  # that it is refused is the point
