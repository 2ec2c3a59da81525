"""The bench of adas at tiny size: every baseline really runs, and a second start does no work."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_forge import checkpoint
from agent_forge.config import DataConfig
from scripts.bench import adas
from scripts.bench.result import Figure


def test_a_tiny_run_has_every_baseline_and_goes_on_from_what_is_there(
    tiny_checkpoint: checkpoint.Checkpoint, data_config: DataConfig, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    words = [
        str(tiny_checkpoint.path), "--items", "6", "--fit", "4", "--fresh", "4", "--work",
        str(tmp_path), f"data.text={data_config.text}", f"data.cache={data_config.cache}",
        "data.max_text_bytes=0", "runtime.dtype=float32", "runtime.device=cpu", "runtime.threads=1",
    ]  # fmt: skip
    result: Any = adas.run(words)
    claims = [figure.claim for figure in result.figures]
    for name in ("LoRA", "random search", "random vectors", "best of 5"):
        assert any(f"over {name}" in claim for claim in claims)
        assert f"right decisions: {name}" in claims
    assert sum(figure.met is not None for figure in result.figures) == 1
    assert result.tables.count("\n") == 7

    def stopped(*_: object, **__: object) -> None:
        raise AssertionError("nothing is to be done again")

    for name in ("forge", "_lora", "_random_search", "_random_vectors", "_plain_test"):
        monkeypatch.setattr(adas, name, stopped)
    assert adas.run(words).figures == result.figures
    with pytest.raises(SystemExit, match="other settings"):
        adas.run([*words, "seed=1"])


def test_noise_has_the_norms_it_is_given_and_goes_without_a_trace(tiny_llama: Any) -> None:
    bench: Any = adas.Bench.__new__(adas.Bench)
    bench.model, bench.config = tiny_llama, type("Config", (), {"seed": 0})
    before = {name: weight.detach().clone() for name, weight in tiny_llama.named_parameters()}
    name = next(iter(before))
    with adas._Noise(bench, {name: 2.0}, 0):
        moved = {
            key: weight.detach() - before[key] for key, weight in tiny_llama.named_parameters()
        }
        assert float(moved[name].norm()) == pytest.approx(2.0, rel=1e-3)
        assert not any(moved[key].any() for key in moved if key != name)
    assert all((weight == before[key]).all() for key, weight in tiny_llama.named_parameters())


@pytest.mark.parametrize(("gain", "most"), [(1.0, 0.01), (0.0, 1.0)])
def test_the_bar_asks_for_an_interval_above_the_best_baseline(gain: float, most: float) -> None:
    def scores(right: Any) -> Any:
        items = [{"kind": adas.FITS, "cluster": str(i)} for i in range(len(right))]
        pairs = np.stack([np.asarray(right, float), np.ones(len(right))], 1)
        return adas.evaluate.scores_of(adas.gates.TASK, items, pairs, "test", 0)

    known = {adas.INPUT: scores([0.0] * 20), adas.OURS: scores([gain] * 20)}
    known["LoRA"] = known[adas.INPUT]
    compared = adas._compared(known)
    figure: Figure = adas._gain(known, "LoRA", compared, bar=True)
    assert figure.met is (gain > 0)
    assert figure.figure == gain
    assert compared["LoRA"]["p by Holm"] <= most
