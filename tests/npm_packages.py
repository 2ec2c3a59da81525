"""Packages of the npm registry for tests, installed once per session; skipped where that fails."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

SERVERS = {
    "@modelcontextprotocol/server-everything": "2026.8.31",
    "@modelcontextprotocol/server-filesystem": "2026.8.31",
    "@modelcontextprotocol/server-memory": "2026.8.31",
}
CLIENTS = {"@modelcontextprotocol/sdk": "1.32.2", "@modelcontextprotocol/inspector": "0.17.5"}


def installed(factory: pytest.TempPathFactory, name: str, packages: dict[str, str]) -> Path:
    """Return a folder with `node_modules` of the packages, shared by all workers of a session.

    Skips the test where Node 20 is missing or the registry cannot be reached. A folder named by
    FORGE_TEST_NPM is used, and kept, in place of the session's own.
    """
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("Node.js with npm is not installed here")
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = Path(os.environ.get("FORGE_TEST_NPM", root)) / f"npm-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / "done").exists():
            (folder / "package.json").write_text(json.dumps({"dependencies": packages}))
            command = [
                "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts",
                "--cache", str(folder / "cache"), "--fetch-retries", "1",
            ]  # fmt: skip
            try:
                result = subprocess.run(
                    command, cwd=folder, capture_output=True, text=True, timeout=240, check=False
                )
            except subprocess.TimeoutExpired:
                pytest.skip("the npm registry does not answer within 240 s")
            if result.returncode:
                last = result.stderr.strip().splitlines()[-1:]
                pytest.skip(f"npm packages cannot be installed: {''.join(last)}")
            (folder / "done").touch()
    return folder / "node_modules"
