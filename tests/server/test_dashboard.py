"""The dashboard in a real browser: runs, the phases' own views, chat, keys, themes, no request outside.

One Chromium and one server for the whole file; `browser.mjs` plays each scene in a fresh context and
prints what it saw as JSON, which the tests here judge. Skipped where Node, its modules, the build or
a Chromium is missing.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent_forge import checkpoint
from agent_forge.phases.compress.curve import TITLE
from agent_forge.pipeline.catalogue import phases
from agent_forge.pipeline.outcome import OUTCOME
from agent_forge.server import pages
from agent_forge.server.openai import process as model_process
from scripts import recorded_run
from scripts.dashboard_server import DashboardServer as Server

ROOT = Path(__file__).resolve().parents[2]
TRAINER = Path(__file__).with_name("stub_trainer.py")
SPEAKER = Path(__file__).with_name("speaking_worker.py")
SCENES = Path(__file__).with_name("browser.mjs")
HOME = pages.DIST.parent
SCENE_SECONDS = 240


def chromium() -> str:
    """Return a Chromium of this machine, or ""."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("FORGE_CHROMIUM") or next(filter(None, map(shutil.which, names)), "")


def missing() -> str:
    """Return what a browser test lacks here, "" when nothing is missing."""
    if not shutil.which("node"):
        return "Node is not installed"
    if not (HOME / "node_modules" / "playwright-core").is_dir():
        return "the dashboard's modules are not installed; `make dashboard` fetches them"
    if not (pages.DIST / "index.html").is_file():
        return "the dashboard is not built; `make dashboard` builds it"
    return "" if chromium() else "there is no Chromium; FORGE_CHROMIUM may name one"


