"""Settings: from flags and the environment, within their ranges."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import NEVER_EMPTY, Settings, rule, variable, variable_name, variable_warnings


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


def test_environment_variables_set_settings(monkeypatch):
    monkeypatch.setenv("GATEHOUSE_PORT", "9000")
    monkeypatch.setenv("GATEHOUSE_STORE", "/srv/models")
    monkeypatch.setenv("PORT", "1")
    settings = Settings()
    assert (settings.port, settings.store) == (9000, Path("/srv/models"))


@pytest.mark.parametrize("value", ["", "  "])
@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_variable_counts_as_unset_or_is_an_error(monkeypatch, name, value):
    monkeypatch.setenv(variable_name(name), value)
    if name in NEVER_EMPTY:
        with pytest.raises(ValidationError, match="must not be empty") as caught:
            Settings()
        assert [error["loc"] for error in caught.value.errors()] == [(name,)]
    else:
        assert Settings() == Settings.model_construct()


def test_what_would_open_something_is_never_empty():
    """Listening on every address, scoring without a key, HTTP instead of HTTPS."""
    assert {"host", "keys", "keys_file", "tls_cert", "tls_key"} == NEVER_EMPTY


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_argument_is_an_error_unless_it_is_a_list(name):
    if name == "cors_origins":
        assert Settings(cors_origins="").cors_origins == ""
        return
    with pytest.raises(ValidationError, match="must not be empty"):
        Settings.model_validate({name: ""})


LINK = {
    "GATEHOUSE_SERVICE_HOST": "10.96.0.7",
    "GATEHOUSE_SERVICE_PORT": "8000",
    "GATEHOUSE_SERVICE_PORT_HTTP": "8000",
    "GATEHOUSE_PORT": "tcp://10.96.0.7:8000",
    "GATEHOUSE_PORT_8000_TCP": "tcp://10.96.0.7:8000",
    "GATEHOUSE_PORT_8000_TCP_PROTO": "tcp",
    "GATEHOUSE_PORT_8000_TCP_PORT": "8000",
    "GATEHOUSE_PORT_8000_TCP_ADDR": "10.96.0.7",
}


def of_service(name: str) -> dict[str, str]:
    """The variables that Kubernetes sets for a service of this name."""
    return {key.replace("GATEHOUSE", name): value for key, value in LINK.items()}


@pytest.mark.parametrize("service", ["GATEHOUSE", "GATEHOUSE_METRICS", "GATEHOUSE_CANARY"])
def test_variables_of_a_kubernetes_service_set_nothing_and_are_one_warning(monkeypatch, service):
    links = of_service(service)
    for name, value in links.items():
        monkeypatch.setenv(name, value)
    assert Settings() == Settings.model_construct()
    (warning,) = variable_warnings(links)
    assert "Kubernetes" in warning
    assert all(name in warning for name in links)
    assert "10.96.0.7" not in warning


def test_url_as_another_setting_is_not_a_service_link(monkeypatch):
    monkeypatch.setenv("GATEHOUSE_STORE", "tcp://10.96.0.7:80")
    assert Settings().store == Path("tcp://10.96.0.7:80")
    assert variable_warnings({"GATEHOUSE_STORE": "tcp://10.96.0.7:80"}) == []


def test_an_unknown_variable_is_a_warning_with_the_nearest_name():
    warnings = variable_warnings(
        {"GATEHOUSE_PROT": "s3cr3t", "GATEHOUSE_ZZZ": "", "PATH": "/bin", "GATEHOUSE_PORT": "1"}
    )
    assert warnings == [
        "unknown environment variable GATEHOUSE_PROT is ignored; did you mean GATEHOUSE_PORT?",
        "unknown environment variable GATEHOUSE_ZZZ is ignored",
    ]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_variable_that_is_known(name):
    assert variable_warnings({variable_name(name): "1"}) == []


def test_names_of_variables_may_be_in_lower_case(monkeypatch):
    monkeypatch.setenv("gatehouse_port", "9000")
    assert Settings().port == 9000
    assert variable("port") == "9000"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "an integer between 0 and 65535"),
        ("metrics_port", "an integer between 0 and 65535"),
        ("max_candidates", "an integer of 1 or more"),
        ("store_poll_s", "a number above 0 and at most 3600"),
        ("lane_hang_s", "a number above 0"),
        ("slow_request_ms", "a number of 0 or more"),
        ("device", "one of auto, cpu, cuda"),
    ],
)
def test_a_rule_names_type_and_range(name, text):
    assert rule(name) == text


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
    "record_share": [-0.1, 1.1],
    "record_max_bytes": [(1 << 20) - 1],
    "gpu_table_bytes": [-1],
    "record_ids": ["yes"],
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
    free = {
        *("host", "store", "model_name", "default_model", "policies", "record"),
        *ACCESS,
    }
    assert set(OUT_OF_RANGE) == set(Settings.model_fields) - free


@pytest.mark.parametrize(
    ("limits", "rule"),
    [
        ({"max_candidates": 11, "max_queue_rows": 10}, "max_candidates must not be above"),
        ({"min_chunk_rows": 11, "max_batch_rows": 10}, "min_chunk_rows must not be above"),
        ({"max_body_bytes": 2048, "max_bodies_bytes": 2047}, "max_body_bytes must not be above"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(limits, rule):
    with pytest.raises(ValidationError, match=rule):
        Settings.model_validate(limits)
    Settings.model_validate(dict.fromkeys(limits, 4096))


def test_metrics_port_is_not_the_port_itself():
    with pytest.raises(ValidationError, match=r"metrics_port must not be port \(9000\)"):
        Settings(port=9000, metrics_port=9000)
    for port in (0, 8999, 9001, None):
        Settings(processes=3, port=9000, metrics_port=port)
    Settings(port=0, metrics_port=0)  # two free ones


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        ({"keys": "a", "keys_file": "b"}, "keys and keys_file must not both be set"),
        ({"tls_key": "a"}, "tls_key must not be set without tls_cert"),
    ],
)
def test_secrets_that_do_not_fit_together_are_refused(files, rule):
    with pytest.raises(ValidationError, match=rule):
        Settings.model_validate(files)


def test_an_unknown_setting_is_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        Settings.model_validate({"prot": 1})


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]  # that it is refused is the point
