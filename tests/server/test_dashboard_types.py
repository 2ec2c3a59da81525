"""The dashboard's types are the types of the service as it is."""

import pytest

from scripts import dashboard_types
from scripts.dashboard_types import DESCRIPTION, GENERATOR, TYPES

STALE = "the service's interface has changed: run `make dashboard-types` and commit what it writes"


def test_the_description_that_types_are_made_of_is_the_services_own() -> None:
    assert dashboard_types.described() == DESCRIPTION.read_text(encoding="utf-8"), STALE


def test_the_types_are_made_of_that_description() -> None:
    if not GENERATOR.exists():
        pytest.skip("openapi-typescript is not installed here; `make dashboard` fetches it")
    types = dashboard_types.generated(DESCRIPTION.read_text(encoding="utf-8"))
    assert types == TYPES.read_text(encoding="utf-8"), STALE


def test_a_trimmed_description_keeps_fields_that_are_called_like_prose() -> None:
    schemas = {
        "Answer": {
            "title": "Answer", "description": "prose",
            "properties": {"title": {"type": "string", "title": "Title"}, "tags": {}},
        },
        "Unused": {},
    }  # fmt: skip
    whole = {"openapi": "3.1.0", "info": {"title": "t"}, "components": {"schemas": schemas}}
    trimmed = dashboard_types.trimmed(whole, ["Answer"])
    assert trimmed["components"]["schemas"] == {
        "Answer": {"properties": {"title": {"type": "string"}, "tags": {}}}
    }
