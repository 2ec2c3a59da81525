"""The bench that runs finished phases again with their baselines of equal budget."""

from pathlib import Path

import pytest

from scripts.bench import baselines


def test_a_finished_phase_is_run_again_beside_its_baseline(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = baselines.run([str(tiny_run), "--out", str(tmp_path), "--phases", "bake"])
    (bake,) = capsys.readouterr().out.splitlines()
    assert bake.startswith(
        "bake: against plain training on the same rows for as many steps: calculator "
    )
    assert len(result.figures) == bake.count("(n=")
    assert all(figure.claim.startswith("bake, ") for figure in result.figures)
    assert all(figure.unit.startswith("against ") and not figure.bar for figure in result.figures)
    # The tiny run's stages are too short for an average, so train has nothing to compare.
    (train,) = baselines.run([str(tiny_run), "--out", str(tmp_path), "--phases", "train"]).figures
    assert train.claim.startswith("train: the same run: no mechanism is on")
    assert (train.figure, train.met) == (None, None)


def test_the_figures_are_those_of_the_reports_line() -> None:
    cognate = (
        "nats per token gained on their own probes over the trunk, trained 60 steps longer: "
        "reasoning +0.120 [+0.010, +0.230] (n=48), memory_integration -0.004 [-0.020, +0.013] (n=40)"
    )
    first, second = baselines.entries("cognate", cognate)
    assert (first.figure, first.interval, first.n, first.met) == (0.12, (0.01, 0.23), "n=48", True)
    assert first.claim.endswith("over the trunk, trained 60 steps longer: reasoning")
    assert (second.figure, second.interval, second.met) == (-0.004, (-0.02, 0.013), False)
    assert second.claim.endswith(": memory_integration")
    train = (
        "gain over plain training of equal tokens: text -0.0016 [-0.0030, +0.0001] bits per byte "
        "(n=128); tools +0.0312 [-0.0100, +0.0700] right (n=128)"
    )
    first, second = baselines.entries("train", train)
    assert (first.unit, first.claim.rpartition(": ")[2]) == ("bits per byte", "text")
    assert (second.unit, second.figure, second.met) == ("right", 0.0312, False)
    bake = (
        "against plain training on the same rows for as many steps: calculator 0.958 [0.860, 0.989] "
        "against 0.979 [0.891, 0.996] (n=48); text bits per byte 1.816 [1.751, 1.889] against 1.822 "
        "[1.760, 1.890] (n=128)"
    )
    first, second = baselines.entries("bake", bake)
    assert (first.figure, first.unit) == (0.958, "against 0.979 [0.891, 0.996]")
    assert (second.claim.rpartition(": ")[2], second.figure) == ("text bits per byte", 1.816)
    assert (second.met, second.bar) == (None, "")
    with pytest.raises(ValueError, match="no figure in the baseline's line: none ran"):
        baselines.entries("bake", "none ran: plain training is off")
