"""`make setup` keeps a torch with CUDA that is there, and installs the CPU build elsewhere."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A Python that notes what it is called with; `-m venv DIR` makes a copy of it, as seen from inside
# the environment.
PYTHON = """#!/bin/sh
echo "$(basename "$0") $*" | head -1 >>{log}
case "$1 $2" in
"-c "*) echo {version}; exit {status} ;;
"-m venv") for last; do :; done; mkdir -p "$last/bin"; cp {inside} "$last/bin/python" ;;
esac
"""


def setup(place: Path, outside: tuple[str, int], inside: tuple[str, int]) -> tuple[list[str], str]:
    """Return the commands that a setup runs, and the constraints that it made."""
    log = place / "log"
    for name, (version, status) in (("inner", inside), ("outer", outside)):
        file = place / name
        file.write_text(
            PYTHON.format(log=log, version=version, status=status, inside=place / "inner"),
            encoding="utf-8",
        )
        file.chmod(0o755)
    venv = place / "venv"
    process = subprocess.run(
        ["sh", "scripts/setup.sh", str(place / "outer"), str(venv)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    commands = [line for line in log.read_text(encoding="utf-8").splitlines() if " -m " in line]
    constraints = venv / "constraints.txt"
    return commands, constraints.read_text(encoding="utf-8") if constraints.exists() else ""


def test_a_torch_with_cuda_is_kept(tmp_path: Path) -> None:
    commands, constraints = setup(tmp_path, ("2.11.0+cu128", 0), ("2.11.0+cu128", 0))
    assert commands[0] == f"outer -m venv --system-site-packages {tmp_path / 'venv'}"
    assert [command for command in commands if "torch==" in command] == []
    assert commands[-1].startswith(
        f"python -m pip install --quiet -c {tmp_path / 'venv' / 'constraints.txt'} -e "
    )
    lines = constraints.splitlines()
    assert [line for line in lines if line.startswith("torch==")] == ["torch==2.11.0+cu128"]
    assert len(lines) == len((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(
    ("outside", "inside"),
    # the last is a nested venv
    [(("", 1), ("", 1)), (("2.10.0+cu128", 1), ("", 1)), (("2.11.0+cu128", 0), ("", 1))],
)
def test_without_one_the_cpu_build_comes_first(
    outside: tuple[str, int], inside: tuple[str, int], tmp_path: Path
) -> None:
    commands, constraints = setup(tmp_path, outside, inside)
    assert commands[-3] == f"outer -m venv --clear {tmp_path / 'venv'}"
    assert commands[-2] == "python -m pip install --quiet torch==2.13.0"
    assert commands[-1].startswith("python -m pip install --quiet -c constraints.txt -e ")
    assert constraints == ""
