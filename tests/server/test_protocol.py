"""The older protocol and the routes around it, over a server whose jobs are stubs."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_forge.checkpoint import Checkpoint, encryption
from agent_forge.server.jobs import CANCELLED_MESSAGE, JobState
from agent_forge.server.store import StoredEvent, add_event
from tests.server.conftest import until
from tests.server.house import House, house

QUICK: dict[str, Any] = {"phase_name": "bitnet", "config": {"train": {"steps": 3}}}
LONG = {"phase_name": "bitnet", "config": {"train": {"steps": 10_000}, "gate": {"samples": 20}}}
ENDED = (JobState.SUCCEEDED, JobState.REJECTED, JobState.FAILED, JobState.INTERRUPTED)


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory, shelf: Checkpoint) -> Iterator[House]:
    """Return a server that shows the tiny checkpoint, shared by the tests of this file."""
    state = tmp_path_factory.mktemp("service") / "state"
    with house(state, watch=(shelf.path.parent,)) as opened:
        opened.service.registry.scan()
        yield opened


@pytest.fixture
def server(stocked: House) -> Iterator[House]:
    """Return the server without a job that waits or runs, and leave it so."""
    yield stocked
    for job in stocked.service.supervisor.list():
        if job.state in ("queued", "running"):
            stocked.service.supervisor.cancel(job.id)
    stocked.service.supervisor.set_queue(paused=False)
    until(lambda: not stocked.service.supervisor.queue().active)


@pytest.fixture
def no_job(stocked: House) -> Iterator[None]:
    """Check that the test starts no job."""
    before = len(stocked.service.supervisor.list())
    yield
    assert len(stocked.service.supervisor.list()) == before


def ended(server: House, task_id: str) -> dict[str, Any]:
    """Wait until a job has ended, and return it."""
    until(lambda: server.get(f"/v1/jobs/{task_id}")["state"] in [*ENDED, JobState.CANCELLED])
    return dict(server.get(f"/v1/jobs/{task_id}"))


def test_a_server_that_never_had_a_job_is_idle(tmp_path: Path) -> None:
    with house(tmp_path / "state") as server:
        for path in ("/phases/status", "/v1/phases/status"):
            assert server.get(path) == {"phase": None, "progress": 0.0, "message": "idle"}
        assert server.get("/models/list") == []


@pytest.mark.parametrize("root", ["", "/v1"])
def test_the_protocol_starts_a_phase_and_tells_how_far_it_is(server: House, root: str) -> None:
    started = server.post(f"{root}/phases/start", QUICK)
    assert set(started) == {"task_id", "status"}
    ended(server, started["task_id"])
    status = server.get(f"{root}/phases/status?task_id={started['task_id']}")
    assert set(status) == {"phase", "progress", "message"}
    assert (status["phase"], status["progress"]) == ("bitnet", 100.0)
    assert server.get(f"{root}/phases/status") == status, "the newest job when none is active"


def test_status_without_a_task_is_of_the_job_that_runs(server: House) -> None:
    task_id = server.post("/phases/start", LONG)["task_id"]
    server.post("/phases/start", QUICK)
    until(lambda: server.get("/phases/status")["progress"] > 0)
    assert server.get(f"/v1/jobs/{task_id}")["state"] == "running"


def test_status_of_a_run_is_of_the_phase_that_runs(server: House) -> None:
    supervisor = server.service.supervisor
    supervisor.set_queue(paused=True)
    body = {"phase_name": "run-all", "config": {"phases": ["cognate", "bitnet"]}}
    task_id = server.post("/phases/start", body)["task_id"]
    path = f"/phases/status?task_id={task_id}"
    assert server.get(path) == {"phase": "cognate", "progress": 0.0, "message": "queued"}
    event = StoredEvent(
        seq=0, job_id=task_id, attempt=1, time=0.0, kind="progress", phase="bitnet", percent=40.0,
        progress=90.0, metrics={"loss": 2.5},
    )  # fmt: skip
    supervisor.change(lambda c: add_event(c, event, "2-bitnet:a", 1))
    assert (server.get(path)["phase"], server.get(path)["progress"]) == ("bitnet", 40.0)
    server.post(f"/v1/jobs/{task_id}/cancel", status=200)
    assert server.get(path)["phase"] == "bitnet"


def test_curves_of_a_job_come_by_metric_and_go_on_behind_a_number(server: House) -> None:
    task_id = server.post("/phases/start", QUICK)["task_id"]
    ended(server, task_id)
    answer = server.get(f"/v1/jobs/{task_id}/series")
    (curve,) = answer["series"]
    assert (curve["phase"], curve["name"], curve["total"]) == ("bitnet", "value", 3)
    assert (curve["step"], curve["value"]) == ([1, 2, 3], [1.0, 2.0, 3.0])
    rest = server.get(f"/v1/jobs/{task_id}/series?after={curve['seq'][1]}")["series"]
    assert [one["value"] for one in rest] == [[3.0]]
    last = server.get(f"/v1/jobs/{task_id}/series?after={answer['after']}")
    assert last == {"after": answer["after"], "series": []}


def test_a_list_of_overrides_is_as_good_as_an_object(server: House) -> None:
    as_object = {
        "train": {"steps": 3},
        "optim@train.optim": "muon",
        "gate": {"tasks": {"text": 0.9}},
    }
    as_list = ["train.steps=3", "optim@train.optim=muon", "gate.tasks.text=0.9"]
    jobs = [
        server.post("/v1/jobs", {"phase_name": "bitnet", "config": config})
        for config in (as_object, as_list)
    ]
    assert jobs[0]["overrides"] == jobs[1]["overrides"] == as_list


def test_the_same_idempotency_key_starts_one_job(server: House) -> None:
    headers = {"idempotency-key": "k-1"}
    first, second = (server.post("/phases/start", QUICK, headers=headers) for _ in range(2))
    assert first["task_id"] == second["task_id"]
    answer = server.client.post("/phases/start", json=LONG, headers=headers)
    assert answer.status_code == 422


PATHS = [
    "/etc/passwd", "../secret", "a/../../b", "..", "%2e%2e%2fetc", "..%252fetc", "a\\b", "C:\\x",
    "file:///etc/passwd", "hf:someone/thing", "a#b", "a\0b", "~root", "$HOME", "${oc.env:HOME}", "a b",
]  # fmt: skip


@pytest.mark.usefixtures("no_job")
@pytest.mark.parametrize("path", PATHS)
def test_no_setting_of_a_client_is_a_path(server: House, path: str) -> None:
    for config in (
        {"sources": [path]}, {"gate": {"base": path}}, {"data": {"text": [path]}},
        {"data": {"rows": [path]}}, [f"sources=[{path}]"], [f"++data.text=['{path}']"],
        [f"gate.base={path}"],
    ):  # fmt: skip
        server.refused("/phases/start", {"phase_name": "bitnet", "config": config})


@pytest.mark.usefixtures("no_job")
@pytest.mark.parametrize(
    "config",
    [{"out": "x"}, {"data": {"cache": "x"}}, ["out=x"], ["+out=x"], ["++out=x"], ["~out"],
     ["data={cache: x}"], ["data.cache=x"], {"search": {"ray_address": "x:1"}}, ["hydra.run.dir=x"],
     ["hydra/launcher=joblib"], ["+hydra.searchpath=[x]"], {"_target_": "os.system"},
     {"train": {"_target_": "os.system"}}, ["+train._target_=builtins.exec"],
     ["seed=${oc.env:SECRET}"], {"seed": "${oc.env:SECRET}"}, ["model=../../x"], ["+_shared/data@x=data"],
     ["optim@out=muon"], {"train": {}}, ["train"], {"train": {"stepz": 1}}, {"train": {"steps": "many"}},
     ["train.steps=1,2"], {"a" * 10_000: 1}, ["runtime.background=false"], {"x": {"y": {"z": 1}}}],
)  # fmt: skip
def test_settings_of_the_server_code_and_typos_are_refused(server: House, config: Any) -> None:
    message = server.refused("/phases/start", {"phase_name": "bitnet", "config": config})
    assert "\n" not in message
    assert len(message) < 1000


def test_a_typo_is_answered_with_the_nearest_name(server: House) -> None:
    config = {"train": {"stepz": 5}}
    message = server.refused("/phases/start", {"phase_name": "bitnet", "config": config})
    assert "did you mean 'train.steps'" in message
    message = server.refused("/phases/start", {"phase_name": "bitnett"})
    assert "did you mean 'bitnet'" in message


def test_unknown_fields_and_shapes_are_refused(server: House) -> None:
    for body in (
        {}, [], 1, None, {"phase_name": 1}, {"phase_name": "bitnet", "confg": {}},
        {"phase_name": "bitnet", "config": 5}, {"phase_name": "bitnet", "config": [1]},
    ):  # fmt: skip
        assert server.client.post("/phases/start", json=body).status_code == 422
    broken = server.client.post(
        "/phases/start", content=b"{", headers={"content-type": "application/json"}
    )
    assert broken.status_code == 422
    deep = "[" * 100_000 + "]" * 100_000
    answer = server.client.post(
        "/phases/start", content=f'{{"phase_name": "bitnet", "config": {deep}}}',
        headers={"content-type": "application/json"},
    )  # fmt: skip
    assert answer.status_code in (400, 422)


def test_jobs_show_no_directory_of_the_server(stocked: House, tmp_path: Path) -> None:
    source = stocked.get("/v1/checkpoints?phase=import")[0]["id"]
    config = {"train": {"steps": 2}, "sources": [source], "data": {"text": ["mine"]}}
    job = stocked.post("/v1/jobs", {"phase_name": "bitnet", "config": config})
    assert job["sources"] == [source]
    ended(stocked, job["id"])
    texts = [
        stocked.client.get(path).text
        for path in (
            f"/v1/jobs/{job['id']}", f"/v1/jobs/{job['id']}/events", "/v1/checkpoints",
            f"/v1/checkpoints/{source}", f"/v1/checkpoints/{source}/manifest",
            f"/v1/checkpoints/{source}/card", f"/v1/checkpoints/{source}/lineage", "/models/list",
        )
    ]  # fmt: skip
    assert not [
        text for text in texts if re.search(r"/tmp|/home|/root|" + re.escape(str(tmp_path)), text)
    ]


def test_an_unknown_source_is_named(stocked: House) -> None:
    config = {"sources": ["0123456789abcdef"]}
    message = stocked.refused("/phases/start", {"phase_name": "bitnet", "config": config}, 404)
    assert "0123456789abcdef" in message


def test_jobs_are_paused_resumed_cancelled_and_reordered(server: House) -> None:
    task_id = server.post("/phases/start", LONG)["task_id"]
    until(lambda: server.get(f"/v1/jobs/{task_id}")["progress"] > 0)
    waiting = [server.post("/phases/start", LONG)["task_id"] for _ in range(3)]
    order = server.post("/v1/jobs/reorder", {"ids": [waiting[2], waiting[0]]}, 200)
    assert [job["id"] for job in order] == [waiting[2], waiting[0], waiting[1]]
    assert [job["id"] for job in server.get("/v1/queue")["jobs"]] == [job["id"] for job in order]
    server.client.put("/v1/queue", json={"paused": True})
    server.post(f"/v1/jobs/{task_id}/pause", status=200)
    until(lambda: server.get(f"/v1/jobs/{task_id}")["state"] == "paused")
    server.post(f"/v1/jobs/{task_id}/resume", status=200)
    for one in (task_id, *waiting):
        server.post(f"/v1/jobs/{one}/cancel", status=200)
    for job in (ended(server, one) for one in (task_id, *waiting)):
        assert (job["state"], job["message"]) == ("cancelled", CANCELLED_MESSAGE)
    assert server.client.post(f"/v1/jobs/{task_id}/resume").status_code == 409


def test_ids_that_nobody_has_are_not_found(server: House) -> None:
    for path in ("/v1/jobs/x", "/v1/pipelines/x", "/v1/checkpoints/x", "/v1/checkpoints/x/files"):
        assert server.client.get(path).status_code == 404, path
    assert server.client.get("/phases/status?task_id=x").status_code == 404
    assert server.client.get("/v1/phases/bitnett/schema").status_code == 422
    assert server.client.get("/v1/nothing").json()["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "%2e%2e",
        "%252e%252e",
        "..%2f..%2fetc",
        "a%5cb",
        "a%00b",
        "%2fetc%2fpasswd",
        "a.b",
        "é",
    ],
)
def test_ids_are_never_paths(server: House, name: str) -> None:
    for path in ("/v1/jobs/{}", "/v1/checkpoints/{}", "/v1/checkpoints/{}/files", "/v1/exports/{}"):
        assert server.client.get(path.format(name)).status_code in (404, 422)


def test_a_pipeline_starts_with_its_phases_and_is_listed(server: House) -> None:
    body = {"phases": ["bitnet", "compress"], "config": {"bitnet": {"train": {"steps": 5}}},
            "experiment": "tiny"}  # fmt: skip
    started = server.post("/v1/pipelines", body)
    assert started["overrides"] == [
        "experiment=tiny",
        "phases=[bitnet,compress]",
        "bitnet.train.steps=5",
    ]
    assert [part["name"] for part in started["phases"]] == ["bitnet", "compress"]
    assert {part["state"] for part in started["phases"]} <= {"pending", "queued", "running"}
    assert server.get("/v1/pipelines")[0]["id"] == started["id"]
    server.post(f"/v1/pipelines/{started['id']}/cancel", status=200)
    other = server.post("/phases/start", QUICK)["task_id"]
    assert server.client.get(f"/v1/pipelines/{other}").status_code == 404
    assert "no phase 'x'" in server.refused("/v1/pipelines", {"phases": ["x"]})
    for config in ({"bitnet": {"sources": ["a"]}}, {"run_dir": "x"}, {"bitnet": {"out": "x"}}):
        server.refused("/v1/pipelines", {"config": config})


def test_run_all_is_a_phase_name_too(server: House) -> None:
    job = server.post("/v1/jobs", {"phase_name": "run_all", "config": {"phases": ["bitnet"]}})
    assert job["command"] == "run-all"
    server.post(f"/v1/jobs/{job['id']}/cancel", status=200)


# Models


def test_models_list_has_the_fields_of_the_protocol(stocked: House, tiny_checkpoint: Any) -> None:
    model = stocked.get("/models/list")[0]
    assert model["id"] == tiny_checkpoint.id
    assert model["name"] == "tiny"
    assert model["size"] == tiny_checkpoint.manifest.deployable_bytes
    assert model["encrypted"] is False
    assert {"id", "name", "size", "metrics"} <= set(model)


def test_a_phase_creates_a_model_under_a_reserved_id(server: House) -> None:
    reserved = server.post("/models/create", {"type": "bitnet", "params": {"train": {"steps": 2}}})
    assert reserved["metadata"]["status"] == "creating"
    assert reserved["model_id"] == f"new-{reserved['metadata']['task_id']}"
    assert ended(server, reserved["metadata"]["task_id"])["state"] == "succeeded"


@pytest.mark.usefixtures("no_job")
@pytest.mark.parametrize(
    ("kind", "params"),
    [("import", {"source": "/etc/passwd"}), ("import", {}), ("import", {"source": "x", "out": "y"}),
     ("merge", {}), ("merge", {"recipe": {}}), ("merge", {"recipe": {"merge_method": "linear"}}),
     ("merge", {"recipe": {"merge_method": "linear", "models": [{"model": "../x"}]}}),
     ("merge", {"recipe": {"merge_method": "linear", "base_model": "/x", "models": ["/y"]}}),
     ("merge", {"recipe": {"merge_method": "linear", "chat_template": "x"}}),
     ("merge", {"recipe": {"tokenizer_source": "/etc", "models": []}}), ("merge", {"recipe": 1}),
     ("export", {"model_id": "x", "format": "zip"}), ("export", {"model_id": "/x"}), ("export", {}),
     ("export", {"model_id": "x", "type": "../Q8"}), ("nothing", {}), ("bitnet", {"out": "x"})],
)  # fmt: skip
def test_what_cannot_be_created_is_refused(server: House, kind: str, params: Any) -> None:
    answer = server.client.post("/models/create", json={"type": kind, "params": params})
    assert answer.status_code in (404, 422), answer.text


def test_a_merge_is_a_job_with_the_paths_of_its_models(stocked: House, shelf: Checkpoint) -> None:
    recipe = {
        "merge_method": "linear",
        "models": [{"model": shelf.id, "parameters": {"weight": 1}}],
    }
    reserved = stocked.post(
        "/models/create", {"type": "merge", "params": {"recipe": recipe, "seed": 3}}
    )
    job = stocked.service.supervisor.get(reserved["metadata"]["task_id"])
    assert job.sources == [shelf.id]
    file, *options = job.hidden_overrides
    assert options == ["--seed", "3"]
    assert str(shelf.path) in Path(file).read_text()
    assert shelf.id not in Path(file).read_text()


# Checkpoints


def test_a_checkpoint_is_read_whole_or_in_parts(stocked: House, tiny_checkpoint: Any) -> None:
    base = f"/v1/checkpoints/{tiny_checkpoint.id}"
    files = {entry["name"]: entry for entry in stocked.get(f"{base}/files")}
    content = (tiny_checkpoint.path / "model.safetensors").read_bytes()
    assert files["model.safetensors"]["bytes"] == len(content)
    whole = stocked.client.get(f"{base}/files/model.safetensors")
    assert whole.content == content
    assert whole.headers["x-sha256"] == files["model.safetensors"]["sha256"]
    part = stocked.client.get(f"{base}/files/model.safetensors", headers={"range": "bytes=10-19"})
    assert part.status_code == 206
    assert part.content == content[10:20]
    beyond = stocked.client.get(
        f"{base}/files/model.safetensors", headers={"range": "bytes=999999999-"}
    )
    assert beyond.status_code == 416
    manifest = stocked.get(f"{base}/manifest")
    assert manifest["id"] == tiny_checkpoint.id
    assert "host" not in manifest
    assert stocked.client.get(f"{base}/card").text.startswith("---")
    assert stocked.post(f"{base}/verify", status=200)["status"] == "ok"
    assert stocked.get(f"{base}/lineage")["nodes"][0]["id"] == tiny_checkpoint.id


def test_an_encrypted_checkpoint_is_sent_as_it_is_stored(
    tmp_path: Path, tiny_checkpoint: Checkpoint
) -> None:
    pyrage = pytest.importorskip("pyrage")
    identity = pyrage.x25519.Identity.generate()
    public = [str(identity.to_public())]
    encryption.encrypt(tiny_checkpoint.path, tmp_path / "shown" / "sealed", public)
    with house(tmp_path / "state", watch=(tmp_path / "shown",)) as server:
        server.service.registry.scan()
        base = f"/v1/checkpoints/{tiny_checkpoint.id}"
        assert server.get(base)["encrypted"]
        assert server.get("/models/list")[0]["encrypted"]
        names = [entry["name"] for entry in server.get(f"{base}/files")]
        assert names == [f"{name}.age" for name in tiny_checkpoint.manifest.files]
        sent = server.client.get(f"{base}/files/config.json.age").content
        plain = (tiny_checkpoint.path / "config.json").read_bytes()
        assert pyrage.decrypt(sent, [identity]) == plain
        assert server.client.get(f"{base}/files/config.json").status_code == 404
        assert server.client.get(f"{base}/card").status_code == 409
        assert server.post(f"{base}/verify", status=200)["status"] == "ok"


@pytest.mark.parametrize(
    "name",
    ["forge.json", "../tiny/config.json", "%2e%2e/x", "..%2fx", "/etc/passwd", "none", "a%00"],
)
def test_only_files_of_the_manifest_are_sent(
    stocked: House, tiny_checkpoint: Any, name: str
) -> None:
    answer = stocked.client.get(f"/v1/checkpoints/{tiny_checkpoint.id}/files/{name}")
    assert answer.status_code in (404, 405, 422)


def test_a_manifest_that_lies_sends_no_file_of_the_server(
    tmp_path: Path, tiny_checkpoint: Any
) -> None:
    import shutil

    folder = tmp_path / "shown" / "liar"
    shutil.copytree(tiny_checkpoint.path, folder)
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    manifest = json.loads((folder / "forge.json").read_text())
    entry = {"sha256": "0" * 64, "bytes": 6}
    manifest["files"] |= {"../../secret": entry, "link": entry, str(tmp_path / "secret"): entry}
    (folder / "forge.json").write_text(json.dumps(manifest))
    with house(tmp_path / "state", watch=(tmp_path / "shown",)) as server:
        server.service.registry.scan()
        for name in ("..%2f..%2fsecret", "link", str(tmp_path / "secret"), "../../secret"):
            answer = server.client.get(f"/v1/checkpoints/{manifest['id']}/files/{name}")
            assert answer.status_code in (404, 422)
            assert answer.text != "secret"


# Phases


def test_the_schema_of_every_phase_is_whole(server: House) -> None:
    for phase in server.get("/v1/phases"):
        schema = server.get(f"/v1/phases/{phase['name']}/schema")
        leaves = list(_leaves(schema))
        assert len(leaves) > 30
        assert not [name for name, one in leaves if "default" not in one or not one["description"]]
        assert "out" not in schema["properties"]
        assert "cache" not in schema["properties"]["data"]["properties"]
        assert schema["properties"]["sources"]["x-takes"] == "checkpoint id"
        assert "$ref" not in json.dumps(schema)


def test_defaults_in_the_schema_are_those_of_the_part_and_not_of_its_type(server: House) -> None:
    schema = server.get("/v1/phases/cognate/schema")["properties"]
    methods = [schema[part]["properties"]["optim"]["properties"]["method"]["default"]
               for part in ("trunk", "branch")]  # fmt: skip
    assert methods == ["muon", "adamw"]
    steps = schema["trunk"]["properties"]["steps"]
    assert (steps["x-unit"], steps["minimum"]) == ("steps", 0)


def _leaves(schema: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, one in schema["properties"].items():
        if "properties" in one:
            yield from _leaves(one, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", one
