"""The command line at a pipe that closes, a full device, closed streams, and an ASCII terminal."""

import fcntl
import os
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from agent_forge.checkpoint import Checkpoint
from agent_forge.cli import streams

ROOT = str(Path(__file__).parents[2])
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(command: str, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a line of bash in which `$forge` is the command."""
    variables = {
        **os.environ,
        "PYTHONPATH": ROOT,
        "forge": f"{sys.executable} -m agent_forge",
        **environment,
    }
    return subprocess.run(
        ["bash", "-c", command], env=variables, capture_output=True, check=False, timeout=120
    )


@pytest.fixture
def many(tiny_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """Return a directory of more checkpoints than a pipe holds lines of."""
    manifest = (tiny_checkpoint.path / "forge.json").read_bytes()
    for number in range(800):
        place = tmp_path / "many" / f"checkpoint-of-a-rather-long-name-{number:04}"
        place.mkdir(parents=True)
        (place / "forge.json").write_bytes(manifest)
    return tmp_path / "many"


@pytest.mark.parametrize("arguments", ["list {many} --json", "list {many}"])
def test_a_reader_that_leaves_ends_the_command_without_a_word(many: Path, arguments: str) -> None:
    done = shell(f"$forge {arguments.format(many=many)} | head -1; exit ${{PIPESTATUS[0]}}")
    assert done.stderr == b""
    # 141 as SIGPIPE ends other tools; 0 where all fitted into the pipe
    assert done.returncode in (0, 141)
    assert done.stdout.count(b"\n") == 1


def test_help_into_a_closed_pipe_is_quiet() -> None:
    done = shell("$forge --help | true; exit ${PIPESTATUS[0]}")
    assert done.stderr == b""
    assert done.returncode in (0, 141)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("arguments", ["list {place} --json", "--help"])
def test_a_full_device_is_one_line_and_an_io_error(
    tiny_checkpoint: Checkpoint, arguments: str
) -> None:
    done = shell(f"$forge {arguments.format(place=tiny_checkpoint.path.parent)} > /dev/full")
    assert done.returncode == 74
    assert done.stderr == b"forge: cannot write to standard output: No space left on device\n"


def test_closed_streams_take_what_is_written(tiny_checkpoint: Checkpoint) -> None:
    for closed in (">&-", ">&- 2>&-", "<&- >&- 2>&-"):
        done = shell(f"$forge list {tiny_checkpoint.path.parent} {closed}")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert shell("$forge list nowhere 2>&-").returncode == 74


def test_signs_that_an_encoding_lacks_are_spelled_and_letters_are_question_marks() -> None:
    said = "text .980 (≥ .977) · 1.8 → 1.9, −2, ö…"
    spelled = said.encode("ascii", streams.ON_ERROR)
    assert spelled == b"text .980 (>= .977) - 1.8 -> 1.9, -2, ?..."
    assert said.encode("utf-8", streams.ON_ERROR).decode() == said


def test_an_ascii_terminal_shows_question_marks_and_files_stay_utf_8(
    tiny_checkpoint: Checkpoint, text_folder: Path, tmp_path: Path
) -> None:
    """A phase, and the commands around it, in the C locale without UTF-8 mode."""
    out = tmp_path / "größe"
    settings = (
        f"sources=[{tiny_checkpoint.path}] out={out} data.text=[{text_folder}] "
        f"data.cache={tmp_path / 'cache'} "
        "runtime.threads=1 linear.group_size=32 init.rows=2 train.rows=2 "
        "train.length_tokens=32 train.steps=1 "
        "measure_items=4 gate.enabled=false"
    )
    done = shell(f"$forge bitnet {settings}", **C_LOCALE)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert (out / "forge.json").is_file()
    for command in (
        f"list {tmp_path}",
        f"inspect {out}",
        f"verify {tmp_path}",
        f"status {tmp_path}",
        f"report {tmp_path}",
    ):
        shown = shell(f"$forge {command}", **C_LOCALE)
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.isascii()
        assert shown.stderr == b""
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "bitnet" in page


def test_results_go_to_stdout_and_logs_to_stderr(
    tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    (tmp_path / "all" / "broken").mkdir(parents=True)
    (tmp_path / "all" / "broken" / "forge.json").write_text("{", encoding="utf-8")
    done = shell(
        f"cp -r {tiny_checkpoint.path} {tmp_path}/all/whole; $forge list {tmp_path}/all --json"
    )
    assert done.stdout.count(b"\n") == 1
    assert b"forge.json is damaged" in done.stderr


def test_piped_bytes_that_are_not_utf_8_are_refused_and_not_replaced(
    tiny_checkpoint: Checkpoint,
) -> None:
    done = shell(f"printf '\\377\\376h\\000i\\000' | $forge chat {tiny_checkpoint.path}")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"forge: the message is not UTF-8 (character 0)")


def test_a_current_directory_that_is_gone_is_one_line(tmp_path: Path) -> None:
    done = shell(f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; $forge list")
    assert done.returncode == 74
    assert done.stderr == b"forge: the current directory is gone; change to another one\n"


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_a_narrow_terminal_is_seen_without_columns_in_the_environment(kind: str) -> None:
    main, other = os.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    with subprocess.Popen(
        [sys.executable, "-m", "agent_forge", "run-all", "--help"],
        stdin=other, stdout=other, stderr=other, env={**environment, "TERM": kind},
    ) as process:  # fmt: skip
        os.close(other)
        shown = b""
        try:
            while part := os.read(main, 65536):
                shown += part
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(main)
    assert process.returncode == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()
    assert any("--no-resume" in line for line in lines)
    assert max(map(len, lines)) <= 40
