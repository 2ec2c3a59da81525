"""The evomerge phase: elitism, resume, recipes that rebuild the winner, refusals before any
work.
"""

import copy
import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaForCausalLM, PreTrainedTokenizerFast

from agent_forge import checkpoint, models
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config import DataConfig
from agent_forge.config.compose import compose
from agent_forge.core.errors import CheckpointError, ConfigError, DataError
from agent_forge.core.events import EventLog, read_events
from agent_forge.data import encode_chat
from agent_forge.data.synthetic import memory, reasoning
from agent_forge.merge import Weights, make_plan, merge_tensor
from agent_forge.merge.recipe import parse_recipe, read_recipe
from agent_forge.phases import PhaseRun
from agent_forge.phases.evomerge import Config
from agent_forge.phases.evomerge import run as run_module
from agent_forge.phases.evomerge.baselines import greedy_soup
from agent_forge.phases.evomerge.candidates import Stage
from agent_forge.phases.evomerge.fitness import make_yardstick, require_disjoint
from agent_forge.phases.evomerge.genome import Genome, GenomeSpace
from agent_forge.phases.evomerge.run import run
from agent_forge.phases.evomerge.sources import open_sources
from agent_forge.search.journal import Journal
from agent_forge.search.race import Scorer, mean_rule


def tuned(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task, steps: int
) -> LlamaForCausalLM:
    """Return a copy trained for some steps on one task."""
    model = copy.deepcopy(model).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = [encode_chat(tokenizer, row["messages"]) for row in task.rows(steps * 8, "train", 0)]
    for step in range(steps):
        part = rows[step * 8 : step * 8 + 8]
        length = max(len(ids) for ids, _ in part)
        ids = torch.tensor([[*ids, *[0] * (length - len(ids))] for ids, _ in part])
        labels = torch.tensor(
            [
                [i if m else -100 for i, m in zip(*row, strict=True)]
                + [-100] * (length - len(row[0]))
                for row in part
            ]
        )
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


def put(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, path: Path, role: str
) -> Checkpoint:
    return checkpoint.write(
        path,
        lambda directory: models.save(model, tokenizer, directory),
        phase="cognate",
        seed=0,
        config={},
        name=path.name,
        role=role,
    )


@pytest.fixture(scope="module")
def family(tmp_path_factory, llama_config, tiny_tokenizer) -> list[Checkpoint]:
    """Return a trunk and two specialists that learned different things."""
    folder = tmp_path_factory.mktemp("family")
    torch.manual_seed(0)
    trunk = tuned(LlamaForCausalLM(llama_config), tiny_tokenizer, reasoning, 4)
    return [
        put(trunk, tiny_tokenizer, folder / "trunk", "trunk"),
        put(
            tuned(trunk, tiny_tokenizer, reasoning, 25),
            tiny_tokenizer,
            folder / "reasoning",
            "specialist",
        ),
        put(
            tuned(trunk, tiny_tokenizer, memory, 25),
            tiny_tokenizer,
            folder / "memory",
            "specialist",
        ),
    ]


def settings(data_config: DataConfig, out: Path, *overrides: str) -> Config:
    small = (
        f"out={out}", "items=8", "final_items=0", "test_items=16", "search.generations=3", "search.children=4",
        "samples=200", "fitness.text=0.5", "fitness.tools=0", "fitness.mixed=0", "floor=0.5",
        "runtime.device=cpu", "runtime.threads=1",
    )  # fmt: skip
    config = compose("evomerge", Config, [*small, *overrides])
    config.data = data_config
    return config


def workspace(config: Config, family: list[Checkpoint]) -> Workspace:
    return Workspace(config.out, phase="evomerge", seed=config.seed, config=config, parents=family)


@pytest.fixture(scope="module")
def finished(family, data_config, tmp_path_factory):
    """Return one finished run: its config, its workspace and its report."""
    config = settings(data_config, tmp_path_factory.mktemp("runs") / "evomerge")
    out = workspace(config, family)
    return config, out, run(PhaseRun(config, family, out, EventLog(None, "evomerge")))


