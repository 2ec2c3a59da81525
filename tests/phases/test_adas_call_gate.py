"""The call gate: the bound in closed form, what it does to replies on both engines, and the phase."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from agent_forge import agent, checkpoint, data, evaluate, models
from agent_forge.checkpoint import Workspace
from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError
from agent_forge.core.events import EventLog
from agent_forge.data.chat import call_start, encode_prompt
from agent_forge.models.sampling import Decoding, Gate
from agent_forge.phases import PhaseRun
from agent_forge.phases.adas import Config, call_gate
from agent_forge.phases.adas.runtime_search import answers, laid_over
from agent_forge.runtime.talker import open_talker

ASKED = [{"role": "user", "content": "Add 4 + 5."}]


def shares(*pairs):
    return np.asarray(pairs, float)


def test_the_bound_lies_midway_between_the_shares_that_it_parts_best():
    """Questions that need a tool have the shares .9, .8, .4, the others .7, .3; one is not called."""
    known = shares((0.9, 1), (0.8, 1), (0.4, 1), (0.7, 1), (0.3, 1), (0.95, 0))
    needs = np.asarray([1, 1, 1, 0, 0, 0], float)
    # Without a bound 4 of 6 are right, from .35 on 5 are, from .75 on 5 as well: the lowest wins.
    assert call_gate.best_bound(known, needs) == pytest.approx(0.35)
    assert [call_gate.right_decisions(known, needs, bound).sum() for bound in (0, 0.35, 0.75)] == [
        4, 5, 5,
    ]  # fmt: skip


@pytest.mark.parametrize("needs", [[1, 1, 1], [0, 1, 1][::-1]])
def test_no_bound_is_found_where_none_decides_better(needs):
    """All need a tool, or those that need one are the less likely calls."""
    known = shares((0.2, 1), (0.5, 1), (0.9, 1))
    assert call_gate.best_bound(known, np.asarray(needs, float)) == 0.0


@pytest.fixture
def caller(tiny_llama, tiny_tokenizer):
    """A model whose likeliest first token opens a call, and that token's probability."""
    start = call_start(tiny_tokenizer)
    prompt = encode_prompt(tiny_tokenizer, ASKED)
    hidden = tiny_llama.model(input_ids=torch.tensor([prompt])).last_hidden_state[0, -1]
    with torch.no_grad():
        head = tiny_llama.get_output_embeddings()
        head.weight = torch.nn.Parameter(head.weight.clone())  # no longer tied
        head.weight[start] = 6 * hidden / hidden.norm() ** 2
        logits = tiny_llama(input_ids=torch.tensor([prompt])).logits[0, -1]
    share = float(logits.softmax(-1)[start])
    assert int(logits.argmax()) == start
    assert 0.05 < share < 0.95
    return tiny_llama, prompt, start, share


def test_a_reply_begins_with_a_call_only_from_the_bound_on(caller):
    model, prompt, start, share = caller
    others = model(input_ids=torch.tensor([prompt])).logits[0, -1].clone()
    others[start] = -torch.inf
    for least, expected in ((share - 0.01, start), (share + 0.01, int(others.argmax()))):
        decoding = Decoding(max_new_tokens=3, gate=Gate(start, least))
        for static in (False, True):
            result = models.generate(model, [prompt, prompt[1:]], replace(decoding, static=static))
            assert result[0][0] == expected
        assert list(models.stream(model, prompt, decoding))[0] == expected  # noqa: RUF015
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].detach().numpy()
        assert int(Gate(start, least).shut(logits).argmax()) == expected


def test_later_tokens_are_free(caller):
    """What follows the first token is what the model writes after that beginning."""
    model, prompt, start, share = caller
    gated = models.generate(
        model, [prompt], Decoding(max_new_tokens=4, gate=Gate(start, share + 0.01))
    )[0]
    after = models.generate(model, [[*prompt, gated[0]]], Decoding(max_new_tokens=3))[0]
    assert gated[1:] == after


