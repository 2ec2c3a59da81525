"""Pictures of the dashboard, to look at and for docs/pictures.

    python -m scripts.dashboard_pictures [--run-dir DIR] [--out FOLDER] [--kind webp] [--every]

Serves the recorded run (scripts/recorded_run.py) twice: finished, and under way. With --run-dir, a
run whose checkpoints are there, the pages of models and of the chat are taken too; the chat's models
really answer. With --every, every page down to its end, in both themes and at 360, 1280 and 3840
pixels, to look at. Needs Chromium (see scripts/screenshots.py) and `make dashboard`.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_forge.server import pages
from scripts import recorded_run
from scripts.dashboard_server import DashboardServer
from scripts.screenshots import ROOT, Browser, View, browser, chromium

WIDE, TALL, PHONE, LARGE = (1280, 900), (1280, 1500), (360, 780), (3840, 2160)
THEMES = ("light", "dark")
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


# Sets the text of a field, in the same way.
TYPE = """(() => {
  const box = document.querySelector(%s);
  const set = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(box), 'value').set;
  set.call(box, %s);
  box.dispatchEvent(new Event('input', { bubbles: true }));
})()"""
OPEN_ALL = "document.querySelectorAll('main details').forEach((one) => (one.open = true))"
PICK = "document.querySelectorAll('.pipeline .pick')[%d].click()"
OPEN_PHASE = (
    "document.querySelectorAll('section[aria-label*=gate] details')"
    ".forEach((one) => (one.open = true)) ?? true"
)
CHECK = "[...document.querySelectorAll('.start button')][1].click()"


@dataclass(frozen=True, slots=True)
class Page:
    """A page to take: its name, its place behind `#/`, what is done there, what then holds."""

    name: str
    place: str
    script: str = ""
    until: str = "true"


class Album:
    """Takes pictures of one server's pages."""

    def __init__(self, tab: Browser, server: DashboardServer, out: Path, kind: str) -> None:
        self.tab, self.server, self.out, self.kind = tab, server, out, kind
        tab.visit(f"{server.url}/#key={server.key}")
        tab.until("document.querySelector('.link-mark.live')")

    def take(
        self, name: str, place: str, size: tuple[int, int], theme: str = "light",
        prepare: Callable[[], None] | None = None, *, whole: bool = False,
    ) -> Path:  # fmt: skip
        """Write the picture of a page, whole: to its end; prepare: what is done there first.

        Returns its path.
        """
        view = View(name, *size, theme=theme)
        self.tab.look(view)
        self.tab.value(f"location.hash = {json.dumps(f'#/{place}')}")
        time.sleep(0.3)
        self.tab.until(SETTLED)
        if prepare is not None:
            prepare()
        time.sleep(1.0)  # charts are drawn a moment after their points have come
        path = self.out / f"{name}.{self.kind}"
        path.write_bytes(self.tab.picture(view, whole=whole, kind=self.kind))
        return path

    def take_everywhere(self, page: Page) -> list[Path]:
        """Write a page's pictures in both themes and all sizes, down to its end."""

        def prepare() -> None:
            self.tab.value(page.script)
            self.tab.until(page.until)

        taken = []
        for size in (PHONE, WIDE, LARGE):
            for theme in THEMES:
                self.tab.value("location.hash = '#/settings'")  # the page begins anew
                time.sleep(0.2)
                name = f"{page.name}-{size[0]}-{theme}"
                taken.append(self.take(name, page.place, size, theme, prepare, whole=True))
        return taken


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


def _underway(server: DashboardServer) -> str:
    """Start a run, and return its id once it is under way."""
    job = ask(server, "/v1/jobs", {"phase_name": "run-all", "config": ["experiment=tiny"]})
    place = f"/v1/jobs/{job['id']}"
    until_there(server, place, lambda job: job["state"] == "running" and job["progress"] > 20)
    return str(job["id"])