def test_the_winner_is_at_least_as_fit_as_every_parent_and_the_soup(
    finished, family, tiny_tokenizer
) -> None:
    config, out, report = finished
    opened = open_sources(family, out.state, torch.device("cpu"), torch.float32)
    measured: dict[str, dict[int, list[float]]] = {}
    for file in out.state.glob("evaluations-*.jsonl"):
        for line in map(json.loads, file.read_text().splitlines()):
            measured.setdefault(line["key"], {})[line["start"]] = line["values"]
    stage = Stage(opened, 0)
    space = GenomeSpace(config.merge, opened.labels, stage.layers, stage.scalable)
    yardstick = make_yardstick(config, tiny_tokenizer, "search", config.items)

    def nats(genome: Genome) -> list[float]:
        results = measured[space.key(genome)]
        return [value for start in sorted(results) for value in results[start]][
            : len(yardstick.rows)
        ]

    yardstick.trunk_nats = nats(space.parent(0))
    fitness = [
        yardstick.fitness(nats(genome))
        for genome in [*(space.parent(i) for i in range(3)), space.soup()]
    ]
    assert fitness[0] == 0.0
    assert len(yardstick.trunk_nats) == 8 * 3
    assert report.metrics["search_fitness"] >= max(fitness) > 0
    history = [row["best"] for row in report.tables["Generations"]]
    assert history == sorted(history)


def test_the_winner_is_judged_on_the_test_split_against_all_that_it_must_beat(finished) -> None:
    _, _, report = finished
    gain = report.metrics["gain_over_trunk"]
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert gain["low"] > 0
    assert gain["n"] == 16 * 3
    rows = next(
        rows
        for title, rows in report.tables.items()
        if title.startswith("Winner on the test split")
    )
    assert [row["over"] for row in rows] == [
        "trunk", "reasoning", "memory", "uniform soup", "greedy soup", "random search",
    ]  # fmt: skip
    budget = report.metrics["measured_items_of_evolution"]
    assert budget <= report.metrics["measured_items_of_random_search"] < budget + 4 * 24


def test_a_control_is_scored_on_the_test_split_and_never_merged(
    finished, family, data_config, tiny_tokenizer, tmp_path
) -> None:
    _, out, _ = finished
    trunk = models.load(family[0])
    union = tuned(tuned(trunk, tiny_tokenizer, reasoning, 25), tiny_tokenizer, memory, 25)
    control = put(union, tiny_tokenizer, tmp_path / "union", "control")
    config = settings(data_config, tmp_path / "evomerge")
    again = workspace(config, [*family, control])
    report = run(PhaseRun(config, [*family, control], again, EventLog(None, "evomerge")))
    merged = checkpoint.open(again.path)
    weights = [c.manifest.files["model.safetensors"] for c in (merged, checkpoint.open(out.path))]
    assert weights[0] == weights[1]
    assert [parent["id"] for parent in merged.manifest.parents] == [c.id for c in family]
    rows = next(rows for title, rows in report.tables.items() if title.startswith("Winner on the"))
    assert rows[-1]["over"] == "union"
    gain = report.metrics["gain_over_union"]
    assert f"{gain['value']:+.3f}" in report.baseline
    better = "the winner" if gain["low"] > 0 else "the union" if gain["high"] < 0 else "neither"
    assert f"{better} is better beyond doubt" in report.baseline
    nats = checkpoint.open(again.path).path.joinpath("README.md").read_text(encoding="utf-8")
    assert "union" in nats


def test_a_control_that_learned_both_tasks_well_is_said_to_win() -> None:
    said = run_module._against_union({"union": {"value": -0.2, "low": -0.3, "high": -0.1}})
    assert "-0.200 [-0.300, -0.100]" in said
    assert "(the union is better beyond doubt)" in said
    assert "forge cognate union=true" in run_module._against_union({})


