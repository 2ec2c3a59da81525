"""Pictures of the dashboard, to look at and for docs/pictures.

    python -m scripts.dashboard_pictures [--run-dir DIR] [--out FOLDER] [--kind webp]

Serves the recorded run (scripts/recorded_run.py) twice: finished, and under way. With --run-dir,
a run whose checkpoints are there, the pages of models and of the chat are taken too; the chat's
models really answer. Needs Chromium (see scripts/screenshots.py) and `make dashboard`.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent_forge.server import pages
from scripts import recorded_run
from scripts.dashboard_server import DashboardServer
from scripts.screenshots import ROOT, Browser, View, browser, chromium

WIDE, TALL, PHONE = (1280, 900), (1280, 1500), (360, 780)
QUESTION = "What is 48 plus 77?"
SETTLED = (
    "document.querySelector('main h1, main h2') && !document.body.innerText.includes('Loading')"
)
ANSWERED = (
    "document.querySelectorAll('.turn.assistant').length === 2 && "
    "!document.querySelector('.turn [role=status]')"
)
# Typing as React hears it: the setter that it does not watch, then the event that it does.
ASK = """(() => {
  const box = document.getElementById('say');
  const set = Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, 'value').set;
  set.call(box, %s);
  box.dispatchEvent(new Event('input', { bubbles: true }));
  setTimeout(() => document.querySelector('.say button').click(), 200);
})()"""


class Album:
    """Takes pictures of one server's pages."""

    def __init__(self, tab: Browser, server: DashboardServer, out: Path, kind: str) -> None:
        self.tab, self.server, self.out, self.kind = tab, server, out, kind
        tab.visit(f"{server.url}/#key={server.key}")
        tab.until("document.querySelector('.link-mark.live')")

    def take(
        self, name: str, place: str, size: tuple[int, int], theme: str = "light",
        prepare: Callable[[], None] | None = None,
    ) -> Path:  # fmt: skip
        """Write the picture of a page; prepare: what is done there first. Return its path."""
        view = View(name, *size, theme=theme)
        self.tab.look(view)
        self.tab.value(f"location.hash = {json.dumps(f'#/{place}')}")
        time.sleep(0.3)
        self.tab.until(SETTLED)
        if prepare is not None:
            prepare()
        time.sleep(1.0)  # charts are drawn a moment after their points have come
        path = self.out / f"{name}.{self.kind}"
        path.write_bytes(self.tab.picture(view, kind=self.kind))
        return path

    def press(self, selector: str) -> None:
        """Press what a CSS selector finds first."""
        self.tab.value(f"document.querySelector({json.dumps(selector)}).click()")


def ask(server: DashboardServer, path: str, body: Any = None) -> Any:
    """Return what the server answers."""
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode() if body is not None else None,
        {"authorization": f"Bearer {server.key}", "content-type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def until_there(server: DashboardServer, path: str, holds: Callable[[Any], Any]) -> Any:
    """Return what the server answers, once that is as it should be."""
    while not holds(answer := ask(server, path)):
        time.sleep(0.1)
    return answer


def pictures(album: Album, run_dir: Path | None) -> list[Path]:
    """Take all pictures; return their paths."""
    server = album.server
    jobs = until_there(server, "/v1/jobs", lambda jobs: jobs)
    finished = next(job["id"] for job in jobs if job["origin"] == "terminal")
    running = ask(server, "/v1/jobs", {"phase_name": "run-all", "config": ["experiment=tiny"]})
    place = f"/v1/jobs/{running['id']}"
    until_there(server, place, lambda job: job["state"] == "running" and job["progress"] > 20)
    ask(server, "/v1/jobs", {"phase_name": "bitnet", "config": ["train.steps=50"]})
    phase = (
        "[...document.querySelectorAll('.pipeline .pick')].find((one) => one.innerText === '%s')"
    )
    picked = {name: f"{phase % name}.click()" for name in ("EvoMerge", "Compress", "Bake")}
    taken = [
        album.take("dashboard-runs", "runs", WIDE),
        album.take("dashboard-runs-dark", "runs", WIDE, "dark"),
        album.take("dashboard-phone", "runs", PHONE),
        album.take("dashboard-new", "new", WIDE),
    ]
    for name, script in picked.items():

        def prepare(script: str = script) -> None:
            album.tab.value(script)

        taken.append(
            album.take(f"dashboard-{name.lower()}", f"runs/{finished}", TALL, prepare=prepare)
        )
    taken.append(album.take("dashboard-run", f"runs/{finished}", WIDE, "dark"))
    return taken + (_with_models(album) if run_dir else [])


def _with_models(album: Album) -> list[Path]:
    """Take the pages of models and of the chat; the first model talks beside the last."""
    models = until_there(album.server, "/v1/checkpoints", lambda models: len(models) > 1)
    by_phase = {model["phase"]: model["id"] for model in models}
    ends = {"a": by_phase.get("evomerge", models[0]["id"]), "b": by_phase["compress"]}
    query = "&".join(f"{side}={value}" for side, value in ends.items())

    def talk() -> None:
        album.press(".switch input")
        album.tab.value(ASK % json.dumps(QUESTION))
        album.tab.until(ANSWERED)

    return [
        album.take("dashboard-models", "models", WIDE),
        album.take("dashboard-model", f"models/{ends['b']}", WIDE),
        album.take("dashboard-compare", f"compare?{query}", WIDE),
        album.take("dashboard-chat", f"chat?{query}", WIDE, prepare=talk),
    ]


def main() -> int:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--run-dir", type=Path, help="a run of `forge run-all` with its checkpoints"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/screenshots"))
    parser.add_argument("--kind", choices=("png", "webp"), default="png")
    arguments = parser.parse_args()
    program = chromium()
    if not program or not (pages.DIST / "index.html").is_file():
        print("no pictures: Chromium or the built dashboard is missing (`make dashboard`)")
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory(prefix="forge-pictures-") as folder:
        outputs = Path(folder) / "outputs"
        if arguments.run_dir is None:
            recorded_run.write(outputs / "run_all")
        watch = outputs if arguments.run_dir is None else arguments.run_dir.absolute().parent
        played = [sys.executable, str(ROOT / "scripts" / "recorded_run.py")]
        server = DashboardServer(Path(folder) / "state", played, watch=[watch])
        server.start()
        try:
            with browser(program) as tab:
                album = Album(tab, server, arguments.out, arguments.kind)
                written = pictures(album, arguments.run_dir)
        finally:
            server.stop()
    for path in written:
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
