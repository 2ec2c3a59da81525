"""A worker's task: merge a candidate in memory, and measure its loss on each item of the search
split.

The task travels to workers by pickle: paths, rows and settings, never weights. Each worker maps the
models once.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from agent_forge import checkpoint, evaluate
from agent_forge.core.device import pick_dtype, set_threads
from agent_forge.phases.evomerge import MergeConfig
from agent_forge.phases.evomerge.candidates import Stage
from agent_forge.phases.evomerge.fitness import MaskedRow
from agent_forge.phases.evomerge.genome import Genome, GenomeSpace
from agent_forge.phases.evomerge.sources import open_sources
from agent_forge.search.evaluator import Measure, Spans


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateTask:
    """Measure candidates on `rows`.

    device: "cpu", or a type of accelerator, of which each worker takes one of its own.
    """

    sources: list[str]
    scratch: str
    merge: MergeConfig
    mask_seed: int
    rows: list[MaskedRow]
    batch_tokens: int
    device: str
    dtype: str
    threads: int

    def open(self, worker: int, candidates: int) -> Measure:
        """Open the models; return the function that measures, which keeps `candidates` of them."""
        set_threads(self.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        checkpoints = [checkpoint.open(path, verify=False) for path in self.sources]
        opened = open_sources(
            checkpoints, Path(self.scratch), self._device(worker), pick_dtype(self.dtype)
        )
        stage = Stage(opened, self.mask_seed, candidates)
        space = GenomeSpace(self.merge, opened.labels, stage.layers, stage.scalable)

        def measure(genome: Genome, key: str, spans: Spans) -> list[list[float]]:
            model = stage.show(space.recipe(genome), key)
            return [
                [
                    float(nats)
                    for nats in evaluate.row_nll(model, self.rows[start:stop], self.batch_tokens)[
                        :, 0
                    ]
                ]
                for start, stop in spans
            ]

        return measure

    def _device(self, worker: int) -> torch.device:
        """Return the worker's accelerator, by its number among those that the process sees."""
        if self.device == "cpu" or ":" in self.device or not torch.accelerator.is_available():
            return torch.device(self.device)
        return torch.device(self.device, worker % torch.accelerator.device_count())
