"""Values copied into calls to the character: one tool, one argument, one kind of value per row.

`schemas.values` has the kinds, such as whole numbers of 1 to 12 digits, decimals, dates,
identifiers and quoted strings. Tools of two splits deal with different things; a row's kind is its
kind of value, so that a score shows each.
"""

import json
from typing import Any

from agent_forge.core.seeds import numpy_generator
from agent_forge.data.schemas import draw, listed, values, wording
from agent_forge.data.schemas.canonical import question_key
from agent_forge.data.synthetic.schemas import call_of, said_calls

KINDS = values.COPIED


def rows(count: int, split: str, seed: int) -> list[dict[str, Any]]:
    """Return `count` rows of `split`, the kinds in turn; held-out rows are distinct."""
    generator = numpy_generator(seed, "synthetic", "copying", split)
    chosen: list[dict[str, Any]] = []
    seen: set[str] = set()
    while len(chosen) < count:
        kind = KINDS[len(chosen) % len(KINDS)]
        tool = draw.tool(generator, split, kinds=(kind,))
        (name,) = tool.kinds
        said = {
            name: values.draw(generator, kind, tool.declaration["parameters"]["properties"][name])
        }
        question = wording.question(
            generator, tool.actions, tool.phrases, said, held_out=split != "train"
        )
        call = call_of(tool, said)
        turns = [{"role": "user", "content": question}, said_calls([call])]
        identity = f"copying/{question_key(turns)} {json.dumps(call, sort_keys=True)}"
        if split != "train" and identity in seen:
            continue
        seen.add(identity)
        system = {"role": "system", "content": "", "tools": [listed(tool.declaration)]}
        chosen.append(
            {
                "messages": [system, *turns], "answer": turns[-1]["content"], "calls": [call],
                "prompt_turns": 2, "difficulty": 1, "canonical": identity,
                "cluster": identity, "kind": kind,
            }
        )  # fmt: skip
    return chosen