def test_the_packed_engine_follows_the_gate(tiny_checkpoint, tiny_tokenizer):
    """The gated token is the likeliest one of this model."""
    prompt = encode_prompt(tiny_tokenizer, ASKED)
    logits = models.load(tiny_checkpoint)(input_ids=torch.tensor([prompt])).logits[0, -1].detach()
    top = logits.topk(2)
    share = float(logits.softmax(-1)[top.indices[0]])
    packed = open_talker(tiny_checkpoint.path, device="cpu", engine="packed")
    gates = [None, *(Gate(int(top.indices[0]), least) for least in (0.9 * share, 1.1 * share))]
    replies = [list(packed.stream(prompt, Decoding(max_new_tokens=3, gate=gate))) for gate in gates]
    assert replies[0] == replies[1]
    assert [reply[0] for reply in replies[1:]] == top.indices.tolist()


def test_the_agent_of_a_manifest_decides_as_the_search_counts(caller, tiny_tokenizer):
    """Alone, in a batch, and by the count of `right_decisions`; only the first message is gated."""
    model, _, start, share = caller
    item = {"messages": ASKED, "prompt_turns": 1, "kind": "no tool fits"}
    known, tokens = call_gate.call_shares(model, tiny_tokenizer, [item])
    assert known[0] == pytest.approx((share, 1.0), abs=1e-4)
    assert tokens == len(encode_prompt(tiny_tokenizer, ASKED))
    for bound in (0.0, share - 0.02, share + 0.02):
        decoder = {"max_new_tokens": 1, "call_gate": bound}
        settings = {"decoder": decoder, "max_rounds": 1}
        one = agent.Agent(model, tiny_tokenizer, settings=settings)
        alone = one.reply(ASKED).messages[0]["content"]
        batch = answers(model, tiny_tokenizer, settings, [ASKED])[0].messages[0]["content"]
        one.memory.close()
        assert alone == batch
        called = alone == tiny_tokenizer.decode([start]).strip()
        right = call_gate.right_decisions(known, np.zeros(1), bound)[0]
        assert right == float(not called)
    limits = agent.TurnLimits(decoding=Decoding(max_new_tokens=1), call_gate=0.5)
    gates = [limits.decoding_of(tiny_tokenizer, number, ()).gate for number in (0, 1)]
    assert gates == [Gate(start, 0.5), None]


def test_settings_that_contradict_a_gate_are_refused():
    read = agent.AgentSettings.from_manifest
    assert read({"decoder": {"call_gate": 0.5}, "grammar": "calls"}).call_gate == 0.5
    with pytest.raises(ConfigError, match="grammar=required forbids that"):
        read({"decoder": {"call_gate": 0.5}, "grammar": "required"})
    for outside in (-0.1, 1.1):
        with pytest.raises(ConfigError, match=r"call_gate is in \[0, 1\]"):
            read({"decoder": {"call_gate": outside}})
    with pytest.raises(ConfigError, match=r"\(0, 1\]"):
        Gate(3, 0.0)


def test_what_a_winner_does_not_name_stays_in_the_decoder():
    inherited = {"tools": ["calculator"], "decoder": {"max_new_tokens": 48, "temperature": 0.0}}
    merged = laid_over(inherited, {"decoder": {"temperature": 0.3}, "system": "Be brief."})
    assert merged == {
        "tools": ["calculator"], "system": "Be brief.",
        "decoder": {"max_new_tokens": 48, "temperature": 0.3},
    }  # fmt: skip
    assert laid_over(inherited, {}) == inherited


def searched(monkeypatch, known, questions, first):
    """The result of the search where the shares are known; `first` questions set the bound."""
    sizes = [f"call_gate.items={first}", f"call_gate.final_items={len(questions) - first}"]
    config = compose("adas", Config, sizes)
    monkeypatch.setattr(call_gate, "call_shares", lambda *_: (known, 1234))
    monkeypatch.setattr(evaluate, "task_items", lambda *_: questions)
    phase = PhaseRun(config, [], None, EventLog(None, "adas"))
    object.__setattr__(phase, "tokenizer", None)
    return call_gate.search_gate(phase, None)


