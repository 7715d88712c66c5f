"""The part of the Helm chart's schema that lists the settings: `python -m tests.support.chart`.

Writes it into values.schema.json, after a setting was added or changed; a test compares both.
"""

import json
from typing import Any, get_args

from app.settings import Settings
from tests import REPOSITORY

SCHEMA = REPOSITORY / "docker" / "helm" / "gatehouse" / "values.schema.json"
SET_BY_THE_CHART = frozenset(
    {
        *("host", "port", "metrics_port", "processes", "store", "model_name", "policies", "keys"),
        *("keys_file", "tls_cert", "tls_key", "drain_delay_s", "drain_timeout_s"),
    }
)
"""Settings that other values of the chart stand for, and that a container never needs."""


def settings_schema() -> dict[str, Any]:
    """Return the JSON Schema of the chart's value `settings`."""
    properties = {
        name: {**_kind(field.annotation), "description": field.description}
        for name, field in Settings.model_fields.items()
        if name not in SET_BY_THE_CHART
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _kind(annotation: Any) -> dict[str, Any]:
    kinds = set(get_args(annotation)) - {type(None)} or {annotation}
    if kinds == {int}:
        return {"type": "integer"}
    if kinds == {float}:  # `helm --set` makes strings of them
        return {"type": ["number", "string"], "pattern": "^[0-9.]+$"}
    if all(isinstance(kind, str) for kind in kinds):
        return {"enum": list(get_args(annotation))}
    return {"type": "boolean" if kinds == {bool} else "string"}


def main() -> None:
    """Write the settings into the schema."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    schema["properties"]["settings"] = settings_schema()
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