pytestmark = [
    pytest.mark.skipif(missing() != "", reason=missing()),
    pytest.mark.timeout(SCENE_SECONDS + 60),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a server that has one recorded run of a terminal, and no jobs of its own yet."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(TRAINER.parents[2]))
    place = tmp_path_factory.mktemp("dashboard")
    recorded_run.write(place / "outputs" / "run_all")
    program = [sys.executable, str(TRAINER)]
    opened = Server(place / "state", program, watch=[place / "outputs"])
    opened.start()
    yield opened
    opened.stop()
    patch.undo()


def play(server: Server | None, scene: str, key: str = "", *arguments: str) -> dict[str, Any]:
    """Return what a scene has seen. Fails with the browser's own words."""
    environment = {
        **os.environ, "FORGE_CHROMIUM": chromium(), "PYTHONPATH": str(TRAINER.parents[2])
    }  # fmt: skip
    url = server.url if server else ""
    key = key or (server.key if server else "")
    done = subprocess.run(
        ["node", str(SCENES), scene, url, key, str(HOME), *arguments],
        capture_output=True, text=True, timeout=SCENE_SECONDS, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert seen["outside"] == [], "a request left this machine"
    assert seen["errors"] == [], "the page has thrown"
    return seen


def test_a_run_is_started_followed_left_paused_resumed_and_cancelled(server: Server) -> None:
    seen = play(server, "flow")
    assert seen["started"].startswith("Running")
    # The tab was closed and opened again: nothing is lost, and it goes on.
    assert seen["points_after"] >= seen["points_before"] > 0
    assert seen["points_later"] > seen["points_after"]
    assert seen["paused"] == "Paused"
    assert seen["resumed"] == "Running"
    # A resumed run goes on in the same curve.
    assert seen["points_resumed"] >= seen["points_paused"]
    assert seen["cancelled"] == "Cancelled"


def test_a_value_that_is_not_a_number_is_a_gap_with_a_mark(server: Server) -> None:
    seen = play(server, "gap")
    assert seen["gaps"] == 1
    assert "not a number" in seen["says"]
    assert seen["points"] == 20
    assert seen["verdict"] == "Done"
    assert "keeps 98.4% of tool calls [96.8, 99.7]" in seen["keeps"]


def test_a_refused_key_leads_to_the_first_page_which_says_why(server: Server) -> None:
    key, token = server.ring.create("short", ["read"])
    server.ring.revoke(key.id)
    seen = play(server, "refused", token)
    assert "expired" in seen["says"]
    assert seen["kept"] is None


def test_a_link_signs_in_and_its_key_does_not_stay_in_the_address(server: Server) -> None:
    seen = play(server, "link")
    assert "key=" not in seen["address"]
    assert seen["live"] == "Live"
    assert seen["in_local_storage"] is False


def test_every_page_is_clean_for_axe_in_both_themes(server: Server) -> None:
    seen = play(server, "axe")
    assert seen["violations"] == []
    assert seen["looked_at"] == 2 * (6 + len(phases()))


def test_no_page_is_wider_than_a_small_phone(server: Server) -> None:
    assert play(server, "narrow")["wide"] == []


def test_a_run_is_started_with_the_keyboard_alone(server: Server) -> None:
    assert play(server, "keyboard")["state"] in ("Running", "Waiting", "Done")


def test_two_tabs_show_the_same_run(server: Server) -> None:
    seen = play(server, "tabs")
    assert seen["states"] == ["Cancelled", "Cancelled"]
    assert seen["points"][0] == seen["points"][1] > 0


def test_a_read_that_the_server_did_not_answer_is_read_again(server: Server) -> None:
    assert play(server, "unread")["points"] > 0


def test_every_phase_shows_what_it_alone_has(server: Server) -> None:
    seen = play(server, "phases")
    views = seen["views"]
    assert list(views) == list(phases())
    for phase, view in views.items():
        assert "passed its gate" in view["title"], phase
        assert view["tables"] > 0, phase
    charts = {phase for phase, view in views.items() if view["charts"]}
    assert charts == {"evomerge", "quietstar", "train", "adas", "compress"}
    assert "Population at the end" in views["evomerge"]["heads"]
    assert views["quietstar"]["thoughts"] > 3
    assert views["bake"]["conversations"] == 4
    assert views["train"]["rows"] > 10
    # The run had ended before the server found it: its curves come from its own files.
    assert seen["points"] > 50


def test_a_key_that_asks_too_often_is_told_how_long_to_wait(server: Server) -> None:
    seen = play(server, "busy")
    assert re.search("too many requests with this key.* in [12] s", seen["says"], re.IGNORECASE)
    assert seen["violations"] == []
    assert seen["runs"] > 0  # it asked again by itself


def test_answers_that_went_wrong_and_llama_cpp_s_formats_are_shown(tmp_path: Path) -> None:
    run_dir = tmp_path / "outputs" / "run_all"
    recorded_run.write(run_dir)
    endings = [{"kind": "calculator", "right": 49, "no call": 3, "wrong arguments": 8}]
    _change(run_dir, "bake", {"tables": {"how held-out answers ended": endings}})
    curve = [
        {"bytes": size, "bits": 3.0, "quality": quality, "low": quality - 0.02,
         "high": quality + 0.02, "tokens_per_second": speed}
        for size, quality, speed in ((62e6, 0.958, 30.0), (50e6, 0.876, 34.0))
    ]  # fmt: skip
    smollm2 = {"bytes": 62e6, "bytes_of_fp32": 62e6 / 538.1e6, "quality": 0.958}
    _change(run_dir, "compress", {"tables": {TITLE: curve}, "metrics": smollm2})
    server = Server(tmp_path / "state", [sys.executable, str(TRAINER)], watch=[run_dir.parent])
    server.start()
    try:
        seen = play(server, "besides")
    finally:
        server.stop()
    assert "Wrong arguments" in seen["endings"]
    assert "49" in seen["endings"]
    measured = json.loads((ROOT / "results" / "compress.json").read_text())["points"]["llama.cpp"]
    assert seen["llama"] == sum(size < 150 for size, _ in measured) > 5
    assert seen["curve"] == "Size and speed: 62 MB 62, 30; 50 MB 50, 34"


def _change(run_dir: Path, phase: str, report: dict[str, Any]) -> None:
    """Replace parts of what a phase of the recorded run reported."""
    (file,) = (run_dir / ".forge").glob(f"*-{phase}/{OUTCOME}")
    outcome = json.loads(file.read_text())
    outcome["report"] |= report
    file.write_text(json.dumps(outcome))


def test_a_killed_server_loses_no_point_of_a_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "scripts.dashboard_server", str(tmp_path), str(port), str(TRAINER)
    ]  # fmt: skip
    seen = play(None, "killed", "", json.dumps(command))
    assert seen["lost"].startswith("Connection lost")
    assert seen["points_after"] > seen["points_before"] > 0
    # The chart that saw both servers has what a fresh one reads.
    assert seen["points_of_both"][0] == seen["points_of_both"][1]
    assert seen["cancelled"] == "Cancelled"


CALL = '<tool_call>{"name": "%s", "arguments": %s}</tool_call>'
WORDS = {
    "6*7?": "<think>First I need the product of both numbers, and then I say it.</think>"
    + CALL % ("calculator", '{"expression": "6*7"}'),
    "42": "It is <b>42</b>, and here is what I thought of it on the way.",
    "Keep": CALL % ("remember", '{"about": "door", "fact": "4821"}'),
    "stored": "I keep it.",
    "Lamp?": CALL % ("recall", '{"query": "lamp"}'),
    "Tell.": "Once there was a lamp that told a long story of itself and of its green light. " * 3,
}


@pytest.fixture
def speaking_server(
    tiny_checkpoint: checkpoint.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """Return a server with two models whose words are dictated."""
    outputs = tmp_path / "outputs"
    for name in ("first", "second"):

        def fill(folder: Path, note: str = name) -> None:
            for file in tiny_checkpoint.manifest.files:
                os.link(tiny_checkpoint.path / file, folder / file)
            # Checkpoints of the same content are one model, whatever their names are.
            (folder / "note.txt").write_text(note)

        checkpoint.write(
            outputs / name, fill, phase="import", seed=0, config={}, name=name,
            agent={"tools": ["calculator", "remember", "recall"]},
        )  # fmt: skip
    words = {**WORDS, "gate": str(tmp_path / "gate"), "gate_tokens": 30}
    words["heard"] = str(tmp_path / "heard.jsonl")
    (outputs / "words.json").write_text(json.dumps(words))
    monkeypatch.setattr(model_process, "WORKER", [str(SPEAKER)])
    opened = Server(tmp_path / "state", [sys.executable, str(TRAINER)], watch=[outputs])
    opened.start()
    yield opened
    opened.stop()


def test_two_models_think_call_and_remember_in_sight(
    speaking_server: Server, tmp_path: Path
) -> None:
    seen = play(speaking_server, "chat", "", str(tmp_path / "gate"))
    assert seen["before_the_end"] == [True, True]  # a thought is shown while the reply still comes
    for side in seen["sides"]:
        assert side["thoughts"] == 1
        assert side["tools"] == ["calls calculator", "gets"]
        assert "It is <b>42</b>" in side["said"]
        assert side["bold"] == 0
    assert seen["memory"] == ["door: 4821", "door: 4821"]
    assert seen["forgotten"] == 0
    assert seen["persona"] == "Precise"
    assert seen["violations"] == []
    assert "the lamp is green" in seen["recalled"]
    assert "the most tokens that were allowed" in seen["bounded"]
    assert "Stopped by you." in seen["stopped"]
    heard = [json.loads(line) for line in (tmp_path / "heard.jsonl").read_text().splitlines()]
    assert all("You are precise" in one["prompt"] for one in heard)
    assert 12 in {one["max_new_tokens"] for one in heard}
    assert {(one["temperature"], one["seed"] % 1000) for one in heard} >= {(0.5, 7)}


def test_the_buttons_of_models_queue_and_keys_do_what_they_say(speaking_server: Server) -> None:
    seen = play(speaking_server, "hands")
    assert seen["suggested"] == "There is no setting 'trian.steps'. Did you mean 'train.steps'?"
    assert seen["limit"] == "must be at least 0"
    assert seen["compared"].startswith("Size as shipped")
    assert "alike" in seen["compared"]
    assert seen["verified"] == "Every file has the hash that its manifest names."
    assert seen["downloaded"] == "llama"
    assert seen["exported"] == "GGUF"
    assert seen["order"] == ["train.steps=301", "train.steps=300"]
    assert seen["runs"] == "train.steps=301"
    assert seen["kept"] is None