def pictures(album: Album, run_dir: Path | None) -> list[Path]:
    """Take all pictures; return their paths."""
    server = album.server
    jobs = until_there(server, "/v1/jobs", lambda jobs: jobs)
    finished = next(job["id"] for job in jobs if job["origin"] == "terminal")
    _underway(server)
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
    first, last = _ends(album.server)
    query = f"a={first}&b={last}"

    def talk() -> None:
        album.tab.value(ASK % json.dumps(QUESTION))
        album.tab.until(ANSWERED)

    return [
        album.take("dashboard-models", "models", WIDE),
        album.take("dashboard-model", f"models/{last}", WIDE),
        album.take("dashboard-compare", f"compare?{query}", WIDE),
        album.take("dashboard-chat", f"chat?{query}", WIDE, prepare=talk),
    ]


def _ends(server: DashboardServer) -> tuple[str, str]:
    """Return the ids of the run's merged model and of its last."""
    models = until_there(server, "/v1/checkpoints", lambda models: len(models) > 1)
    by_phase = {model["phase"]: model["id"] for model in models}
    return by_phase.get("evomerge", models[0]["id"]), by_phase["compress"]


def every_page(album: Album, run_dir: Path | None, names: Sequence[str] = ()) -> list[Path]:
    """Take every page, or those with these names, in both themes and all sizes.

    Returns their paths.
    """
    server = album.server
    jobs = until_there(server, "/v1/jobs", lambda jobs: jobs)
    finished = next(job["id"] for job in jobs if job["state"] == "succeeded")
    paused = _underway(server)
    ask(server, f"/v1/jobs/{paused}/pause", {})
    until_there(server, f"/v1/jobs/{paused}", lambda job: job["state"] == "paused")
    idle = Page("runs-idle", "runs")
    taken = [] if names and idle.name not in names else album.take_everywhere(idle)
    running = _underway(server)
    for phase in ("bitnet", "compress"):
        ask(server, "/v1/jobs", {"phase_name": phase, "config": ["seed=1"]})
    wrong = TYPE % ("'#lines'", "'trian.steps=5'")
    pages_taken = [
        Page("runs", "runs"),
        Page("run-running", f"runs/{running}"),
        Page("run-paused", f"runs/{paused}"),
        Page("new", "new", CHECK, "document.querySelector('.start .good')"),
        Page("new-phase", "new?phase=bitnet", wrong, "document.querySelector('.start .failure')"),
        Page("models", "models"),
        Page("chat", "chat"),
        Page("settings", "settings"),
        *(
            Page(f"run-{number + 1}", f"runs/{finished}", PICK % number, OPEN_PHASE)
            for number in range(8)
        ),
    ]
    if run_dir:
        first, last = _ends(server)
        query = f"a={first}&b={last}"
        pages_taken += [
            Page("model", f"models/{last}", OPEN_ALL),
            Page("compare", f"compare?{query}", OPEN_ALL),
            Page("talk", f"chat?{query}", ASK % json.dumps(QUESTION), ANSWERED),
        ]
    chosen = [page for page in pages_taken if not names or page.name in names]
    taken += [path for page in chosen for path in album.take_everywhere(page)]
    if not names or "login" in names:
        album.tab.value("sessionStorage.setItem('forge-key', 'forge_no_no'); location.reload()")
        album.tab.until("document.querySelector('.login .failure')")
        taken += album.take_everywhere(Page("login", "runs"))
    return taken


def main() -> int:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--run-dir", type=Path, help="a run of `forge run-all` with its checkpoints"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/screenshots"))
    parser.add_argument("--kind", choices=("png", "webp"), default="png")
    parser.add_argument(
        "--every", nargs="?", const="", metavar="NAMES",
        help="every page in every theme and size, or those with these names, with commas",
    )  # fmt: skip
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
                if arguments.every is None:
                    written = pictures(album, arguments.run_dir)
                else:
                    names = [name for name in arguments.every.split(",") if name]
                    written = every_page(album, arguments.run_dir, names)
        finally:
            server.stop()
    for path in written:
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