def test_the_winner_is_the_fittest_finalist_on_items_that_the_search_never_saw(
    family, data_config, tmp_path, tiny_tokenizer
) -> None:
    config = settings(data_config, tmp_path / "evomerge", "final_items=8", "baseline=false")
    out = workspace(config, family)
    report = run(PhaseRun(config, family, out, EventLog(None, "evomerge")))
    whole = make_yardstick(config, tiny_tokenizer, "search", 16)
    search, final = whole.split(8)
    assert [*search.rows, *final.rows] == whole.rows
    require_disjoint(search=search, final=final)
    (file,) = out.state.glob("evaluations-*.jsonl")
    journal = [json.loads(line) for line in file.read_text().splitlines()]
    span = len(search.rows), len(whole.rows)
    judged = {
        line["key"]: line["values"] for line in journal if (line["start"], line["stop"]) == span
    }
    opened = open_sources(family, out.state, torch.device("cpu"), torch.float32)
    stage = Stage(opened, 0)
    space = GenomeSpace(config.merge, opened.labels, stage.layers, stage.scalable)
    final.trunk_nats = judged[space.key(space.parent(0))]
    assert {space.key(space.parent(i)) for i in range(3)} | {
        space.key(space.soup())
    } < judged.keys()
    assert report.metrics["final_fitness"] == pytest.approx(
        max(map(final.fitness, judged.values()))
    )
    assert report.metrics["final_fitness"] > 0


def test_a_gain_is_the_difference_of_fitness_and_its_interval_covers_it(
    data_config, tiny_tokenizer, tmp_path
) -> None:
    yardstick = make_yardstick(settings(data_config, tmp_path), tiny_tokenizer, "test", 16)
    generator = np.random.default_rng(0)
    yardstick.trunk_nats = [
        float(x) for x in yardstick.tokens * generator.uniform(2, 3, len(yardstick.rows))
    ]
    other = [x * float(generator.uniform(0.9, 1.1)) for x in yardstick.trunk_nats]
    ours = [x * float(generator.uniform(0.8, 1.0)) for x in other]
    gain = yardstick.gain(ours, other, yardstick.floor_penalty, 500, 0)
    assert gain["value"] == pytest.approx(yardstick.fitness(ours) - yardstick.fitness(other))
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    mean, error = yardstick.difference(ours, other)
    assert mean == pytest.approx(gain["value"])
    assert error == pytest.approx((gain["high"] - gain["low"]) / 3.92, rel=0.25)
    assert yardstick.gain(other, other, 5.0, 50, 0) == {
        "value": 0.0,
        "low": 0.0,
        "high": 0.0,
        "n": len(other),
    }


def test_no_item_is_in_two_splits_and_a_shared_one_is_refused(
    data_config, tiny_tokenizer, tmp_path
) -> None:
    config = settings(data_config, tmp_path)
    splits = {
        name: make_yardstick(config, tiny_tokenizer, name, 16)
        for name in ("search", "validation", "test")
    }
    require_disjoint(**splits)
    splits["test"].forms[4] = splits["search"].forms[7]
    with pytest.raises(
        DataError, match="item 1 of reasoning is in the search items and in the test items"
    ):
        require_disjoint(**splits)


def test_final_items_that_the_search_has_seen_reworded_are_refused_before_any_work(
    family, data_config, tmp_path, monkeypatch
) -> None:
    config = settings(
        data_config, tmp_path / "evomerge", "final_items=8", "fitness.text=0", "fitness.memory=0"
    )
    drawn = reasoning.rows

    def repeating(count, split, seed):
        rows = drawn(count, split, seed)
        commuted = {
            **rows[3],
            "messages": [{"role": "user", "content": "Add 1 + 2."}, rows[3]["messages"][1]],
        }
        return [*rows[:10], commuted, *rows[11:]] if split == "search" else rows

    monkeypatch.setattr(reasoning, "rows", repeating)
    with pytest.raises(
        DataError, match="item 2 of reasoning is in the search items and in the final items"
    ):
        run(PhaseRun(config, family, workspace(config, family), EventLog(None, "evomerge")))
    assert not list(Path(config.out).parent.glob("**/evaluations-*"))


