"""bandit over our code, pip-audit over the installed packages, npm audit where there is npm.

Each runs from the environment (or from another Python, --tools) and is read as JSON. A package that
an audit skipped is a failure, because nobody knows about it. Where a tool is missing, or no
advisory source can be reached, the check is "not judged" and says so: it is never "passed".
"""

import json
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.compliance.check import FAILED, NOT_JUDGED, PASSED, ROOT, Check

SECONDS = 600
OWN = ("agent-forge",)  # is not on an index: skipping it is right
_SECRETS = {
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "age key": re.compile(r"AGE-SECRET-KEY-1[A-Z0-9]{20,}"),
    "AWS key": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "token": re.compile(r"\b(?:ghp|gho|hf|sk)_[A-Za-z0-9]{30,}\b"),
    "password": re.compile(
        r"(?i)\b(?:password|passwd|api_key|secret)\s*=\s*[\"'][^\"'{}<]{8,}[\"']"
    ),
}


def credentials(root: Path = ROOT) -> Check:
    """Look for keys, tokens and passwords in every tracked text file."""
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    places = []
    for name in filter(None, names):
        try:
            text = (root / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # not text, or a link to nowhere
        for number, line in enumerate(text.splitlines(), start=1):
            places += [f"- {name}:{number}: {kind}" for kind, pattern in _SECRETS.items()
                       if pattern.search(line)]  # fmt: skip
    status = FAILED if places else PASSED
    return Check("No credentials in the tree", status, f"{len(places)} suspicious lines", places)


def bandit(python: str, folder: Path = ROOT / "agent_forge") -> Check:
    """Fail on a finding of high severity; count the others."""
    done = _run([python, "-m", "bandit", "-q", "-r", str(folder), "-f", "json"])
    if done is None or "No module named" in done.stderr:
        return _missing("bandit", python)
    try:
        results: list[dict[str, Any]] = json.loads(done.stdout)["results"]
    except (ValueError, KeyError):
        return Check("bandit", FAILED, f"no report: {done.stderr.strip()[-200:]}")
    order = ("HIGH", "MEDIUM", "LOW")
    counts = {level: sum(r["issue_severity"] == level for r in results) for level in order}
    lines = [
        f"- {r['issue_severity'].lower()}: {Path(r['filename']).relative_to(folder.parent)}:"
        f"{r['line_number']} {r['test_id']} {r['issue_text'].splitlines()[0]}"
        for r in results if r["issue_severity"] != "LOW"
    ]  # fmt: skip
    summary = ", ".join(f"{counts[level]} {level.lower()}" for level in order)
    return Check("bandit", FAILED if counts["HIGH"] else PASSED, summary, lines)


def pip_audit(python: str, site: Path | None = None) -> Check:
    """Ask for known weaknesses of every installed package."""
    site = site or Path(sysconfig.get_paths()["purelib"])
    done = _run(
        [python, "-m", "pip_audit", "--path", str(site), "--format", "json",
         "--progress-spinner", "off"]
    )  # fmt: skip
    if done is None or "No module named" in done.stderr:
        return _missing("pip-audit", python)
    return judge_pip_audit(done.stdout, done.stderr)


def judge_pip_audit(stdout: str, stderr: str) -> Check:
    """Return what a pip-audit report says."""
    try:
        packages: list[dict[str, Any]] = json.loads(stdout)["dependencies"]
    except (ValueError, KeyError):
        return _unreachable("pip-audit", stderr)
    skipped = [
        f"- skipped: {p['name']}: {p['skip_reason']}" for p in packages
        if p.get("skip_reason") and p["name"].lower() not in OWN
    ]  # fmt: skip
    if packages and len(skipped) == sum(p["name"].lower() not in OWN for p in packages):
        return _unreachable("pip-audit", skipped[0].removeprefix("- "))
    weak = [
        f"- {p['name']} {p['version']}: {v['id']}, mended in {', '.join(v['fix_versions']) or '?'}"
        for p in packages for v in p.get("vulns", [])
    ]  # fmt: skip
    summary = f"{len(packages)} packages, {len(weak)} known weaknesses, {len(skipped)} skipped"
    return Check("pip-audit", FAILED if weak or skipped else PASSED, summary, [*weak, *skipped])


def npm_audit(root: Path = ROOT) -> list[Check]:
    """Audit every tracked package.json with its lock file."""
    names = subprocess.run(
        ["git", "ls-files", "*package.json"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [_npm_audit(root / name) for name in names]


def _npm_audit(file: Path) -> Check:
    name = f"npm audit ({file.parent.name})"
    if shutil.which("npm") is None:
        return Check(name, NOT_JUDGED, "npm is not installed")
    done = _run(["npm", "audit", "--json", "--package-lock-only"], cwd=file.parent)
    return judge_npm_audit(name, done.stdout if done else "", done.stderr if done else "")


def judge_npm_audit(name: str, stdout: str, stderr: str) -> Check:
    """Return what an npm audit report says."""
    try:
        report: dict[str, Any] = json.loads(stdout)
        counts: dict[str, int] = report["metadata"]["vulnerabilities"]
    except (ValueError, KeyError):
        return _unreachable(name, stderr or stdout)
    total = counts.get("total", 0)
    lines = [f"- {p}: {entry['severity']}" for p, entry in report["vulnerabilities"].items()]
    summary = f"{report['metadata']['dependencies']['total']} packages, {total} weaknesses"
    return Check(name, FAILED if total else PASSED, summary, lines)


def _run(command: Sequence[str], cwd: Path = ROOT) -> "subprocess.CompletedProcess[str] | None":
    """Run a tool; return None where it does not exist or does not end."""
    try:
        return subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, check=False, timeout=SECONDS
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None


def _missing(tool: str, python: str) -> Check:
    return Check(tool, NOT_JUDGED, f"{tool} is not installed for {python}: pip install {tool} "
                 "(in an environment of its own, then --tools PYTHON)")  # fmt: skip


def _unreachable(tool: str, text: str) -> Check:
    reason = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    return Check(tool, NOT_JUDGED, f"no advisory source was reachable: {reason[:160]}")
