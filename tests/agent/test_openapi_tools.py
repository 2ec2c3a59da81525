"""Tools of an OpenAPI file send the requests that the file describes, to a real server."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent_forge.agent import Call, Toolbox, load_tools
from agent_forge.core.errors import ConfigError
from tests.agent.test_tool_sources import echo_server

PETS: dict[str, Any] = {
    "openapi": "3.0.3",
    "info": {"title": "pets", "version": "1"},
    "servers": [{"url": "{scheme}://HOST/v1/", "variables": {"scheme": {"default": "http"}}}],
    "paths": {
        "/pets/{petId}": {
            "parameters": [
                {"name": "petId", "in": "path", "required": True, "schema": {"type": "string"}},
            ],
            "get": {
                "operationId": "showPet", "summary": "Show a pet.", "description": "By its id.",
                "parameters": [
                    {"$ref": "#/components/parameters/Tags"},
                    {"name": "X-Key", "in": "header", "schema": {"type": "string"}},
                ],
            },
            "delete": {"summary": "Remove it."},
        },
        "/pets": {
            "post": {
                "operationId": "addPet", "x-destructive": False,
                "requestBody": {"required": True, "content": {"application/json": {
                    "schema": {"$ref": "#/components/schemas/Pet"}}}},
            },
            "put": {
                "operationId": "setNames",
                "requestBody": {"required": True, "content": {"application/json": {
                    "schema": {"type": "array", "items": {"type": "string"}}}}},
            },
        },
    },
    "components": {
        "parameters": {"Tags": {
            "name": "tags", "in": "query", "description": "which  tags",
            "schema": {"type": "array", "items": {"type": "string", "enum": ["a b", "c"]}}}},
        "schemas": {"Pet": {"type": "object", "title": "Pet", "required": ["name"], "properties": {
            "name": {"type": "string"}, "friend": {"$ref": "#/components/schemas/Pet"}}}},
    },
}  # fmt: skip


def write(path: Path, url: str, document: Any = PETS) -> Path:
    text = json.dumps(document).replace("HOST", url.removeprefix("http://"))
    path.write_text(yaml.safe_dump(json.loads(text)) if path.suffix == ".yaml" else text)
    return path


@pytest.mark.parametrize("name", ["api.json", "api.yaml"])
def test_each_operation_is_a_tool_with_its_arguments(tmp_path: Path, name: str) -> None:
    tools = {t.name: t for t in load_tools([str(write(tmp_path / name, "http://h"))])}
    assert {name: tool.destructive for name, tool in tools.items()} == {
        "showPet": False, "delete_v1_pets_petId": True, "setNames": True, "addPet": False,
    }  # fmt: skip
    assert tools["showPet"].description == "Show a pet. By its id."
    assert tools["showPet"].parameters["required"] == ["petId"]
    assert tools["showPet"].parameters["properties"]["tags"] == {
        "type": "array", "items": {"type": "string", "enum": ["a b", "c"]},
        "description": "which tags",
    }  # fmt: skip
    assert tools["addPet"].parameters["required"] == ["name"]
    assert set(tools["addPet"].parameters["properties"]) == {"name", "friend"}


def test_calls_become_requests_and_no_argument_leaves_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_OPENAPI_HEADERS", '{"X-Key": "from the environment"}')
    with echo_server() as url:
        tools = load_tools([str(write(tmp_path / "api.json", url))])
        box = Toolbox(tools, allow=["setNames", "delete_v1_pets_petId"], confirm=False)

        def said(name: str, /, **arguments: Any) -> dict[str, Any]:
            result = box.run(Call(name, arguments))
            assert not result.error, result.text
            answer: dict[str, Any] = json.loads(result.text)
            return answer

        shown = said("showPet", petId="../a?b#c", tags=["a b", "c"])
        assert shown["path"] == "/v1/pets/..%2Fa%3Fb%23c?tags=a+b&tags=c"
        assert shown["key"] == "from the environment"
        assert said("showPet", petId="1", **{"X-Key": "mine"})["key"] == "mine"
        added = said("addPet", name="Ж", friend={"name": "b"})
        assert added["body"] == {"name": "Ж", "friend": {"name": "b"}}
        assert added["method"] == "POST"
        assert said("setNames", body=["a", "b"])["body"] == ["a", "b"]
        assert said("delete_v1_pets_petId", petId="1")["method"] == "DELETE"
        assert "must be one of" in box.run(Call("showPet", {"petId": "1", "tags": ["d"]})).text
        smuggled = box.run(Call("showPet", {"petId": "1", "X-Key": "a\r\nHost: evil"}))
        assert "control character" in smuggled.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"openapi": "2.0"}, "OpenAPI 3 is read"),
        ({"servers": []}, "http"),
        ({"servers": [{"url": "/v1"}]}, "servers"),
        ({"paths": {}}, "no operation"),
        (
            {"paths": {"/a": {"post": {"requestBody": {"content": {"text/csv": {}}}}}}},
            "JSON bodies",
        ),
        ({"paths": {"/a": {"get": {"parameters": [{"$ref": "#/no"}]}}}}, "leads nowhere"),
    ],
)
def test_a_file_that_cannot_be_used_says_what_is_wrong(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "api.json", "http://h", {**PETS, **change})
    with pytest.raises(ConfigError, match=message):
        load_tools([str(path)])
