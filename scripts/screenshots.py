"""Pictures of the report and captures of the terminal, to look at and for docs/pictures.

    python -m scripts.screenshots [--run-dir DIR] [--out FOLDER]

Renders report.html of a run (by default of the recorded default run, see scripts/sample_run.py) in
light, in dark, 360 pixels wide and as printed, and captures what the terminal shows of it at 80 and
40 columns. The pictures need Chromium: Debian's is `apt-get install chromium`, or without root
`apt-get download chromium chromium-common` and `dpkg-deb -x` of both into a folder whose
usr/lib/chromium/chromium CHROMIUM names. The captures need tmux. What is missing is left out with
one line.
"""

import argparse
import base64
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from agent_forge.pipeline import report
from scripts import sample_run

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
READY_SECONDS = 300.0  # enough on a machine that is busy with trainings
LOADED = "location.protocol !== 'about:' && document.readyState === 'complete'"
POLL_SECONDS = 0.05
TMUX_LINES = 60
NUMBERS = itertools.count()
# A capture begins here: what has left the window is part of it.
SCROLLED = "-2000"


@dataclass(frozen=True, slots=True)
class View:
    """How a page is looked at: width in CSS pixels, theme, medium, and how much of it is taken."""

    name: str
    width: int
    height: int
    theme: str = "light"
    medium: str = "screen"


VIEWS = (
    View("report-light", 1100, 1200),
    View("report-dark", 1100, 1200, theme="dark"),
    View("report-phone", 360, 1500),
    View("report-print", 760, 1075, medium="print"),
    View("report-4k", 3840, 2160),
)
# What is captured of the terminal, as arguments of `forge`: of any run, and of one whose models are
# there.
SCREENS = {
    "report": "report {run}", "status": "status {run}", "list": "list {run}",
    "dry-run": "run-all experiment=tiny --dry-run", "settings": "settings bitnet",
    "help": "run-all --help", "error": "bitnet sources=[{run}] trian.steps=50",
}  # fmt: skip
MODELS = {
    "inspect": "inspect {last}", "verify": "verify {run}", "chat": "chat {last} 'What is 48 plus 77?'",
    "eval": "eval {last} -t text,tools --items 8", "compare": "compare {first} {last} -t text,tools --items 8",
}  # fmt: skip
WIDTHS = (80, 40)
# How a terminal may differ: its environment, and what the command's output goes through.
TERMINALS = {
    "": ({}, ""), "-plain": ({"NO_COLOR": "1"}, ""), "-dumb": ({"TERM": "dumb"}, ""),
    "-piped": ({}, " 2>&1 | cat"),
}  # fmt: skip


