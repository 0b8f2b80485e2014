"""The contract as a page, without scripts: it documents, and sends nothing."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml
from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, StrictUndefined

from handlers.contract.asyncapi import SCHEMAS, document

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def as_yaml(contract: dict[str, Any]) -> str:
    """Return the document as it is committed."""
    text: str = yaml.safe_dump(contract, sort_keys=False, allow_unicode=True, width=110)
    return text


@cache
def page() -> str:
    """Return the page."""
    contract = document()
    text = files("handlers.http").joinpath("templates/contract.html").read_text(encoding="utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(text)
    shapes = [(name, as_yaml(schema)) for name, schema in contract["components"]["schemas"].items()]
    return template.render(info=contract["info"], entries=_entries(contract), shapes=shapes)


def _entries(contract: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each message with the fields of its data."""
    entries = []
    for operation in contract["operations"].values():
        name = operation["messages"][0]["$ref"].rpartition("/")[2]
        channel = contract["channels"][operation["channel"]["$ref"].rpartition("/")[2]]
        payload = contract["components"]["messages"][name]["payload"]
        data = payload["allOf"][1]["properties"]["data"] if "allOf" in payload else payload
        schema = contract["components"]["schemas"][data["$ref"].removeprefix(SCHEMAS)]
        fields = [
            {
                "name": field,
                "type": _type(said),
                "required": field in schema.get("required", ()),
                "description": said.get("description", ""),
            }
            for field, said in schema.get("properties", {}).items()
        ]
        about = {"name": name, "action": operation["action"], "address": channel["address"]}
        entries.append({**about, "summary": channel["description"], "fields": fields})
    return entries


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).removeprefix(SCHEMAS)
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "items" in schema:
        return f"list of {_type(schema['items'])}"
    return str(schema.get("format", schema.get("type", "any")))


def contract_pages() -> APIRouter:
    """Return ``/asyncapi``, and its document."""
    router = APIRouter()

    @router.get("/asyncapi")
    def show_contract() -> Response:
        """Show the page."""
        return HTMLResponse(page(), headers=HEADERS)

    @router.get("/asyncapi.yaml")
    def download_contract() -> Response:
        """Download the document."""
        return Response(as_yaml(document()), media_type="application/yaml", headers=HEADERS)

    return router
