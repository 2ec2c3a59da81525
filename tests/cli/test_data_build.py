"""`forge data build` on the command line: what it prints, and what it refuses in one line."""

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

Cli = Callable[..., Result]
SMALL = ["size_bytes=24000", "report=[mathematics]"]


def test_a_set_is_built_once_and_named(cli: Cli, tmp_path: Path) -> None:
    out = f"out={tmp_path}"
    first = cli("data", "build", "broad", *SMALL, out, "--json")
    assert first.exit_code == 0, first.stderr
    shown = json.loads(first.stdout)
    assert Path(shown["path"]).name == f"broad-{shown['id'][:16]}"
    assert "prose: " in first.stderr
    again = cli("data", "build", "broad", *SMALL, out)
    assert shown["path"].rpartition("/")[2] in again.stdout
    assert "its README.md is the card" in " ".join(again.stdout.split())


def test_what_cannot_be_built_is_refused_with_the_remedy(cli: Cli, tmp_path: Path) -> None:
    out = f"out={tmp_path}"
    for wrong, message in (
        (["broad", "texts.tool_calls=[bfcl]", "report=[bfcl]"], "either trained on or reported"),
        (["broad", "shares.prose=2", "texts.prose=[]"], "texts.prose names nothing"),
        (["broad", "own.sare=0.5"], "did you mean 'own.share'"),
        (["broat"], "did you mean 'broad'"),
    ):
        refused = cli("data", "build", *wrong, out)
        assert refused.exit_code == 2
        assert message in " ".join(refused.stderr.split())