class Browser:
    """Chromium without a window, spoken to over its debugging pipe."""

    def __init__(self, to: IO[bytes], back: IO[bytes]) -> None:
        self.to, self.back, self.number, self.session = to, back, 0, ""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method and return its result. Raises RuntimeError where the browser refuses."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.to.write(json.dumps(message).encode() + b"\0")
        self.to.flush()
        while True:
            answer = json.loads(self._next())
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])

    def _next(self) -> bytes:
        message = bytearray()
        while (byte := self.back.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser ended")
            message += byte
        return bytes(message)

    def open(self, page: Path) -> None:
        """Open a local page in a tab of its own and wait until it is loaded."""
        self.visit(page.resolve().as_uri())

    def visit(self, address: str) -> None:
        """Open an address in a tab of its own and wait until it is loaded."""
        self.session = ""
        target = self.call("Target.createTarget", url=address)["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        self.until(LOADED)  # a new tab begins as an empty page, complete at once

    def until(self, condition: str) -> None:
        """Wait until a condition in JavaScript holds. Raises RuntimeError when it does not."""
        end = time.monotonic() + READY_SECONDS
        while not self._holds(condition):
            if time.monotonic() > end:
                raise RuntimeError(f"{condition} did not hold in {READY_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)

    def _holds(self, condition: str) -> bool:
        try:
            return bool(self.value(f"Boolean({condition})"))
        except RuntimeError as error:
            if "execution context" not in str(error).lower():
                raise
            return False  # a page that takes the place of another has none for a moment

    def value(self, expression: str) -> Any:
        """Return what an expression in JavaScript comes to."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return result["result"].get("value")

    def picture(self, view: View, *, whole: bool = False, kind: str = "png") -> bytes:
        """Return the page as `view` sees it. whole: to its end, not to the view's height.

        kind: "png", or "webp", which takes a third of the bytes.
        """
        self.look(view)
        height = self.value("document.documentElement.scrollHeight") if whole else view.height
        clip = {"x": 0, "y": 0, "width": view.width, "height": height, "scale": 1}
        taken = self.call(
            "Page.captureScreenshot", format=kind, captureBeyondViewport=whole, clip=clip,
            **({"quality": 85} if kind == "webp" else {}),
        )  # fmt: skip
        return base64.b64decode(taken["data"])

    def look(self, view: View) -> None:
        """Take a view's size, theme and medium."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=view.width, height=view.height, deviceScaleFactor=1, mobile=view.width < 500,
        )  # fmt: skip
        theme = [{"name": "prefers-color-scheme", "value": view.theme}]
        self.call("Emulation.setEmulatedMedia", media=view.medium, features=theme)

    def overflow(self, width: int) -> int:
        """Return by how many pixels the page is wider than a screen of `width`."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=800, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        self.call("Emulation.setEmulatedMedia", media="screen", features=[])
        return int(self.value("document.documentElement.scrollWidth")) - width


def chromium() -> str:
    """Return the path of Chromium, or "" where there is none."""
    named = os.environ.get("CHROMIUM", "")
    return named or next(filter(None, map(shutil.which, BROWSERS)), "")


@contextmanager
def browser(program: str) -> Iterator[Browser]:
    """Start Chromium on a page of its own, and end it afterwards."""
    read_commands, write_commands = os.pipe()
    read_answers, write_answers = os.pipe()

    def place_pipes() -> None:
        # The debugging pipe is at descriptors 3 and 4, which the pipes may overlap.
        commands, answers = os.dup(read_commands), os.dup(write_answers)
        high = [os.dup2(commands, 200), os.dup2(answers, 201)]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    # Chromium's other processes write into the profile for a moment after the first has ended.
    with tempfile.TemporaryDirectory(
        prefix="forge-chromium-", ignore_cleanup_errors=True
    ) as profile:
        process = subprocess.Popen(
            [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--remote-debugging-pipe", "--disable-dev-shm-usage", f"--user-data-dir={profile}",
             "about:blank"],
            close_fds=False, preexec_fn=place_pipes, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read_commands)
        os.close(write_answers)
        try:
            with os.fdopen(write_commands, "wb") as to, os.fdopen(read_answers, "rb") as back:
                yield Browser(to, back)
        finally:
            process.terminate()
            process.wait()


def pictures(page: Path, out: Path, *, whole: bool = False) -> list[Path]:
    """Write the pictures of a page; return their paths, [] without Chromium."""
    program = chromium()
    if not program:
        print("no pictures: Chromium is missing (apt-get install chromium, or CHROMIUM=PATH)")
        return []
    written = []
    with browser(program) as tab:
        tab.open(page)
        for view in VIEWS:
            path = out / f"{view.name}.png"
            path.write_bytes(tab.picture(view, whole=whole))
            written.append(path)
        for width in (360, 768, 1920):
            if extra := tab.overflow(width):
                print(f"{page.name} is {extra} pixels too wide for {width}")
    return written


def capture(command: str, columns: int, environment: Mapping[str, str], folder: Path) -> str:
    """Return what a command, run in a folder, shows in a tmux window of `columns`, with its colours
    as escape sequences.
    """
    name = f"forge-{os.getpid()}-{next(NUMBERS)}"  # a server that ends keeps its name for a while
    settings = " ".join(f"{key}={shlex.quote(value)}" for key, value in environment.items())
    done = f"{name}-done"
    line = f"{settings} {command}; tmux wait-for -S {done}; sleep {READY_SECONDS:.0f}"
    tmux = ["tmux", "-L", name]
    subprocess.run(
        [*tmux, "new-session", "-d", "-x", str(columns), "-y", str(TMUX_LINES), "-s", name,
         "-c", str(folder), line],
        check=True,
    )  # fmt: skip
    try:
        subprocess.run([*tmux, "wait-for", done], check=True, timeout=READY_SECONDS)
        shown = subprocess.run(
            [*tmux, "capture-pane", "-p", "-e", "-S", SCROLLED, "-t", name],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return shown.stdout.rstrip() + "\n"
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)


def captures(run_dir: Path, out: Path, folder: Path) -> list[Path]:
    """Write what the terminal shows of a run, as text; return the paths, [] without tmux.

    folder: where the commands run; `run_dir` is named as seen from there.
    """
    if not shutil.which("tmux"):
        print("no captures: tmux is missing (apt-get install tmux)")
        return []
    models = [path.parent for path in sorted((folder / run_dir).glob("[!.]*/**/forge.json"))]
    first, last = [*models[:1], run_dir][0], [run_dir, *models[-1:]][-1]
    places = {"run": run_dir, "first": _below(first, folder), "last": _below(last, folder)}
    named = {name: shlex.quote(str(place)) for name, place in places.items()}
    python = f"{shlex.quote(sys.executable)} -m agent_forge"
    written = []
    for name, arguments in {**SCREENS, **(MODELS if models else {})}.items():
        for ending, (environment, pipe) in TERMINALS.items():
            for columns in WIDTHS:
                command = f"{python} {arguments.format(**named)}{pipe}"
                path = out / f"terminal-{name}-{columns}{ending}.txt"
                environment = {"PYTHONPATH": str(ROOT), **environment}
                path.write_text(capture(command, columns, environment, folder), encoding="utf-8")
                written.append(path)
    return written


def _below(path: Path, folder: Path) -> Path:
    """Return a path as it is named in a folder."""
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def main() -> int:
    """Write the pictures and captures of a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run-dir", type=Path, help="a run; by default the recorded default run")
    parser.add_argument("--out", type=Path, default=Path("outputs/screenshots"))
    parser.add_argument("--whole", action="store_true", help="pictures down to the page's end")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="forge-sample-") as folder:
        place, run_dir = Path.cwd(), arguments.run_dir
        if run_dir is None:
            place, run_dir = Path(folder), Path(sample_run.RUN_DIR)
            sample_run.write(place / run_dir)
        _, page = report.write(place / run_dir, report.read_run(place / run_dir))
        written = pictures(page, arguments.out, whole=arguments.whole)
        written += captures(run_dir, arguments.out, place)
    for path in written:
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
