"""The bench of an accelerator: parts that fail or hang are named, the rest is measured, and the
result is always there.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import agent_forge
from agent_forge.pipeline.run_all import compose_run

ROOT = Path(agent_forge.__file__).parent.parent
SCRIPTS = ROOT / "scripts"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPTS / "bench_gpu.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["bench_gpu"] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(SCRIPTS))


def command(bench: ModuleType, code: str) -> Any:
    return bench.Command([sys.executable, "-c", code], bench.last_json)


def test_a_part_that_fails_or_hangs_is_named_and_the_others_are_measured(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = (
        bench.Part(
            "broken",
            1,
            lambda _: [command(bench, "print('before'); raise SystemExit('broken on purpose')")],
        ),
        bench.Part(
            "hangs",
            0.05,
            lambda _: [command(bench, "import time; print('started', flush=True); time.sleep(60)")],
        ),
        bench.Part("silent", 1, lambda _: [command(bench, "print('no figures')")]),
        bench.Part(
            "works", 1, lambda _: [command(bench, "print('noise'); print('{\"speed\": 2.5}')")]
        ),
    )
    monkeypatch.setattr(bench, "PARTS", parts)
    monkeypatch.setattr(bench, "LEAST_SECONDS", 1.0)
    # The machine and the model are another part's matter.
    monkeypatch.setattr(
        bench.Bench,
        "own",
        lambda *_: command(bench, 'print(\'{"text": "", "model": "", "weights": "random"}\')'),
    )
    out = tmp_path / "result.json"
    monkeypatch.setattr(
        sys, "argv", ["bench_gpu.py", "--device", "cpu", "--work", str(tmp_path), "--out", str(out)]
    )
    assert bench.main() == 1
    results = json.loads(out.read_text())["parts"]
    assert {name: rows[0]["ok"] for name, rows in results.items()} == {
        "broken": False, "hangs": False, "silent": False, "works": True,
    }  # fmt: skip
    assert "broken on purpose" in results["broken"][0]["output"]
    assert "stopped after 3 s" in results["hangs"][0]["error"]
    assert "started" in results["hangs"][0]["output"]
    assert "no figures" in results["silent"][0]["error"]
    assert results["works"][0]["figures"] == {"speed": 2.5}
    shown = bench.render(json.loads(out.read_text()))
    assert "FAILED (stopped after 3 s)" in shown
    assert "| speed | 2.5 |" in shown


def test_bars_are_judged_from_the_figures_that_are_there(bench: ModuleType) -> None:
    def cases(ours: float, plain: float) -> dict[str, Any]:
        return {"ours": {"tokens_per_second": 1.0}, "ours compiled": {"tokens_per_second": ours},
                "plain bfloat16": {"tokens_per_second": plain}}  # fmt: skip

    parts = {
        "train-135m": [{"figures": {"32 rows": cases(390e3, 260e3)}}, {"figures": {"64 rows": cases(400e3, 320e3)}}],
        "decode": [{"figures": {"plain, batch 1, ours": 1200.0, "plain, batch 1, transformers": 300.0,
                                "packed ternary, batch 1, ours": 1300.0}}],
        "compress": [{"figures": {"one": {"seconds": 61.0}}}, {"ok": False}],
    }  # fmt: skip
    rows = {row["bar"]: (row["figure"], row["met"]) for row in bench.bars(parts)}
    # Ours at its best batch, against the plain loop at that batch.
    assert rows["train-135m: ours / plain compiled"] == (pytest.approx(1.25), False)
    assert rows["train-135m: tokens per second"] == (400e3, True)
    assert rows["decode: plain, batch 1, ours / transformers"] == (4.0, False)
    assert rows["compress: seconds, one size"] == (61.0, False)
    assert "distil: tokens per second" not in rows


def test_the_few_steps_are_settings_of_the_experiment(bench: ModuleType) -> None:
    for settings in (
        ["experiment=smollm2_gpu", *bench.FEW_STEPS, *bench.SMALL, *bench.UNGATED],
        bench.NANO_SMOKE,
    ):
        run = compose_run(settings)
        assert len(run.phases) == 8
        assert not any(config.gate.enabled for config in run.phases.values())


@pytest.mark.slow
def test_it_runs_from_a_folder_that_nothing_installed(tmp_path: Path) -> None:
    """As on a machine that has the packages alone: the repository unpacked, the rest on
    PYTHONPATH.
    """
    unpacked = tmp_path / "unpacked"
    for name in ("agent_forge", "conf", "scripts"):
        shutil.copytree(
            ROOT / name,
            unpacked / name,
            symlinks=True,
            ignore=shutil.ignore_patterns("__pycache__", "node_modules"),
        )
    packages = str(Path(pytest.__file__).parent.parent)
    python = getattr(sys, "_base_executable", sys.executable)
    done = subprocess.run(
        [python, str(unpacked / "scripts" / "bench_gpu.py"), "--device", "cpu", "--smoke", "--minutes", "4", "--only",
         "decode", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "result.json")],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": packages, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["weights"] == "random"
    assert result["machine"]["copy_gb_per_second"] > 0
    (row,) = result["parts"]["decode"]
    assert row["figures"]["plain, batch 1, ours"] > 0
    assert row["figures"]["packed ternary, batch 2, ours"] > 0
