"""report.html and report.md: what stands where, every figure from the outcomes, nothing executable.

The page is read by html.parser; the run is the recorded default run of scripts/sample_run.py.
"""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from agent_forge.core.events import Event
from agent_forge.pipeline import report
from agent_forge.pipeline.outcome import Outcome
from agent_forge.pipeline.report import cells, charts, curves, facts, markdown, page, words
from scripts import sample_run

VOID = {"meta", "br", "line", "circle", "rect", "polyline", "polygon"}
EVIL = "<script>alert(1)</script>"


class Parsed(HTMLParser):
    """A page as elements (tag, attributes, text inside), with a check that tags are nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[dict[str, Any]] = []
        self.open: list[dict[str, Any]] = []
        self.feed(text)
        assert not self.open, "a tag was not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, "attributes": dict(attrs), "text": "", "inside": [*self.open]}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(
            {"tag": tag, "attributes": dict(attrs), "text": "", "inside": [*self.open]}
        )

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()["tag"] == tag
        if tag in ("td", "th", "dt", "dd", "p", "pre", "text", "title", "desc"):
            self.handle_data(" ")

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data

    def all(self, tag: str) -> list[dict[str, Any]]:
        """Return the elements of a tag."""
        return [element for element in self.elements if element["tag"] == tag]

    def visible(self) -> str:
        """Return the text that a reader sees before opening any details."""
        body = self.all("body")[0]["text"]
        for hidden in self.all("details"):
            body = body.replace(hidden["text"], "")
        return str(body)


def rich_outcomes() -> list[Outcome]:
    """Return the recorded run, with figures, tables, samples and plots as phases write them."""
    outcomes = sample_run.outcomes()
    outcomes[0].report |= {
        "summary": "Trunk at 1.8231 bits per byte; 1,663,123 bytes packed",
        "metrics": {
            "memory_integration_recall_loss_nats": 2.123456,
            "gate_entropy_nats": None,
            "rows": 10_400,
            "text": {"value": 1.8231, "low": 1.756, "high": 1.896, "n": 128},
        },
        "tables": {
            "Own probes": [
                {
                    "specialist": "reasoning",
                    "loss_nats": 1.23456,
                    "beats_siblings": True,
                    "twin": None,
                }
            ]
        },
    }
    outcomes[5].report |= {"samples": [f"user: hello\nmodel: {EVIL}"] * 4}
    outcomes[7].report |= {"plots": {"curve: bytes, quality, speed": [(2e5, 0.91), (4e5, 0.98)]}}
    return outcomes


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """Return the outcomes of a whole run."""
    return rich_outcomes()


@pytest.fixture(scope="module")
def text(outcomes: list[Outcome]) -> str:
    """Return the page of that run."""
    line = [(float(x), 5.0 - x / 20) for x in range(1, 40)]
    drawn = {"cognate": [curves.Curve(metric="loss", stages=[("trunk", line)])]}
    return report.to_html(facts.gather(outcomes, sample_run.RUN_DIR), drawn)


@pytest.fixture(scope="module")
def parsed(text: str) -> Parsed:
    """Return that page, parsed."""
    return Parsed(text)


def test_the_page_is_one_file_without_scripts_and_requests(text: str, parsed: Parsed) -> None:
    assert not {"script", "link", "img", "iframe", "object", "form"} & {
        element["tag"] for element in parsed.elements
    }
    for element in parsed.elements:
        for name, value in element["attributes"].items():
            assert not name.startswith("on")
            assert name not in ("src", "srcset", "action")
            if name == "href":
                assert value is not None
                assert value.startswith("#")
    assert "url(" not in text
    assert "@import" not in text
    assert "http" not in text.replace("http-equiv", "")


def test_the_page_can_be_read_by_machines_phones_and_screen_readers(parsed: Parsed) -> None:
    assert parsed.all("html")[0]["attributes"]["lang"] == "en"
    names = {meta["attributes"].get("name"): meta["attributes"] for meta in parsed.all("meta")}
    assert "width=device-width" in names["viewport"]["content"]
    assert len(parsed.all("h1")) == 1
    for table in parsed.all("table"):
        heads = [th for th in parsed.all("th") if table in th["inside"]]
        assert any(th["attributes"]["scope"] == "col" for th in heads)
    ids = [
        element["attributes"]["id"] for element in parsed.elements if "id" in element["attributes"]
    ]
    assert len(ids) == len(set(ids))
    assert len(parsed.all("svg")) == 4  # the large chart for wide and narrow, a curve, a plot
    for svg in parsed.all("svg"):
        inside = [
            e for e in parsed.elements if svg in e["inside"] and e["tag"] in ("title", "desc")
        ]
        assert [element["tag"] for element in inside] == ["title", "desc"]
        assert all(element["text"] for element in inside)
        assert svg["attributes"]["aria-labelledby"].split() == [
            element["attributes"]["id"] for element in inside
        ]
    for link in parsed.all("a"):
        assert link["attributes"]["href"].removeprefix("#") in ids


def test_both_themes_and_print_are_styled(parsed: Parsed) -> None:
    style = parsed.all("style")[0]["text"]
    for part in ("prefers-color-scheme:dark", "@media print", "max-width:640px", "color-scheme"):
        assert part in style


@pytest.mark.parametrize(("theme", "back"), [("light", "#fbfbf9"), ("dark", "#141518")])
def test_text_has_contrast_enough_in_both_themes(parsed: Parsed, theme: str, back: str) -> None:
    style = parsed.all("style")[0]["text"]
    rules = re.findall(r":root\{(.*?)\}", style, re.DOTALL)[0 if theme == "light" else 1]
    colours = dict(re.findall(r"--([\w-]+):(#[0-9a-f]+)", rules))
    assert colours["back"] == back
    pairs = [(name, "back") for name in ("ink", "dim", "link", "c1", "c2", "c3", "c4", "c5", "c6")]
    for front, behind in [*pairs, ("good", "good-back"), ("bad", "bad-back"), ("dim", "card")]:
        assert contrast(colours[front], colours[behind]) >= 4.5, (front, behind)


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        shares = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [s / 12.92 if s <= 0.03928 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def test_it_opens_with_what_was_made_and_keeps_its_order(text: str) -> None:
    order = [
        "<h1>A 0.394 MB agent that gets 84.4% of its tool calls right</h1>",
        "14.5 times smaller",
        'class="tiles"',
        "forge chat outputs/run_all/8-compress",
        "<h2>Size and quality, phase by phase</h2>",
        "What the whole chain kept of trunk",
        "1. cognate",
        "8. compress",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    lines = report.to_markdown(facts.gather(rich_outcomes(), sample_run.RUN_DIR))
    marks = ["# A 0.394 MB agent", "14.5 times smaller", "forge chat", "## Size and quality",
             "## What the whole chain kept of trunk", "## 1. cognate", "## 8. compress"]  # fmt: skip
    assert [lines.index(part) for part in marks] == sorted(lines.index(part) for part in marks)


def test_every_figure_of_the_page_is_one_of_the_outcomes(
    parsed: Parsed, outcomes: list[Outcome]
) -> None:
    known = set(numbers([vars_of(outcome) for outcome in outcomes]))
    figures = parsed.all("data")
    assert len(figures) > 100
    for element in figures:
        exact = float(element["attributes"]["value"])
        assert exact in known
        shown = element["text"].split()[0].rstrip("%").replace(",", "").replace("<", "")
        assert same_figure(exact, float(shown.replace(words.MINUS, "-")), element["text"])


def vars_of(outcome: Outcome) -> dict[str, Any]:
    return {name: getattr(outcome, name) for name in outcome.__slots__}


def numbers(value: Any) -> list[float]:
    """Return every number in plain values."""
    if isinstance(value, dict):
        return [n for entry in value.values() for n in numbers(entry)]
    if isinstance(value, (list, tuple)):
        return [n for entry in value for n in numbers(entry)]
    return [float(value)] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def same_figure(exact: float, shown: float, text: str) -> bool:
    """Return whether a shown figure is the exact one in some unit, rounded to three figures."""
    factors = {"GB": 1e-9, "MB": 1e-6, "min": 1 / 60, "h": 1 / 3600, "million": 1e-6}
    unit = text.split()[1] if len(text.split()) > 1 else ""
    factor = factors.get(unit, 100.0 if "%" in text else 1.0)
    return shown == pytest.approx(exact * factor, rel=0.006) or abs(exact * factor) < 5e-4


def test_no_raw_internals_stand_outside_of_details(parsed: Parsed, text: str) -> None:
    visible = parsed.visible()
    assert not re.search(r"[a-z]+_[a-z]+_[a-z]+", visible)
    assert not re.search(r"\bNone\b(?! ran)", visible)
    for unwanted in ("nan", "e+0", "e-0", "1,663,123 bytes", "1.8231"):
        assert unwanted not in visible
    everything = parsed.all("body")[0]["text"]
    for unwanted in ("memory_integration_recall_loss_nats", "1.04e+04", "True"):
        assert unwanted not in everything
    assert "memory integration recall loss (nats)" in text


def test_figures_have_at_most_three_significant_digits(parsed: Parsed) -> None:
    for figure in re.findall(r"(?<![\w.])\d[\d,]*\.\d+", parsed.all("body")[0]["text"]):
        assert len(figure.replace(",", "").replace(".", "").lstrip("0")) <= 3, figure


def test_what_models_and_users_wrote_is_escaped(text: str, outcomes: list[Outcome]) -> None:
    assert EVIL not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    evil = [replace(outcome) for outcome in outcomes[:1]]
    evil[0].phase = evil[0].message = EVIL
    evil[0].outputs = [f"{EVIL}/{EVIL}"]
    evil[0].report = {
        "summary": EVIL, "baseline": EVIL, "samples": [EVIL, f"```\n{EVIL}"],
        "metrics": {EVIL: EVIL, "a": [EVIL]}, "tables": {EVIL: [{EVIL: EVIL, "b": {EVIL: 1}}]},
        "plots": {EVIL: [(1, 2), (3, 4)]},
    }  # fmt: skip
    evil[0].verdict = {
        "passed": False, "reasons": [EVIL], "scores": {EVIL: {"value": 1.0, "metric": EVIL}},
        "retentions": {}, "chain": {}, "base": {"name": EVIL},
    }  # fmt: skip
    line = curves.Curve(
        metric="loss", stages=[(EVIL, [(1.0, 2.0), (2.0, 3.0)]), (EVIL, [(3.0, 1.0)])]
    )
    run = facts.gather(evil, EVIL, resume=EVIL)
    attacked = report.to_html(run, {EVIL: [line]})
    assert "<script" not in attacked
    assert not Parsed(attacked).all("script")
    outside = re.sub(r"^(`{3,})$.*?^\1$", "", report.to_markdown(run), flags=re.M | re.S)
    assert "<script" not in re.sub(r"```sh.*?```", "", outside, flags=re.S)


def test_a_sample_cannot_close_its_fence() -> None:
    assert markdown.fence_for("a ```` b ``` c") == "`````"
    assert markdown.fence_for("plain") == "```"


def at_chance_run() -> list[Outcome]:
    """Return the recorded run with every task but text at chance."""
    outcomes = sample_run.outcomes()
    for outcome in outcomes:
        verdict = outcome.verdict or {}
        for rows in (verdict["scores"], verdict["retentions"], verdict["chain"]):
            for task, row in rows.items():
                row["at_chance"] = task != "text"
    return outcomes


def test_a_model_at_chance_is_called_that_at_once() -> None:
    run = facts.gather(at_chance_run(), "outputs/tiny")
    assert facts.title(run) == "A 0.394 MB model that cannot do any of the tasks yet"
    visible = Parsed(report.to_html(run, {})).visible()
    assert "On reasoning, memory and tool calls it is at chance" in visible
    assert "no better than guessing" in visible
    assert "not that the model is of use" in visible
    assert "tool calls right" not in visible
    assert "not that the model is of use" in report.to_markdown(run)


def test_a_run_that_stopped_says_where_why_and_how_to_go_on() -> None:
    outcomes = sample_run.outcomes()[:4]
    outcomes[3].status, outcomes[3].message = "interrupted", "bitnet stopped by SIGTERM"
    run = facts.gather(outcomes, "outputs/run_all", resume="forge run-all seed=1")
    for shown in (Parsed(report.to_html(run, {})).visible(), report.to_markdown(run)):
        assert "The run ended in bitnet: stopped by SIGTERM." in shown
        assert "forge run-all seed=1" in shown
    assert facts.title(run).startswith("A 5.93 MB agent")


def test_nothing_accepted_and_nothing_scored_are_said_and_drawn() -> None:
    failed = Outcome(phase="cognate", status="failed", input_hash="0", message="out of memory")
    ungated = Outcome(
        phase="cognate",
        status="done",
        input_hash="0",
        outputs=["out/a"],
        deployable_bytes=5_000_000,
    )
    assert "No phase" in facts.title(facts.gather([failed]))
    assert "has not been scored" in facts.title(facts.gather([ungated]))
    for outcome in (failed, ungated):
        run = facts.gather([outcome])
        assert len(Parsed(report.to_html(run, {})).all("h1")) == 1
        assert report.to_markdown(run).startswith("# ")


def test_a_refused_phase_is_shown_with_its_reason_and_off_the_line() -> None:
    outcomes = sample_run.outcomes()
    outcomes[3].status = "rejected"
    (outcomes[3].verdict or {})["passed"] = False
    (outcomes[3].verdict or {})["reasons"] = ["text keeps 0.93123 of the parent"]
    text = report.to_html(facts.gather(outcomes), {})
    assert "Refused: text keeps 0.931 of the parent" in text
    assert 'class="hollow c1"' in text
    assert '<span class="badge bad">refused</span>' in text


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("+0.000 [-0.127, +0.261] fitness over random search",
         "0 (no clear difference: −0.127 to +0.261) fitness over random search."),
        ("text -0.0025 [-0.0040, -0.0010] nats", "Text −0.0025 (worse: −0.004 to −0.001) nats."),
        ("tools +0.0251 [+0.0110, +0.0402]", "Tools +0.0251 (better: +0.011 to +0.0402)."),
        ("text +0.0000 [+0.0000, -0.0000]", "Text 0 (no difference)."),
        ("", "None ran."),
    ],
)  # fmt: skip
def test_a_gain_over_an_equal_budget_is_called_what_its_interval_shows(
    said: str, shown: str
) -> None:
    outcome = Outcome(phase="train", status="done", input_hash="0", report={"baseline": said})
    assert facts.baseline(facts.gather([outcome]).phases[0]) == shown


def test_a_change_against_the_parent_is_better_worse_or_not_clear() -> None:
    rows = {
        "text": {"ratio": 0.988, "low": 0.985, "high": 0.991},
        "tools": {"ratio": 1.02, "low": 1.01, "high": 1.04},
        "memory": {"ratio": 1.02, "low": 0.97, "high": 1.06},
        "reasoning": {"ratio": None, "at_chance": True},
    }
    outcome = Outcome(phase="a", status="done", input_hash="0", verdict={"retentions": rows})
    assert facts.gain(facts.gather([outcome]).phases[0]) == (
        "Text worse by 1.2%; tool calls better by 2%; no clear change on memory; not compared, "
        "because the parent is at chance: reasoning."
    )


def test_the_chart_draws_size_and_quality_of_every_phase_where_they_belong() -> None:
    steps = [
        charts.Step(name="one", size_mb=4.0, size_text="4 MB", kept={"text": charts.Point(0, 100.0)}),
        charts.Step(name="two", size_mb=1.0, size_text="1 MB", kept={"text": charts.Point(0, 90.0)}),
    ]  # fmt: skip
    drawn = charts.size_and_quality("x", steps, "base")
    heights = [float(h) for h in re.findall(r'class="bar"[^>]* height="([\d.]+)"', drawn)]
    assert heights[0] == pytest.approx(4 * heights[1], rel=0.01)
    (line,) = re.findall(r'<polyline class="line c1" points="([^"]+)"', drawn)
    (x1, y1), (x2, y2) = (map(float, place.split(",")) for place in line.split())
    assert x1 < x2
    assert y1 < y2  # the worse one stands lower
    assert "one: 4 MB, 100% of text; two: 1 MB, 90% of text" in drawn


def test_ticks_are_round_and_within_the_edges() -> None:
    assert charts.ticks(0.0, 6.8, 3) == [0, 2, 4, 6]
    assert charts.ticks(91.3, 112.0, 4) == [95, 100, 105, 110]
    assert charts.ticks(0.00101, 0.0019, 4) == [0.0012, 0.0014, 0.0016, 0.0018]


def progress(stage: str, step: int, loss: object) -> Event:
    return Event(
        seq=1, time=0, kind="progress", phase="train", stage=stage, step=step, total=40,
        metrics={"loss": loss},
    )  # fmt: skip


def test_curves_are_one_per_metric_in_turn_and_noise_is_not_drawn() -> None:
    falling = [progress("trunk", step, 5.0 - step / 10) for step in range(1, 31)]
    after = [progress("branch", step, 2.0 + (step % 2) / 10) for step in range(1, 11)]
    (curve,) = curves.telling_curves([*falling, progress("trunk", 30, 9.0), *after])
    assert [name for name, _ in curve.stages] == ["trunk", "branch"]
    assert curve.stages[0][1][-1] == (30, 9.0)  # the later value of a step counts
    assert curve.stages[1][1][0] == (31, 2.1)
    noise = [
        progress(f"stage {s}", step, 2 + (step * 7 % 5) / 10)
        for s in range(10)
        for step in range(9)
    ]
    assert not curves.telling_curves(noise)
    assert not curves.telling_curves(falling[:5])


def test_short_stages_about_different_things_are_no_curve() -> None:
    # Experts of four domains: each keeps its own level, and the steps between them say nothing.
    levels = {"text": 3.3, "reasoning": 0.4, "memory": 1.1, "tools": 0.08}
    lines = [
        progress(name, step, level + (step % 3) / 100)
        for name, level in levels.items()
        for step in range(1, 7)
    ]
    assert not curves.telling_curves(lines)
    falling = [
        progress(f"stage {s}", step, 5 - s - step / 7) for s in range(4) for step in range(1, 7)
    ]
    assert len(curves.telling_curves(falling)) == 1


def test_values_that_are_not_finite_leave_a_gap() -> None:
    lines = [
        progress("a", s, "nan" if s == 5 else float("inf") if s == 6 else 9.0 - s)
        for s in range(1, 20)
    ]
    (curve,) = curves.telling_curves(lines)
    assert [x for x, _ in curve.stages[0][1]] == [s for s in range(1, 20) if s not in (5, 6)]


def test_many_short_stages_are_one_line() -> None:
    lines = [
        progress(f"stage {s}", step, 9.0 - s - step / 9) for s in range(8) for step in range(1, 9)
    ]
    (curve,) = curves.telling_curves(lines)
    assert len(curve.stages) == 8
    ((_, points),) = curve.smoothed()
    assert len(points) == 64
    assert [x for x, _ in points] == sorted(x for x, _ in points)


def test_turns_and_code_are_shown_as_what_they_are() -> None:
    assert page.turns("user: a | b | assistant: c") == "user: a | b\nassistant: c"
    assert cells.prose("a `b < c` d") == "a <code>b &lt; c</code> d"
    assert cells.prose(f"a ` {EVIL}") == "a ` &lt;script&gt;alert(1)&lt;/script&gt;"


def test_smoothing_keeps_a_straight_line_and_the_number_of_points() -> None:
    line = [(float(x), 2.0 * x) for x in range(50)]
    smoothed = curves.smooth(line)
    assert [x for x, _ in smoothed] == [x for x, _ in line]
    assert [y for _, y in smoothed[5:-5]] == pytest.approx([y for _, y in line[5:-5]])


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (128, "128"), (9_999, "9,999"), (10_400, "10,400"), (1.04e4, "10,400"),
     (25_083_528, "25.1 million"), (0.84375, "0.844"), (-0.0025, "−0.0025"), (999.6, "1,000"),
     (0.0000123, "0.0000123"), (1e-9, "≈ 0"), (float("nan"), "not finite")],
)  # fmt: skip
def test_numbers_have_three_figures_and_no_exponent(value: float, shown: str) -> None:
    assert words.number(value) == shown


def test_sizes_are_in_megabytes_and_nothing_is_blank() -> None:
    sizes = [0, 99, 394_000, 5_730_000, 70_200_000, 409_420_000, 999_900_000, 1.783e9]
    assert [words.size(size) for size in sizes] == [
        "", "<0.001 MB", "0.394 MB", "5.73 MB", "70.2 MB", "409 MB", "1.00 GB", "1.78 GB",
    ]  # fmt: skip


def test_a_phases_own_sentence_is_rounded_but_not_its_code() -> None:
    said = "1,663,123 bytes, 1.8101 -> 1.8325 for adaptive_computation; `a_b=1.23456` +0.0000"
    assert words.tidy(said) == ("1.66 MB, 1.81 → 1.83 for adaptive computation; `a_b=1.23456` 0")


def test_the_report_of_a_record_is_the_same_again_also_where_the_run_was_moved(
    tmp_path: Path,
) -> None:
    written = []
    for place in (tmp_path / "run", tmp_path / "run", tmp_path / "moved" / "run"):
        sample_run.write(place)
        paths = report.write(place, report.read_run(place))
        assert [path.name for path in paths] == ["report.md", "report.html"]
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1] == written[2]
    assert report.read_run(tmp_path / "run")[-1] == sample_run.outcomes()[-1]


def test_a_long_table_is_cut_with_a_line_that_says_where_the_rest_is() -> None:
    rows = [{"tensor": f"t{n}", "bits": 1.5} for n in range(page.ROWS_SHOWN + 7)]
    outcome = Outcome(
        phase="compress", status="done", input_hash="0", report={"tables": {"t": rows}}
    )
    text = page.to_html(facts.gather([outcome]), {})
    assert "7 more rows are in the phase's outcome.json" in text


def test_the_labels_of_an_axis_have_as_many_decimals_as_the_longest() -> None:
    assert charts.tick_labels([1.5, 2, 2.5]) == ["1.5", "2.0", "2.5"]
    assert charts.tick_labels([0, 2, 4]) == ["0", "2", "4"]
    assert charts.tick_labels([-0.02, 0, 0.02]) == ["\N{MINUS SIGN}0.02", "0.00", "0.02"]
