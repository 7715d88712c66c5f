"""What tests of this folder ask a service that runs on their store."""

from app.settings import Settings


def settings(folder, **changes):
    return Settings(store=folder, lanes=1, request_timeout_ms=30_000, **changes)


def active(parts):
    return [str(model) for model in parts.service.registry.active_models()]


def roles(parts, model="tiny"):
    registry = parts.service.registry
    return {
        version.manifest.version: str(registry.role(version))
        for version in registry.versions(model)
    }


def gauge(parts, name, **labels):
    return parts.metrics.registry.get_sample_value(f"gatehouse_{name}", labels)
