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
    """The fields of a request's body, if it has one."""
    content = what.get("requestBody", {}).get("content", {}).get("application/json")
    if content is None:
        return
    schema = schemas[content["schema"]["$ref"].rpartition("/")[2]]
    yield "<p>A JSON object with</p><dl>"
    for name, field in schema["properties"].items():
        need = "" if name in schema.get("required", ()) else " (may be left out)"
        yield f"<dt><code>{escape(name)}</code>{need}</dt>"
        yield f"<dd>{escape(field.get('description', ''))}</dd>"
    yield "</dl>"
