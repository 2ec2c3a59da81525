"""Results: one shape for every bench, one file per result, and pages that hold what the files
say.
"""

import importlib
import math
import re
from pathlib import Path

import numpy as np
import pytest

from scripts.bench import __main__ as command
from scripts.bench import draw, render, result, stats

ROOT = result.ROOT
NAMED = re.compile(r"python -m scripts\.bench run (\w+)")


def measured(**more: object) -> result.Result:
    values = {
        "claim": "a claim", "figure": 1.5, "topic": "Training", "machine": "m", "date": "2026-11-30",
        "commit": "c", "command": "python -m scripts.bench run train",
    }  # fmt: skip
    return result.Result(**{**values, **more})


@pytest.mark.parametrize("path", list(render.pages()), ids=lambda path: path.name)
def test_a_page_holds_exactly_what_results_say(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == render.pages()[path], (
        "python -m scripts.bench render"
    )


def test_a_changed_figure_changes_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    before = render.pages()
    results = result.read_all()
    results["compress"].find("ours 62 MB").figure = 9.876
    results["compress"].figures[0].figure = 8.765
    results["compress"].points["ours"][0] = (33.0, 9.0)
    monkeypatch.setattr(render, "read_all", lambda: results)
    after = render.pages()
    assert all(after[path] != before[path] for path in before)
    assert "9.876" in after[render.README]
    assert "8.765" in after[render.PAGE]


def test_every_bench_claims_something_has_a_bar_and_runs() -> None:
    known = command.benches()
    assert {"bitnet", "codecs", "compress", "decode", "merge", "run_all", "train"} <= set(known)
    for name, values in known.items():
        module = importlib.import_module(f"scripts.bench.{name}")
        assert (values["CLAIM"], values["BAR"]) == (module.CLAIM, module.BAR)
        assert callable(module.run)


def test_results_are_those_of_benches_and_commands_name_what_exists() -> None:
    known = set(command.benches())
    for name, one in result.read_all().items():
        for bench in NAMED.findall(one.command):
            assert bench in known, f"{name}: {one.command}"
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", one.date), name
        if one.met is not None:
            assert one.bar, name
    for page in ("docs/log.md", "docs/results.md", "README.md", "docs/compression.md"):
        assert set(NAMED.findall((ROOT / page).read_text(encoding="utf-8"))) <= known | {"NAME"}, (
            page
        )


def test_log_entries_are_dated_newest_first_and_have_a_verdict_and_notes_that_exist() -> None:
    log = (ROOT / "docs" / "log.md").read_text(encoding="utf-8")
    dates = re.findall(r"^## (\d{4}-\d\d-\d\d)$", log, flags=re.MULTILINE)
    assert dates == sorted(dates, reverse=True)
    entries = [e for e in re.split(r"^(?=- )", log, flags=re.MULTILINE) if e.startswith("- ")]
    assert len(entries) > 50
    assert all(re.match(r"- \*\*(gain|null|loss)\*\* ", entry) for entry in entries)
    for link in re.findall(r"\]\(([^)#]+)", log):
        assert (ROOT / "docs" / link).resolve().is_file(), link


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    figure = result.Figure(claim="another", figure=None, interval=(1, 2), met=False, key="k")
    one = measured(figures=[figure], points={"ours": [(1.0, 2.0)]}, tables="| a |\n|---|")
    path = result.write("name", one, tmp_path)
    again = result.read(path)
    assert again.every()[1] == figure
    assert again.find("k") == figure
    assert again.tables == ""
    assert (tmp_path / "name.md").read_text().endswith("| a |\n|---|\n")
    with pytest.raises(KeyError, match="no figure 'other'"):
        again.find("other")
    with pytest.raises(ValueError, match="upside down"):
        result.Figure(claim="c", figure=1.0, interval=(2, 1))


def test_bars_are_counted_over_the_figures_that_have_one() -> None:
    figures = [result.Figure(claim="c", figure=1.0, met=met) for met in (True, None, False)]
    assert result.bars_met(figures) == {"figure": 1.0, "unit": "of 2 bars met", "met": False}
    assert result.bars_met(figures[1:2])["met"] is None


def test_a_missed_bar_is_said_on_the_page_and_by_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed = measured(bar="at least 2", met=False)
    assert "**missed**" in render.section("Training", {"train": missed})
    module = importlib.import_module("scripts.bench.ternary")
    monkeypatch.setattr(module, "run", lambda _: missed)
    assert command.run("ternary", [], tmp_path) == 1
    assert (tmp_path / "ternary.json").is_file()
    assert command.run("nothing", [], tmp_path) == 2


def test_a_page_without_markers_and_an_unknown_topic_are_refused() -> None:
    with pytest.raises(ValueError, match="has no block between"):
        render.with_blocks("no markers", {"name": "x"})
    with pytest.raises(ValueError, match="not in TOPICS"):
        render.results_page({"x": measured(topic="Weather")})


def test_numbers_have_the_digits_that_their_size_needs() -> None:
    values = (0.00413, 1.0, -1.0083, 14.0, 476.52, 18684.4, None)
    assert render.number(100.0) == "100"
    texts = ["0.004", "1", "-1.008", "14", "476.5", "18,684", ""]
    assert [render.number(value) for value in values] == texts
    assert render.shown(measured(figure=6.0, unit="of 6 bars met")) == "6 of 6 bars met"
    assert render.shown(measured(unit="x", interval=(1.25, 20))) == "1.5 [1.25, 20] x"


def test_students_p_agrees_with_its_closed_forms() -> None:
    for t in (0.3, 1.0, 2.7, 12.7):
        assert stats.student_p(t, 1) == pytest.approx(1 - 2 * math.atan(t) / math.pi, abs=1e-6)
        assert stats.student_p(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-6)
    for freedom, t in stats.T_975.items():
        assert stats.student_p(t, freedom) == pytest.approx(
            0.05, abs=5e-5
        )  # tables have three decimals of t


def test_paired_gains_without_spread_or_alone_say_so() -> None:
    assert stats.paired_t([1.0, 1.0]) == (math.inf, 0.0)
    assert stats.paired_t([0.0, 0.0]) == (0.0, 1.0)
    assert all(math.isnan(value) for value in stats.paired_t([1.0]))
    assert stats.mean_interval([2.0])[0] == 2.0
    assert measured(interval=stats.mean_interval([2.0])[1:]).interval is None
    mean, low, high = stats.mean_interval([1.0, 2.0, 3.0])
    assert (mean, high - mean) == (2.0, pytest.approx(4.303 / math.sqrt(3)))
    assert low == pytest.approx(2 * mean - high)


def test_shares_and_differences_have_the_textbooks_intervals() -> None:
    share, low, high = stats.wilson([1, 1, 1, 1, 0])
    assert (share, low, high) == (
        0.8,
        pytest.approx(0.3755, abs=1e-4),
        pytest.approx(0.9638, abs=1e-4),
    )
    mean, low, high = stats.normal_interval(np.array([0.0, 2.0]))
    assert (mean, high - mean) == (1.0, pytest.approx(1.96))
    assert mean - low == pytest.approx(1.96)


def test_the_picture_puts_more_bytes_to_the_right_and_more_loss_up() -> None:
    assert draw.x_of(30) < draw.x_of(60)
    assert draw.y_of(1.5) < draw.y_of(1.1) < draw.y_of(1.0)
    picture = draw.compression({"ours": [(30.0, 1.5)], "llama.cpp": [(500.0, 1.0)]})
    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', picture)
    assert (f"{draw.x_of(30):.1f}", f"{draw.y_of(1.5):.1f}") in circles
    assert len(circles) == 3  # one point, and two of the legend: 500 MB is outside


def test_the_page_has_a_place_for_the_topic_of_every_bench() -> None:
    folder = Path(render.__file__).parent
    named = {
        topic
        for file in folder.glob("*.py")
        for topic in re.findall(r'topic="([^"]+)"', file.read_text(encoding="utf-8"))
    }
    assert named <= set(render.TOPICS)
    assert len(named) > 10
