"""Compliance: counts on known code are right, a skipped package fails, nothing is claimed."""

import json
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from scripts.compliance import leak, power_of_ten, sbom, scanners
from scripts.compliance.__main__ import report
from scripts.compliance.check import FAILED, NOT_JUDGED, PASSED, ROOT, Check

BROKEN = """
import os


def again(n):
    return again(n - 1) if n else 0


def endless():
    while True:
        print("x")


def ends():
    while True:
        break


def passes_over():
    try:
        endless()
    except Exception:
        return None


def raises_again():
    try:
        endless()
    except Exception as error:
        raise ValueError from error


def evaluates(text, name):
    global COUNT
    COUNT = 1
    assert text
    return eval(text), getattr(os, name), getattr(os, "sep")


def long():
LINES
"""


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Return a folder with one file that breaks each counted rule once."""
    (tmp_path / "package").mkdir()
    lines = "\n".join(f"    x{i} = {i}" for i in range(power_of_ten.LONG_LINES))
    (tmp_path / "package" / "file.py").write_text(BROKEN.replace("LINES", lines))
    return tmp_path / "package"


def test_each_rule_counts_what_breaks_it_and_nothing_else(broken: Path) -> None:
    counts = power_of_ten.count(broken)
    assert (counts.functions, counts.checks) == (7, 2)
    names = {
        "recursive": ["again"], "long": ["long"], "globals": ["COUNT"], "evaluated": ["eval"],
        "computed": ["getattr"], "broad": ["except Exception"],
        "endless": ["while True without an end"],
    }  # fmt: skip
    for kind, expected in names.items():
        assert [place.name for place in getattr(counts, kind)] == expected, kind
    result = power_of_ten.check(broken, {})
    assert result.status == FAILED
    assert "exceeded: 2, 4, 7, 8," in result.summary


def test_a_waiver_excuses_one_place_and_must_have_one(broken: Path) -> None:
    rules = {(rule, "package/file.py"): "because" for rule in ("2", "7", "8")}
    assert "exceeded: 4," in power_of_ten.check(broken, rules).summary
    stale = power_of_ten.check(broken, {**rules, ("2", "package/other.py"): "because"})
    assert "waiver without a place: package/other.py (rule 2)" in stale.summary


def test_the_tree_exceeds_no_limit() -> None:
    result = power_of_ten.check()
    assert result.status == PASSED, "\n".join([result.summary, *result.lines])


def test_the_bill_of_materials_names_every_distribution_with_its_version(tmp_path: Path) -> None:
    result = sbom.check(tmp_path / "sbom.json")
    document = json.loads((tmp_path / "sbom.json").read_text())
    listed = {c["name"]: c["version"] for c in document["components"]}
    for name in ("torch", "numpy", "typer"):
        assert listed[name] == metadata.version(name)
    assert result.summary.startswith(f"{len(listed)} packages")
    refs = {component["bom-ref"] for component in document["components"]}
    assert all(set(one["dependsOn"]) <= refs for one in document["dependencies"])
    needs = {one["ref"].partition("@")[0]: one["dependsOn"] for one in document["dependencies"]}
    assert any("pkg:pypi/omegaconf@" in ref for ref in needs["pkg:pypi/hydra-core"])
    again = sbom.build(list(metadata.distributions()))
    assert again["serialNumber"] == document["serialNumber"]


def pip_report(*packages: dict) -> str:
    return json.dumps({"dependencies": list(packages), "fixes": []})


GOOD = {"name": "numpy", "version": "2.0", "vulns": []}
WEAK = {**GOOD, "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}]}
SKIPPED = {"name": "torch", "skip_reason": "not found on PyPI"}
OURS = {"name": "agent-forge", "skip_reason": "not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "status", "text"),
    [
        ([GOOD, OURS], PASSED, "0 known weaknesses, 0 skipped"),
        ([GOOD, WEAK], FAILED, "1 known weaknesses"),
        ([GOOD, SKIPPED], FAILED, "1 skipped"),
    ],
)
def test_a_weak_or_a_skipped_package_fails_the_audit(
    packages: list[dict], status: str, text: str
) -> None:
    result = scanners.judge_pip_audit(pip_report(*packages), "")
    assert (result.status, text in result.summary) == (status, True)


def test_an_audit_that_reached_no_source_is_not_judged() -> None:
    result = scanners.judge_pip_audit("", "long trace\nConnectionError: Name not known\n")
    assert result.status == NOT_JUDGED
    assert result.summary == "no advisory source was reachable: ConnectionError: Name not known"
    # An index without advisories answers for each package that it does not know it.
    assert scanners.judge_pip_audit(pip_report(SKIPPED, OURS), "").status == NOT_JUDGED
    refused = '{"error": {"code": "ENOTFOUND"}}'
    assert scanners.judge_npm_audit("npm audit", refused, "").status == NOT_JUDGED


@pytest.mark.parametrize("total", [0, 2])
def test_npm_audit_fails_on_any_weakness(total: int) -> None:
    content = {
        "vulnerabilities": {"left-pad": {"severity": "high"}} if total else {},
        "metadata": {"vulnerabilities": {"total": total}, "dependencies": {"total": 9}},
    }
    result = scanners.judge_npm_audit("npm audit", json.dumps(content), "")
    assert result.status == (FAILED if total else PASSED)


def test_a_tool_that_is_not_installed_names_how(tmp_path: Path) -> None:
    python = str(tmp_path / "python")
    for result in (scanners.bandit(python), scanners.pip_audit(python)):
        assert result.status == NOT_JUDGED
        assert f"pip install {result.name}" in result.summary


SECRETS = ["AGE-SECRET-KEY-1" + "Q" * 58, "-----BEGIN " + "RSA PRIVATE KEY-----",
           "AKIA" + "A1" * 8, "ghp_" + "a1" * 18, 'password = "correct' + 'horse"']  # fmt: skip


def test_credentials_are_found_in_tracked_files_and_ours_hold_none(tmp_path: Path) -> None:
    for command in (["init", "-q"], ["add", "."]):
        (tmp_path / "code.py").write_text("\n".join(["x = 1", *SECRETS, "password = ''"]))
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    result = scanners.credentials(tmp_path)
    assert [line.split(":")[1] for line in result.lines] == ["2", "3", "4", "5", "6"]
    assert result.status == FAILED
    ours = scanners.credentials(ROOT)
    assert ours.status == PASSED, ours.lines


def test_memory_and_open_files_must_stay_flat() -> None:
    flat = {"turns": 200, "bytes_per_turn": 100.0, "files_more": 0, "resident_bytes": 5e8}
    assert leak.judge(flat).status == PASSED
    assert leak.judge({**flat, "bytes_per_turn": 50_000.0}).status == FAILED
    assert leak.judge({**flat, "files_more": 1}).status == FAILED


def test_an_agent_answers_in_the_leak_test_and_what_it_keeps_is_measured() -> None:
    values = leak.measure(9)
    assert (values["turns"], values["files_more"]) == (6, 0)
    assert values["resident_bytes"] > 10**8


def test_the_report_says_what_was_not_judged() -> None:
    text = report(
        [Check("bandit", NOT_JUDGED, "not installed"), Check("SBOM", PASSED, "3", ["- a"])]
    )
    assert "| bandit | not judged | not installed |" in text
    assert "- a" in text
