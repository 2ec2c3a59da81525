"""A model's process for tests: the real worker, but its model says what `words.json` dictates.

words.json lies beside the checkpoint and is read for each answer: a part of the last message -> what
is said to it. "log" names a file that gets a line per token, and "end" when the answer is over; "heard"
names one that gets the prompt of each answer and how it is decoded, as JSON.
"gate" names a file that must be there before an answer goes on after its first tokens, of which there
are "gate_tokens".
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agent_forge.agent.loop import Agent
from agent_forge.runtime import talker
from agent_forge.server.openai import worker

SECONDS_PER_TOKEN = 0.01  # a client that has left has this long to be noticed
TOKENS_BEFORE_THE_GATE = 8


def dictate(agent: Agent, file: Path) -> None:
    tokenizer = agent.tokenizer

    def stream(_: Any, prompt: list[int], decoding: Any, *__: Any) -> Iterator[int]:
        words = json.loads(file.read_text())
        log, gate = Path(words.pop("log", os.devnull)), Path(words.pop("gate", "/"))
        gate_tokens = int(words.pop("gate_tokens", TOKENS_BEFORE_THE_GATE))

        def note(line: str) -> None:
            with log.open("a") as lines:
                lines.write(line + "\n")

        heard = {"prompt": tokenizer.decode(prompt), "seed": decoding.seed}
        heard |= {"temperature": decoding.temperature, "max_new_tokens": decoding.max_new_tokens}
        with Path(words.pop("heard", os.devnull)).open("a") as lines:
            lines.write(json.dumps(heard) + "\n")
        last = tokenizer.decode(prompt).rpartition("<|im_end|>")[0].rpartition("<|im_start|>")[2]
        reply = next((said for part, said in words.items() if part in last), "nothing")
        try:
            for number, token in enumerate(
                tokenizer.encode(reply, add_special_tokens=False)[: decoding.max_new_tokens]
            ):
                note("token")
                time.sleep(SECONDS_PER_TOKEN)
                while number == gate_tokens and not gate.exists():
                    time.sleep(SECONDS_PER_TOKEN)
                yield token
        finally:
            note("end")

    talker.stream = stream


class SpeakingAgent(worker.ServedAgent):
    def __init__(self, options: Any) -> None:
        super().__init__(options)
        dictate(self.agent, Path(options["path"]).parent / "words.json")


worker.ServedAgent = SpeakingAgent  # type: ignore[misc]
worker.main()
