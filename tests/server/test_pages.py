"""The pages' files: what is sent, how long browsers keep it, and that nothing else leaves the folder."""

import gzip
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from agent_forge.server import pages
from agent_forge.server.app import Door
from tests.server.house import HOME, house

MOST_BYTES = 150_000  # gzipped, everything that a first visit fetches
SCRIPT = "let a = 1;\n" * 200


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Return a folder as the build leaves it."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html><title>Agent Forge</title>")
    (tmp_path / "assets" / "index-ab12.js").write_text(SCRIPT)
    (tmp_path / "assets" / "anvil.svg").write_text("<svg/>")
    (tmp_path / "secret.js").write_text("no")
    return tmp_path


def client_of(folder: Path) -> TestClient:
    """Return a client of an application with nothing but the pages."""
    app = FastAPI()
    app.include_router(pages.router(folder))
    return TestClient(app)


def test_the_page_is_asked_for_again_and_assets_with_a_hash_are_kept(built: Path) -> None:
    client = client_of(built)
    assert client.get("/").headers["cache-control"] == "no-cache"
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert "immutable" in client.get("/assets/index-ab12.js").headers["cache-control"]
    assert client.get("/assets/anvil.svg").headers["cache-control"] == "no-cache"
    assert client.head("/").status_code == 200


def test_scripts_travel_packed_to_those_who_take_that(built: Path) -> None:
    client = client_of(built)
    packed = client.get("/assets/index-ab12.js", headers={"accept-encoding": "gzip"})
    plain = client.get("/assets/index-ab12.js", headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < len(SCRIPT) / 10
    assert "content-encoding" not in plain.headers
    assert packed.text == plain.text == SCRIPT


@pytest.mark.parametrize(
    "name",
    ["../secret.js", "%2e%2e/secret.js", "..%2fsecret.js", "..%5csecret.js", ".hidden.js", "link.js",
     "none.js", "notes.txt", "index-ab12.js%00.svg", ""],
)  # fmt: skip
def test_nothing_but_the_built_files_is_sent(built: Path, name: str) -> None:
    (built / "assets" / ".hidden.js").write_text("no")
    (built / "assets" / "notes.txt").write_text("no")
    (built / "assets" / "link.js").symlink_to(built / "secret.js")
    assert client_of(built).get(f"/assets/{name}").status_code in (404, 422)


def test_a_tree_without_a_build_says_how_to_make_one(tmp_path: Path) -> None:
    answer = client_of(tmp_path).get("/")
    assert answer.status_code == 404
    assert "make dashboard" in answer.text


def test_the_build_is_small_and_asks_nothing_of_other_machines() -> None:
    if not (pages.DIST / "index.html").is_file():
        pytest.skip("the dashboard is not built here; `make dashboard` builds it")
    files = [pages.DIST / "index.html", *(pages.DIST / "assets").iterdir()]
    sizes = {file.name: len(gzip.compress(file.read_bytes())) for file in files}
    assert sum(sizes.values()) <= MOST_BYTES, sizes
    page = files[0].read_text()
    assert "<script>" not in page
    assert "<style" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_server_shows_its_pages_without_a_key_and_with_its_policy(tmp_path: Path) -> None:
    door = Door(router=pages.router(), scope="", public=pages.PUBLIC)
    with house(tmp_path / "state", (door,)) as server:
        bare = TestClient(server.client.app, base_url=HOME)
        page = bare.get("/")
        assert page.status_code == (200 if (pages.DIST / "index.html").is_file() else 404)
        assert "script-src 'self';" in page.headers["content-security-policy"]
        assert bare.get("/assets/none.js").status_code == 404
        assert bare.get("/v1/jobs").status_code == 401
        assert "/assets/{name}" not in bare.get("/openapi.json").json()["paths"]