def test_a_gain_resamples_clusters_so_that_copies_do_not_narrow_its_interval(
    data_config, tiny_tokenizer, tmp_path
) -> None:
    one = make_yardstick(settings(data_config, tmp_path), tiny_tokenizer, "test", 16)
    generator = np.random.default_rng(1)
    one.trunk_nats = [float(x) for x in one.tokens * generator.uniform(2, 3, len(one.rows))]
    ours = [x * float(generator.uniform(0.8, 1.0)) for x in one.trunk_nats]
    width = len(one.tasks)
    order = [
        place + step
        for place in range(0, len(one.rows), width)
        for _ in range(3)
        for step in range(width)
    ]
    many = dataclasses.replace(
        one, rows=[one.rows[i] for i in order], tokens=one.tokens[order], clusters=one.clusters[order],
        trunk_nats=[one.trunk_nats[i] for i in order],
    )  # fmt: skip
    more = [ours[i] for i in order]
    trunk, wide = one.trunk_nats, many.trunk_nats
    narrow, copied = one.gain(ours, trunk, 5.0, 300, 0), many.gain(more, wide, 5.0, 300, 0)
    assert [copied[key] for key in ("value", "low", "high")] == pytest.approx(
        [narrow[key] for key in ("value", "low", "high")]
    )
    assert many.difference(more, wide) == pytest.approx(one.difference(ours, trunk))


def test_the_greedy_soup_keeps_what_does_no_harm() -> None:
    space = GenomeSpace(
        compose("evomerge", Config, ["out=x"]).merge, ["t", "a", "b", "c"], 0, False
    )
    worth = {(0.0, 1.0, 0.0, 0.0): 3.0, (0.0, 0.0, 1.0, 0.0): 2.0, (0.0, 0.0, 0.0, 1.0): 1.0, (1.0, 0.0, 0.0, 0.0): 0.0,
             (0.0, 1.0, 1.0, 0.0): 2.5, (0.0, 1.0, 0.0, 1.0): 3.5, (1.0, 1.0, 0.0, 1.0): 3.5}  # fmt: skip

    class Known:
        width = 1

        def measure(self, jobs):
            for job in jobs:
                yield job, [[worth[tuple(row[0] for row in job.genome.weights)]] for _ in job.spans]

        def close(self) -> None: ...

    scorer = Scorer(space, Known(), mean_rule(), [1], Journal(None))
    assert greedy_soup(space, scorer) == space.soup([0, 1, 3])
    assert scorer.measured_items == len(worth)


def test_the_numbers_of_a_genome_go_to_a_vector_and_back() -> None:
    space = GenomeSpace(compose("evomerge", Config, ["out=x"]).merge, ["t", "a", "b", "c"], 4, True)
    generator = np.random.default_rng(0)
    sizes = {}
    for _ in range(200):
        genome = space.random(generator)
        vector = space.vector(genome)
        sizes[genome.technique] = len(vector)
        np.testing.assert_allclose(
            space.vector(space.with_vector(genome, vector)), vector, atol=1e-9
        )
        if len(vector) and genome.technique != "dfs":
            moved = space.with_vector(genome, 1 - 0.9 * vector)
            assert space.key(moved) != space.key(genome)
            assert space.kind(moved) == space.kind(genome)
    assert sizes["linear"] == 12  # four sources at three depths
    assert sizes["slerp"] == 3
    assert sizes["ties"] == 9 + 3 + 1
    assert sizes["passthrough"] == sizes["model_stock"] == 0


@pytest.mark.parametrize(("method", "space"), [("cmaes", "all"), ("nsga2", "all"), ("ga", "paths")])
def test_every_search_method_writes_a_winner_no_worse_than_the_first_members(
    method: str, space: str, family, data_config, tmp_path
) -> None:
    config = settings(
        data_config,
        tmp_path / "out",
        f"search.method={method}",
        f"merge={space}",
        "search.generations=2",
        "baseline=false",
    )
    report = run(PhaseRun(config, family, workspace(config, family), EventLog(None, "evomerge")))
    best = [row["best"] for row in report.tables["Generations"]]
    assert best == sorted(best)
    assert report.metrics["search_fitness"] >= best[0] - 1e-5 > 0


