"""Give the model tasks that it solves about half of the time, by following its measured success
rate.

T <- T + rate * tanh(sharpness * (success - target)) for each kind of task, T in [0, 1] from the
easiest level to the hardest. Source: AdaRFT, arXiv:2504.05520 (controller); arXiv:2504.03380 (why
half: the signal goes as p(1 - p)).
"""

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from agent_forge.core import registry
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import seed_for
from agent_forge.data import RowSource
from agent_forge.learn import StepRecord
from agent_forge.phases.train import CurriculumConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

SYNTHETIC = "agent_forge.data.synthetic"
# success(model, kind, level) returns the share of rows of that level that are answered rightly.
Success = Callable[[Any, str, int], float]


def hardest_level(kind: str, seed: int) -> int:
    """Return the highest difficulty that occurs among 200 rows of a generated task."""
    rows = registry.load(SYNTHETIC, kind, "generated task").rows(
        200, "train", seed_for(seed, "train", "levels")
    )
    return max(int(row.get("difficulty", 1)) for row in rows)


class LevelSource:
    """Windows of one kind of task at the level that the curriculum asks for (a source of
    `data.Mixture`).
    """

    def __init__(
        self,
        kind: str,
        tokenizer: "PreTrainedTokenizerFast",
        rows: int,
        seed: int,
        uniform_share: float,
        start: float,
    ) -> None:
        task = registry.load(SYNTHETIC, kind, "generated task")
        self.kind, self.uniform_share, self.difficulty = kind, uniform_share, start
        self.levels = [
            RowSource(
                task.rows(
                    max(rows // hardest_level(kind, seed), 1), "train", seed, difficulty=level
                ),
                tokenizer,
            )
            for level in range(1, hardest_level(kind, seed) + 1)
        ]

    def level_at(self, draw: float) -> int:
        """Return the index of the level for a random number in [0, 1).

        It is one of the two levels around T, the nearer one more often.
        """
        place = self.difficulty * (len(self.levels) - 1)
        return min(int(place) + (draw < place - int(place)), len(self.levels) - 1)

    def take(
        self, generator: np.random.Generator, length: int
    ) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Return ids and labels, (length,) each."""
        uniform, draw = generator.random(2)
        index = (
            int(draw * len(self.levels)) if uniform < self.uniform_share else self.level_at(draw)
        )
        return self.levels[index].take(generator, length)


class Curriculum:
    """Measure success at the present level of each kind, and move the level."""

    def __init__(
        self,
        config: CurriculumConfig,
        sources: Mapping[str, LevelSource],
        success: Success,
        events: EventLog,
    ) -> None:
        self.config, self.sources, self.success, self.events = (
            config,
            dict(sources),
            success,
            events,
        )
        self.log: list[tuple[int, str, float, float]] = []  # (step, kind, success, T after)

    def move(self, kind: str, success: float) -> float:
        """Move T of `kind` after a measured success rate, and return it."""
        # The bounded push keeps one lucky measurement from jumping over levels.
        push = math.tanh(self.config.sharpness * (success - self.config.target_success))
        source = self.sources[kind]
        source.difficulty = min(1.0, max(0.0, source.difficulty + self.config.rate * push))
        return source.difficulty

    def __call__(self, record: StepRecord, model: Any) -> dict[str, Any]:
        """Measure every `every_steps` steps; return no controls."""
        if (record.step + 1) % self.config.every_steps:
            return {}
        for kind, source in self.sources.items():
            level = 1 + round(source.difficulty * (len(source.levels) - 1))
            success = self.success(model, kind, level)
            self.log.append((record.step, kind, success, self.move(kind, success)))
            self.events.message(
                f"curriculum: {kind} level {level}: {success:.0%} right, T now {source.difficulty:.2f}"
            )
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return T of every kind, and the log."""
        return {
            "difficulty": {kind: source.difficulty for kind, source in self.sources.items()},
            "log": self.log,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        for kind, source in self.sources.items():
            source.difficulty = state["difficulty"][kind]
        self.log = [(step, kind, success, after) for step, kind, success, after in state["log"]]
