"""Models made through the service by the real `forge`: imported, merged, exported."""

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from agent_forge.checkpoint import Checkpoint
from agent_forge.server.composer.client import Composer
from agent_forge.server.doors import open_doors
from agent_forge.server.serving import ServeSettings, application, opened
from tests.server.conftest import until
from tests.server.house import HOME


@pytest.mark.slow
def test_a_model_is_imported_merged_and_exported_by_one_route(
    tmp_path: Path, tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine a job of background priority would not come to run for a long time.
    monkeypatch.setattr("agent_forge.server.launchers.local.give_way", lambda _: None)
    settings = ServeSettings(
        state=tmp_path / "state", watch=[], imports={"tiny": str(tiny_checkpoint.path)},
        requests_per_minute=100_000,
    )  # fmt: skip
    with opened(settings) as service:
        service.composer = Composer(early=False)
        headers = {"authorization": f"Bearer {service.ring.create('tests', ['admin'])[1]}"}
        app = application(service, settings, open_doors(service))
        with TestClient(app, base_url=HOME, headers=headers) as client:

            def create(kind: str, **params: Any) -> tuple[str, dict[str, Any]]:
                """Create a model; return the id that is reserved for it, and its job's results."""
                answer = client.post("/models/create", json={"type": kind, "params": params})
                assert answer.status_code == 202, answer.text
                job = f"/v1/jobs/{answer.json()['metadata']['task_id']}"
                until(lambda: client.get(job).json()["ended"])
                ended = client.get(job).json()
                assert ended["state"] == "succeeded", client.get(f"{job}/log").text
                return answer.json()["model_id"], ended["results"]

            imported, source = create("import", source="tiny")
            halves = [{"model": imported, "parameters": {"weight": 0.5}}] * 2
            recipe = {"merge_method": "linear", "models": halves, "dtype": "bfloat16"}
            merged, results = create("merge", recipe=recipe)
            known = {one["id"]: one for one in client.get("/models/list").json()}
            assert known[results["checkpoint_id"]]["size"] > 0
            parents = client.get(f"/v1/checkpoints/{merged}").json()["parents"]
            assert set(parents) == {source["checkpoint_id"]} < set(known)
            exported, _ = create("export", model_id=merged, format="gguf")
            listed = client.get(f"/v1/exports/{exported}").json()
            (file,) = [one for one in listed if one["name"].endswith(".gguf")]
            content = client.get(f"/v1/exports/{exported}/{file['name']}").content
            assert (content[:4], len(content)) == (b"GGUF", file["bytes"])
