"""Kubernetes objects that scale a Deployment of the service on the traffic that is offered to it.

Both follow the series `gatehouse:replicas_demanded:rate1m` of `docker/prometheus/scaling.yml`: as
many replicas as the offered requests would keep busy. The Helm chart renders the same objects.
"""

from importlib.resources import files
from string import Template
from typing import Literal

_FILES = {"hpa": "hpa.yaml", "keda": "scaledobject.yaml"}


def render(
    kind: Literal["hpa", "keda"],
    *,
    name: str,
    namespace: str,
    min_replicas: int,
    max_replicas: int,
    busy_share: float,
    prometheus: str = "http://prometheus-operated.monitoring:9090",
) -> str:
    """Return the YAML of a HorizontalPodAutoscaler, or of a ScaledObject of KEDA.

    Args:
        kind: `hpa` needs prometheus-adapter in the cluster, `keda` needs KEDA.
        name: the Deployment, and the Service that Prometheus scrapes; the chart names them alike.
        namespace: both are in it.
        min_replicas: at least so many.
        max_replicas: at most so many.
        busy_share: the share of the time, 0 to 1, that replicas should be busy.
        prometheus: base URL of the Prometheus that KEDA asks.
    """
    template = Template(files(__name__).joinpath(_FILES[kind]).read_text(encoding="utf-8"))
    return template.substitute(
        name=name,
        namespace=namespace,
        min_replicas=min_replicas,
        max_replicas=max_replicas,
        busy_share=f"{busy_share:g}",
        prometheus=prometheus,
    )
