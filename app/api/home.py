"""The home page at `/`: the active models, an example request each, and links."""

import html
import json

from app.api.examples import example_request
from app.artifacts.loader import Model
from app.artifacts.model_tables import NO_TABLES, ModelTables
from app.lifecycle.registry import Registry

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Gatehouse</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 3rem auto;
         padding: 0 1rem; color: #1c2733; background: #fbfbf9 }}
  h1 {{ margin-bottom: 0 }}
  h1 + p {{ color: #5b6b7b; margin-top: 0 }}
  nav a {{ display: inline-block; margin: 0 1.2rem .5rem 0 }}
  a {{ color: #0b5cad }}
  section {{ border-top: 1px solid #d8dee4; margin-top: 1.5rem }}
  table {{ border-collapse: collapse }}
  td, th {{ text-align: left; padding: .15rem 1.2rem .15rem 0; font-weight: normal }}
  th {{ color: #5b6b7b }}
  pre {{ background: #f0f2ee; padding: .8rem; white-space: pre-wrap; font-size: .85rem }}
</style>
<h1>Gatehouse</h1>
<p>Online ranking: one user, many candidates, a score per task, one rank score.</p>
<nav>
  <a href="/console">Console</a>
  <a href="/docs">API documentation</a>
  <a href="/v1/models">Models</a>
  <a href="/v1/engine">Engine</a>
  <a href="/metrics">Metrics</a>
  <a href="/readyz">Readiness</a>
</nav>
{refused}
{models}
</html>
"""

_MODEL = r"""<section>
<h2>{name}, version {version}</h2>
<table>
<tr><th>network<td>{architecture}
<tr><th>tasks<td>{tasks}
<tr><th>details<td><a href="/v1/models/{name}">/v1/models/{name}</a>
</table>
<p>Example request{condition}:</p>
<pre>curl -s {origin}/v1/models/{name}/score \{authorization}
  -H 'content-type: application/json' \
  -d '{example}'</pre>
</section>
"""

_AUTHORIZATION = """
  -H "authorization: Bearer $GATEHOUSE_KEY" \\"""


def home_page(registry: Registry, origin: str, *, needs_key: bool = False) -> str:
    """Return the page as HTML; `origin` is this server's address as the browser uses it."""
    models = "".join(
        _model(model, registry.tables.get(model, NO_TABLES), origin, needs_key)
        for model in registry.active_models()
    )
    return _PAGE.format(
        refused=_refused(len(registry.refused)),
        models=models or "<section><p>No model is active yet.</p></section>",
    )


def _refused(count: int) -> str:
    if not count:
        return ""
    versions = "One version is" if count == 1 else f"{count} versions are"
    return f'<p><strong>{versions} refused.</strong> <a href="/console#models">See why.</a></p>'


def _model(model: Model, tables: ModelTables, origin: str, needs_key: bool) -> str:
    manifest = model.manifest
    fields = {
        "name": manifest.name,
        "version": str(manifest.version),
        "architecture": manifest.architecture,
        "tasks": ", ".join(f"{task.name} ({task.unit or task.kind})" for task in manifest.tasks),
        "origin": origin,
        "condition": " (set GATEHOUSE_KEY to your API key)" if needs_key else "",
        "authorization": _AUTHORIZATION if needs_key else "",
        "example": json.dumps(example_request(model, tables=tables, shows_users=not needs_key)),
    }
    return _MODEL.format(**{name: html.escape(text, quote=False) for name, text in fields.items()})