def test_a_pool_writes_the_same_checkpoint_as_one_process(
    finished, family, data_config, tmp_path
) -> None:
    _, out, _ = finished
    config = settings(data_config, tmp_path / "evomerge", "search.backend=pool", "search.workers=2")
    report = run(PhaseRun(config, family, workspace(config, family), EventLog(None, "evomerge")))
    assert checkpoint.open(report.outputs[0]).id == checkpoint.open(out.path).id


@pytest.mark.parametrize("candidates", [1, 3])
def test_never_more_candidates_are_alive_than_allowed(
    candidates: int, family, tmp_path, data_config
) -> None:
    opened = open_sources(family, tmp_path, torch.device("cpu"), torch.float32)
    stage = Stage(opened, 0, candidates)
    config = compose("evomerge", Config, ["out=x", "merge=paths", "merge.fewer_layers=1"])
    spaces = [GenomeSpace(c, opened.labels, stage.layers, stage.scalable) for c in
              (config.merge, settings(data_config, tmp_path).merge)]  # fmt: skip
    generator, born, most = np.random.default_rng(0), weakref.WeakSet(), 0
    ids = torch.arange(4, 24)[None]
    for number in range(24):
        space = spaces[number % 2]
        recipe = space.recipe(space.random(generator))
        model = stage.show(recipe, str(number))
        born.add(model)
        assert stage.show(recipe, str(number)) is model  # still there for the next rung
        with torch.no_grad():
            shown = model(ids).logits
            torch.testing.assert_close(
                shown, stage.make(recipe, torch.float32)(ids).logits, rtol=1e-3, atol=1e-3
            )
        del model
        gc.collect()
        most = max(most, len(born))
    assert most == candidates


def test_the_population_and_the_fitness_curve_are_in_the_events(
    family, data_config, tmp_path
) -> None:
    log = tmp_path / "events.jsonl"
    config = settings(data_config, tmp_path / "out", "baseline=false")
    run(
        PhaseRun(
            config,
            family,
            workspace(config, family),
            EventLog(log, "evomerge", interval_seconds=0.0),
        )
    )
    rounds = [event for event in read_events(log) if event.stage == "generations"]
    assert [event.step for event in rounds] == [0, 1, 2, 3]
    assert [event.metrics["fitness"] for event in rounds] == sorted(
        event.metrics["fitness"] for event in rounds
    )
    rows = rounds[-1].metrics["population"]
    assert len(rows) >= 8
    assert {"technique", "from", "fitness", "text", "reasoning", "memory"} <= set(rows[0])
    assert rows[0]["fitness"] == pytest.approx(rounds[-1].metrics["fitness"], abs=1e-4)


