"""The curve of a model: bytes against quality against tokens per second, one written and reloaded
file per point.

Speed is measured as the agent generates: by the packed engine where it can compute the model, by
torch elsewhere.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from agent_forge import models
from agent_forge.codecs import allocate
from agent_forge.core.errors import ConfigError
from agent_forge.phases import PhaseRun
from agent_forge.phases.compress import Config, measure
from agent_forge.phases.compress.choose import CodedModel
from agent_forge.runtime import causal

TITLE = "curve: bytes, quality, speed"
PROMPT_TOKENS = 16


def points(
    phase: PhaseRun[Config], coded: CodedModel, fixed_bytes: int, reference: measure.Reference
) -> list[dict[str, Any]]:
    """Return a row for each of `curve.bytes_ratios`, largest first, without recovery.

    fixed_bytes: size of the file beside the coded tensors. A ratio that the candidates cannot reach
    is left out with a warning.
    """
    config, out, events = phase.config, phase.out, phase.events
    fp32, tensors, device = coded.fp32_bytes, coded.options, coded.model.device
    seeds = int(config.seed_ratio * coded.weights)
    rows: list[dict[str, Any]] = []
    previous: allocate.Choice | None = None
    ratios = sorted(config.curve.bytes_ratios, reverse=True)
    for index, ratio in enumerate(ratios):
        try:
            choice = allocate.within_budget(
                tensors, int(ratio * fp32) - fixed_bytes, max_seed_blocks=seeds
            )
        except ConfigError as error:
            events.warning(f"curve: no point at {ratio} of fp32: {error}")
            continue
        if choice == previous:
            events.message(
                f"curve: {ratio} of fp32 holds the same file as the ratio before; no further point"
            )
            continue
        previous = choice

        def measured(choice: allocate.Choice = choice) -> dict[str, Any]:
            directory = out.state / "curve"
            shutil.rmtree(directory, ignore_errors=True)
            models.save(coded.build(choice), None, directory)
            size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
            figures = reference.quality(models.load(directory, device=device))
            fast = causal.open_model(directory, device=device)
            prompt = next(iter(reference.windows.values()))[0][0, :PROMPT_TOKENS].tolist()
            return {
                "bytes": size, "of_fp32": round(size / fp32, 4), "bits": round(32 * size / fp32, 3),
                "quality": figures["quality"], "low": figures["quality_low"], "high": figures["quality_high"],
                "tokens_per_second": tokens_per_second(fast, prompt, config.curve.speed_tokens),
                "engine": "packed" if isinstance(fast, causal.PackedCausalLM) else "torch",
                "estimated_nats": round(allocate.total_distortion(tensors, choice), 5),
            }  # fmt: skip

        rows.append(out.remember(f"curve-{ratio}", measured))
        events.progress("curve", index + 1, len(ratios), rows[-1])
    return rows


def plots(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Return the report's plots of the rows, the table's title first."""
    by_size = sorted(rows, key=lambda row: row["bytes"])
    return {
        TITLE: [(row["bytes"], row["quality"]) for row in by_size],
        "tokens per second by bytes": [(row["bytes"], row["tokens_per_second"]) for row in by_size],
    }


def tokens_per_second(model: Any, prompt: list[int], tokens: int) -> float:
    """Return the speed of greedy generation with a cache after `prompt`: one sequence, including
    the time of the prompt.
    """
    with torch.no_grad():
        models.generate(model, [prompt], models.Decoding(max_new_tokens=1))
        began = time.perf_counter()
        models.generate(model, [prompt], models.Decoding(max_new_tokens=tokens))
    return round(tokens / (time.perf_counter() - began), 2)
