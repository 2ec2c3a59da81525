"""The table of families: a fast part of it, in this process, and that its cells tell a
disagreement.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests import tiny_families

SCRIPT = Path(__file__).parent.parent / "scripts" / "family_table.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Return scripts/family_table.py as a module."""
    spec = importlib.util.spec_from_file_location("family_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["gemma3_text", "llama"])
def test_every_command_works_on_a_family_or_says_why_not(
    kind: str, script: ModuleType, tmp_path: Path
) -> None:
    cells = script.row(kind, tmp_path)
    assert cells["import"] == cells["merge"] == "exact"
    assert cells["chat"] == "same tokens"
    assert cells["bitnet"].startswith("exact, reaches ")
    for name in ("eval", "compress"):
        assert cells[name].startswith("exact") or float(cells[name].partition(",")[0]) <= 1e-5
    assert float(cells["export (GGUF)"].rpartition("back ")[2]) <= 5e-3
    if kind == "llama":
        assert float(cells["run packed"]) <= 1e-4
    else:
        assert (
            f"refused: the packed engine does not compute model type '{kind}'"
            in cells["run packed"]
        )


def test_a_cell_tells_a_disagreement() -> None:
    one, other = tiny_families.build("llama"), tiny_families.build("llama", seed=1)
    assert tiny_families.relative_error(one, one) == 0
    assert tiny_families.relative_error(one, other) > 0.5
    with torch.no_grad():
        other.load_state_dict(one.state_dict())
        other.lm_head.weight[0] += 1
    assert tiny_families.relative_error(one, other) > 1e-3