def test_the_card_names_sources_scores_and_recipe(finished, family) -> None:
    _, out, report = finished
    card = (out.path / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["base_model"] == ["trunk", "reasoning", "memory"]
    assert all(parent.id in card for parent in family)
    gain = report.metrics["gain_over_greedy_soup"]
    assert f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" in card
    inside = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert parse_recipe(inside) == read_recipe(out.path / "merge.yaml")


def test_the_written_recipe_rebuilds_the_winners_weights(finished, family) -> None:
    _, out, _ = finished
    recipe = parse_recipe(yaml.safe_load((out.path / "merge.yaml").read_text()))
    seed = checkpoint.open(out.path).manifest.extra["mask_seed"]
    sources = {c.path.name: Weights.open(c.path, c.path.name) for c in family}
    plan = make_plan(recipe, sources)
    written = Weights.open(out.path)
    assert {tensor.target for tensor in plan.tensors} == set(written.forms)
    for tensor in plan.tensors:
        torch.testing.assert_close(
            merge_tensor(plan, tensor, sources, seed), written.get(tensor.target), rtol=0, atol=1e-6
        )


def test_the_same_seed_gives_the_same_checkpoint_and_parents_stay_untouched(
    finished, family, data_config, tmp_path
) -> None:
    _, out, _ = finished
    again = settings(data_config, tmp_path / "evomerge")
    report = run(PhaseRun(again, family, workspace(again, family), EventLog(None, "evomerge")))
    assert checkpoint.open(report.outputs[0]).id == checkpoint.open(out.path).id
    for parent in family:
        assert checkpoint.open(parent.path).id == parent.id


def test_a_search_cut_off_after_any_evaluation_ends_in_the_same_checkpoint(
    finished, family, data_config, tmp_path
) -> None:
    _, out, _ = finished
    journal = next(out.state.glob("evaluations-*.jsonl"))
    lines = journal.read_bytes().splitlines(keepends=True)
    for count in (1, len(lines) // 2, len(lines) - 1):
        config = settings(data_config, tmp_path / str(count) / "evomerge")
        again = workspace(config, family)
        again.state.mkdir(parents=True)
        torn = b"".join(lines[:count]) + lines[count][: len(lines[count]) // 2]
        (again.state / journal.name).write_bytes(torn)
        report = run(PhaseRun(config, family, again, EventLog(None, "evomerge")))
        assert checkpoint.open(report.outputs[0]).id == checkpoint.open(out.path).id
        assert (again.state / journal.name).read_bytes() == journal.read_bytes()


def test_a_killed_process_resumes_to_the_same_checkpoint(family, data_config, tmp_path) -> None:
    script = tmp_path / "child.py"
    script.write_text(
        "import sys, torch\n"
        "torch.set_num_threads(1)\n"
        "import os, signal\n"
        "from agent_forge import checkpoint\n"
        "from agent_forge.checkpoint import Workspace\n"
        "from agent_forge.config import DataConfig\n"
        "from agent_forge.config.compose import compose\n"
        "from agent_forge.core.events import EventLog\n"
        "from agent_forge.phases import PhaseRun\n"
        "from agent_forge.phases.evomerge import Config\n"
        "from agent_forge.phases.evomerge.run import run\n"
        "from agent_forge.search.journal import Journal\n"
        "put, kill_at, count = Journal.put, int(sys.argv[1]), [0]\n"
        "def dying(self, *args):\n"
        "    put(self, *args)\n"
        "    count[0] += 1\n"
        "    if count[0] == kill_at:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Journal.put = dying\n"
        "config = compose('evomerge', Config, sys.argv[2].split(';'))\n"
        "family = checkpoint.expand(config.sources)\n"
        "out = Workspace(config.out, phase='evomerge', seed=config.seed, config=config, parents=family)\n"
        "run(PhaseRun(config, family, out, EventLog(None, 'evomerge')))\n"
    )
    target = tmp_path / "evomerge"
    config = settings(data_config, target, "final_items=4")
    overrides = [
        f"sources=[{','.join(str(c.path) for c in family)}]", f"out={target}", "items=8", "final_items=4",
        "test_items=16", "search.generations=3", "search.children=4", "samples=200", "fitness.text=0.5",
        "fitness.tools=0", "fitness.mixed=0", "floor=0.5", "runtime.device=cpu", "runtime.threads=1",
        f"data.text=[{data_config.text[0]}]",
        "data.max_text_bytes=0",
        f"data.cache={data_config.cache}",
    ]  # fmt: skip
    killed = subprocess.run(
        [sys.executable, str(script), "23", ";".join(overrides)], check=False, env=os.environ
    )
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    report = run(PhaseRun(config, family, workspace(config, family), EventLog(None, "evomerge")))
    never_killed = settings(data_config, tmp_path / "whole", "final_items=4")
    other = run(
        PhaseRun(never_killed, family, workspace(never_killed, family), EventLog(None, "evomerge"))
    )
    assert checkpoint.open(report.outputs[0]).id == checkpoint.open(other.outputs[0]).id


def test_a_path_of_more_layers_is_written_with_every_per_layer_list_resized(
    family, data_config, tmp_path, tiny_tokenizer
) -> None:
    config = settings(data_config, tmp_path / "out", "merge=paths")
    out = workspace(config, family)
    opened = open_sources(family, out.state, torch.device("cpu"), torch.float32)
    stage = Stage(opened, 0)
    space = GenomeSpace(config.merge, opened.labels, stage.layers, stage.scalable)
    assert stage.layers == 2
    assert stage.scalable
    genome = dataclasses.replace(
        space.parent(1),
        technique="dfs",
        path=((1, 0), (2, 0), (2, 1)),
        input_scales=(1.0, 1.5, 1.0),
    )
    model = stage.make(space.recipe(genome), torch.float32)
    assert model.config.num_hidden_layers == 3
    assert len(model.config.to_dict().get("layer_types") or [0] * 3) == 3
    models.save(model, tiny_tokenizer, tmp_path / "long")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "long").eval()
    ids = torch.arange(5, 25)[None]
    # The truth: run the layers by hand, the input of the jump (layer 1) scaled by 1.5.
    parts = [models.load(c) for c in family]
    stream = parts[1].model.embed_tokens(ids)
    rotary = parts[1].model.rotary_emb(stream, torch.arange(20)[None])
    with torch.no_grad():
        for source, layer, scale in ((1, 0, 1.0), (2, 0, 1.5), (2, 1, 1.0)):
            result = parts[source].model.layers[layer](
                stream * scale, position_embeddings=rotary, attention_mask=None
            )
            stream = result[0] if isinstance(result, tuple) else result
        truth = parts[1].lm_head(parts[2].model.norm(stream))
        torch.testing.assert_close(loaded(ids).logits, truth, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            stage.show(space.recipe(genome), "long")(ids).logits, truth, rtol=1e-3, atol=1e-3
        )


def test_sources_that_do_not_belong_together_are_refused_by_the_first_difference(
    family, data_config, tmp_path, tiny_tokenizer
) -> None:
    config = settings(data_config, tmp_path / "out")
    log = EventLog(None, "evomerge")
    with pytest.raises(ConfigError, match="at least one model tuned from it, got 1"):
        run(PhaseRun(config, family[:1], workspace(config, family), log))
    with pytest.raises(ConfigError, match="named twice"):
        run(PhaseRun(config, [family[0], family[1], family[1]], workspace(config, family), log))
    with pytest.raises(ConfigError, match="is the trunk; put it first"):
        run(PhaseRun(config, family[::-1], workspace(config, family), log))
    model = models.load(family[1])
    model.config.rope_parameters = {"rope_theta": 500.0, "rope_type": "default"}
    with pytest.raises(CheckpointError, match=r"rope_parameters is .*500"):
        run(
            PhaseRun(
                config,
                [family[0], put(model, tiny_tokenizer, tmp_path / "rope", "specialist")],
                workspace(config, family),
                log,
            ),
        )
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["<other>"])
    other = put(models.load(family[1]), tokenizer, tmp_path / "tokens", "specialist")
    with pytest.raises(CheckpointError, match=r"tokenizers .* differ at added_tokens"):
        run(PhaseRun(config, [family[0], other], workspace(config, family), log))
    assert not (tmp_path / "out").exists()


def test_an_unknown_technique_or_task_is_refused_with_the_nearest_name(
    family, data_config, tmp_path
) -> None:
    log = EventLog(None, "evomerge")
    with pytest.raises(ConfigError, match="no merge method 'linaer'; did you mean 'linear'"):
        settings(data_config, tmp_path / "out", "merge.techniques=[linaer]")
    config = settings(data_config, tmp_path / "out", "fitness.tools=0")
    config.fitness = {"reasonin": 1.0}
    with pytest.raises(ConfigError, match="no generated task 'reasonin'; did you mean 'reasoning'"):
        run(PhaseRun(config, family, workspace(config, family), log))
