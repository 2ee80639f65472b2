"""The page at /docs: what a service takes, from its own description and nothing from elsewhere."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = "body{font:16px/1.5 sans-serif;max-width:50em;margin:2em auto;padding:0 1em}"


def page(described: Mapping[str, Any]) -> str:
    """An HTML page of a service.

    Args:
        described: as /openapi.json has it.
    """
    info, schemas = described["info"], described.get("components", {}).get("schemas", {})
    lines = [
        f"<!doctype html><meta charset=utf-8><title>{escape(info['title'])}</title>",
        f"<style>{STYLE}</style>",
        f"<h1>{escape(info['title'])}</h1><p>{escape(info.get('description', ''))}</p>",
    ]
    for path, methods in described["paths"].items():
        for method, what in methods.items():
            lines.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            lines.append(f"<p>{escape(what.get('summary', ''))}</p>")
            lines.extend(_fields(what, schemas))
    lines.append("<p>For programs: <a href=openapi.json>openapi.json</a></p>")
    return "\n".join(lines)


def _fields(what: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    """The fields of a request's body, if it has one, and of what comes back."""
    if (asked := _schema(what.get("requestBody", {}), schemas)) is None:
        return
    yield "<p>A JSON object with</p>"
    yield from _listed(asked)
    responses = what["responses"]
    answer = _schema(responses["200"], schemas) or {"properties": {}}
    yield "<p>The answer has</p>"
    yield from _listed(answer)
    for field in answer["properties"].values():
        if (row := _named(field.get("items", {}), schemas)) is not None:
            yield "<p>Each of these has</p>"
            yield from _listed(row)
    for said in responses["200"]["content"].values():
        if (description := said["schema"].get("description")) is not None:
            yield f"<p>{escape(description)}</p>"
    yield "<p>Else there is <code>detail</code>, a sentence, with the status</p><dl>"
    for status, response in responses.items():
        if status != "200":
            yield f"<dt>{status}</dt><dd>{escape(response['description'])}</dd>"
    yield "</dl>"


def _listed(schema: Mapping[str, Any]) -> Iterator[str]:
    yield "<dl>"
    for name, field in schema["properties"].items():
        need = "" if name in schema.get("required", ()) else " (may be left out)"
        yield f"<dt><code>{escape(name)}</code>{need}</dt>"
        yield f"<dd>{escape(field.get('description', ''))}</dd>"
    yield "</dl>"


def _schema(of: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema of a body in JSON, if there is one."""
    return _named(of.get("content", {}).get("application/json", {}).get("schema", {}), schemas)


def _named(reference: Mapping[str, Any], schemas: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return schemas.get(reference.get("$ref", "").rpartition("/")[2])
