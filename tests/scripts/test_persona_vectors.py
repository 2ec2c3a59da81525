"""The bench of persona vectors: what a vector is, how it is added, and what its doses are judged by."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from agent_forge.checkpoint import Checkpoint
from agent_forge.data import encode_prompt
from agent_forge.phases.bake import persona
from scripts.bench import persona_vectors as bench

NAME = "helpfulness"


@pytest.fixture
def subject(tiny_checkpoint: Checkpoint, text_folder: Path, tmp_path: Path) -> bench.Subject:
    settings = [
        f"data.text=[{text_folder}]", f"data.cache={tmp_path / 'cache'}", "persona.prompts=3",
        "persona.heldout=4", "persona.reply_tokens=5",
    ]  # fmt: skip
    result = bench.opened(tiny_checkpoint.path, settings, 2, 16, tmp_path / "work")
    with torch.no_grad():
        for parameter in result.model.parameters():
            # So that a system prompt moves the random model.
            parameter.mul_(12.0 if parameter.dim() == 2 else 1.0)
    return replace(result, plain=bench.window_logits(result.model, result.windows))


def test_a_vector_is_the_difference_of_mean_hidden_states_at_answer_tokens(
    subject: bench.Subject,
) -> None:
    questions, lesson = subject.lesson(NAME, "train", 3)
    trait = subject.config.persona.traits[NAME]
    by_layer = bench.vectors(subject, trait, questions, lesson)
    assert sorted(by_layer) == ["0", "1"]
    means: dict[bool, list[torch.Tensor]] = {}
    for has_system in (False, True):
        states: list[torch.Tensor] = []
        for question, ids, mask in zip(questions, lesson["ids"], lesson["mask"], strict=True):
            answer = ids[mask.nonzero()[:, 0] + 1].tolist()
            system = [{"role": "system", "content": trait.system}] if has_system else []
            prompt = encode_prompt(
                subject.tokenizer, [*system, {"role": "user", "content": question}]
            )
            with torch.no_grad():
                output = subject.model(
                    input_ids=torch.tensor([[*prompt, *answer]]), output_hidden_states=True
                )
            # The first layer's output; the last entry has gone through the final norm.
            states.append(output.hidden_states[1][0, len(prompt) :])
        means[has_system] = [torch.cat(states).mean(0)]
    expected = means[True][0] - means[False][0]
    assert expected.norm() > 1e-3
    torch.testing.assert_close(by_layer["0"], expected, rtol=1e-4, atol=1e-5)


def test_a_steered_layer_returns_its_output_and_the_vector_and_is_itself_afterwards(
    tiny_llama: LlamaForCausalLM,
) -> None:
    """Behind the last layer only norm and head are left, so that logits are known exactly."""
    ids, vector = torch.arange(12)[None] + 5, torch.linspace(-1, 1, 32)
    with torch.no_grad():
        plain = tiny_llama(input_ids=ids).logits
        with bench.steered(tiny_llama, 1, vector):
            logits = tiny_llama(input_ids=ids).logits
        again = tiny_llama(input_ids=ids).logits
        states: list[torch.Tensor] = []
        hook = tiny_llama.model.layers[1].register_forward_hook(
            lambda _module, _inputs, output: states.append(
                output[0] if isinstance(output, tuple) else output
            )
        )
        tiny_llama(input_ids=ids)
        hook.remove()
        expected = tiny_llama.lm_head(tiny_llama.model.norm(states[0] + vector))
    torch.testing.assert_close(logits, expected)
    assert torch.equal(again, plain)
    assert not torch.allclose(logits, plain)


def test_a_dose_of_zero_has_no_strength_and_no_drift_and_others_are_the_formulas(
    subject: bench.Subject,
) -> None:
    questions, lesson = subject.lesson(NAME, "validation", 4)
    before = bench.nats(subject.model, lesson)
    tokens = int(lesson["mask"].sum())
    assert before.sum() / tokens == pytest.approx(persona.effect(subject.model, lesson), rel=1e-5)
    nothing = torch.zeros(32)
    assert bench.strength(subject.model, lesson, before, 0, nothing)[0] == pytest.approx(
        0, abs=1e-6
    )
    assert bench.drift(subject, 0, nothing) == pytest.approx(0, abs=1e-6)
    vector = bench.vectors(subject, subject.config.persona.traits[NAME], questions, lesson)["0"]
    value, (low, high) = bench.strength(subject.model, lesson, before, 0, vector)
    with bench.steered(subject.model, 0, vector):
        effect = persona.effect(subject.model, lesson)
        with torch.no_grad():
            other = [subject.model(input_ids=row[None]).logits[0] for row in subject.windows]
    assert value == pytest.approx(1 - effect / persona.effect(subject.model, lesson), rel=1e-4)
    assert low <= value <= high
    with torch.no_grad():
        plain = [subject.model(input_ids=row[None]).logits[0] for row in subject.windows]
    p, q = (torch.stack(logits).double().log_softmax(-1) for logits in (plain, other))
    kl = float((p.exp() * (p - q)).sum(-1).mean())
    assert kl > 1e-4
    assert bench.drift(subject, 0, vector) == pytest.approx(kl, rel=1e-4)


def test_the_best_dose_is_the_strongest_of_the_traits_vector_with_small_drift() -> None:
    def point(dose: float, strength: float, drift: float, *, random: bool = False) -> bench.Point:
        return bench.Point("calm", 3, dose, random, strength, (strength - 0.1, 1.0), drift)

    points = [
        point(0.5, 0.2, 0.01), point(1, 0.5, 0.049), point(2, 0.9, 0.05),
        point(1, 0.7, 0.01, random=True),
    ]  # fmt: skip
    assert bench.best(points) is points[1]
    figure = bench.figure_of("calm", points, 0.5, 24)
    assert (figure.figure, figure.met, figure.n) == (0.5, True, "24 answers")
    assert bench.figure_of("calm", points, 0.51, 24).met is False
    nothing = bench.figure_of("calm", points[2:], 0.5, 24)
    assert (nothing.figure, nothing.met) == (None, False)


def test_the_bench_measures_every_dose_of_every_trait_beside_a_random_vector_of_its_norm(
    subject: bench.Subject, tiny_checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run with the same arguments measures nothing again."""
    norms: dict[tuple[str, float], list[float]] = {}
    current: list[str] = []
    curve, drift = bench.curve, bench.drift

    def noted_curve(subject: bench.Subject, name: str) -> list[bench.Point]:
        current.append(name)
        return curve(subject, name)

    def noted_drift(subject: bench.Subject, layer: int, vector: torch.Tensor) -> float:
        norms.setdefault((current[-1], len(norms)), []).append(float(vector.norm()))
        return drift(subject, layer, vector)

    monkeypatch.setattr(bench, "opened", lambda *_: subject)
    monkeypatch.setattr(bench, "curve", noted_curve)
    monkeypatch.setattr(bench, "drift", noted_drift)
    result: Any = bench.run([str(tiny_checkpoint.path)])
    traits = list(subject.config.persona.traits)
    assert len(result.figures) == len(traits) == 3
    rows = [line for line in result.tables.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 2 * len(bench.DOSES) * len(traits)
    sizes = np.asarray([value for values in norms.values() for value in values])
    pairs = sizes.reshape(len(traits), len(bench.DOSES), 2)
    assert np.allclose(pairs[..., 0], pairs[..., 1], rtol=1e-4)
    assert np.allclose(pairs[:, :, 0] / pairs[:, :1, 0], np.asarray(bench.DOSES) / bench.DOSES[0])
    assert all(math.isfinite(size) for size in sizes)
    monkeypatch.setattr(bench, "strength", lambda *_: pytest.fail("measured again"))
    again: Any = bench.run([str(tiny_checkpoint.path)])
    assert again.figures == result.figures
    assert again.tables == result.tables