def of_kinds(count):
    kinds = ("no tool fits", "a tool fits")
    return [{"kind": kinds[i % 2], "cluster": f"object {i}"} for i in range(count)]


def test_a_bound_ships_only_where_fresh_questions_show_a_gain(monkeypatch):
    items = of_kinds(60)
    parted = shares(*[(0.5 + 0.3 * (i % 2) + 0.001 * i, 1) for i in range(60)])
    result = searched(monkeypatch, parted, items, 20)
    bound = result["settings"]["decoder"]["call_gate"]
    assert 0.5 + 0.018 < bound < 0.8 + 0.001
    assert [row["n"] for row in result["rows"]] == [20, 40]
    assert result["rows"][1]["right_before"] == 0.5
    assert result["rows"][1]["right_after"] == 1.0
    assert call_gate.metrics(result) == {"call_gate": bound, "call_gate_tokens": 1234}
    # The first twenty are parted by chance, the fresh ones are not.
    parted[20:, 0] = np.random.default_rng(0).uniform(0.5, 0.9, 40)
    parted[20:30, 0] = 0.45
    result = searched(monkeypatch, parted, items, 20)
    assert result["settings"] == {}
    assert result["rows"][1]["accepted"] is False
    assert call_gate.metrics(result)["call_gate"] == 0.0


def test_under_a_null_a_bound_is_accepted_in_at_most_one_of_twenty(monkeypatch):
    """Shares that say nothing on whether a tool fits: 200 searches."""
    items, accepted = of_kinds(80), 0
    for seed in range(200):
        known = np.stack([np.random.default_rng(seed).uniform(0.3, 1, 80), np.ones(80)], 1)
        accepted += bool(searched(monkeypatch, known, items, 32)["settings"])
    assert accepted <= 16  # the 95% bound of 200 draws at 5%


def test_the_phase_writes_the_bound_and_the_weights_are_the_inputs(
    tiny_checkpoint, data_config, tmp_path, monkeypatch
):
    config = compose("adas", Config, [
        "domains=[text]", "fitness={text:1.0,reasoning:0,memory:0,tools:0}", "experts.svf_steps=0",
        "experts.task_steps=0", "search.iterations=0", "search.baselines=false", "search.screened=1",
        "search.race_items=[1]", "search.race_keep=[]", "search.pool_items=2", "search.drift_items=1",
        "runtime_search.techniques=[]", "test_items=2", "call_gate.items=6", "call_gate.final_items=12",
        f"out={tmp_path / 'gated'}", "runtime.device=cpu",
    ])  # fmt: skip
    config.data = data_config

    def known(model, tokenizer, items):
        del model, tokenizer
        needs = call_gate.needs_of(items)
        return np.stack([0.5 + 0.3 * needs, np.ones(len(items))], 1), 99

    monkeypatch.setattr(call_gate, "call_shares", known)
    out = Workspace(config.out, phase="adas", seed=0, config=config, parents=[tiny_checkpoint])
    from agent_forge.phases.adas.run import run

    report = run(PhaseRun(config, [tiny_checkpoint], out, EventLog(None, "adas")))
    written = checkpoint.open(report.outputs[0])
    assert written.manifest.agent["decoder"] == {"call_gate": 0.65}
    assert written.manifest.metrics["call_gate_tokens"] == 99
    assert [row["questions"] for row in report.tables["call gate"]] == ["fitted on", "fresh"]
    before = models.load(tiny_checkpoint).state_dict()
    after = models.load(written).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_dialect_has_a_token_that_begins_a_call(tiny_tokenizer):
    ids = data.encode_chat(
        tiny_tokenizer,
        [*ASKED, {"role": "assistant", "content": agent.format_call(agent.Call("f", {}))}],
    )[0]
    prompt = encode_prompt(tiny_tokenizer, ASKED)
    assert ids[len(prompt)] == call_start(tiny_tokenizer)
