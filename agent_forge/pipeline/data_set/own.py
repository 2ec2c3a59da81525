"""What a model writes itself, domain by domain: prompts of the domain, sampled answers.

A prompt is a conversation that ends with the user, or the beginning of a text. Answers are on the
model's own distribution and free of licences, which is what distilling from it needs (LLM-QAT,
arXiv:2305.17888, samples without prompts; METHODS 9 has the mix).
"""

import ast
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from agent_forge.config import DataConfig
from agent_forge.core.seeds import numpy_generator, seed_for
from agent_forge.data import encode_prompt, stop_ids, text_start
from agent_forge.data.chat import kept_reply
from agent_forge.data.domains import conversations
from agent_forge.data.packaged import PACKAGES, files_of
from agent_forge.data.sets.settings import BuildSettings
from agent_forge.data.sets.texts import TEXTS, growing
from agent_forge.data.synthetic import schemas

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Row = dict[str, Any]
BEGINNING_WORDS = 24  # words of a text that the model goes on from
LONGEST_FUNCTION = 200  # characters of a docstring's first line that a prompt asks for
NAMES = ("Ann", "Ben", "Eve", "Hal", "Ida", "Jon", "Kim", "Max", "Ray", "Sue", "Tom", "Val")
THINGS = ("apples", "books", "boxes", "cards", "coins", "eggs", "pens", "shells", "stamps", "tiles")
STORIES = (
    "{one} has {a} {things}. {two} gives {one} {b} more, and then {one} sells {c} of them. "
    "How many {things} does {one} have now?",
    "{one} buys {a} packs with {b} {things} each, and {two} takes {c} of them. How many {things} "
    "are left?",
    "There are {a} shelves with {b} {things} on each. {one} puts {c} more {things} on the first. "
    "How many {things} are there in all?",
    "{one} collects {a} {things} a day for {b} days. {two} has {c} {things} more than {one}. "
    "How many {things} does {two} have?",
)
STEPS = " Work it out step by step and end with the number."


def prompts(domain: str, settings: BuildSettings) -> Iterator[Row]:
    """Yield up to `own.prompts` prompts of a domain: {"messages"} or {"text"}; none are held out."""
    seed = seed_for(settings.seed, "data_set", "prompts", domain)
    source = {
        "prose": _beginnings, "chat": _openings, "mathematics": _stories, "code": _functions,
        "tool_calls": _tool_questions,
    }[domain]  # fmt: skip
    for number, row in enumerate(source(settings.data, seed)):
        if number >= settings.own.prompts:
            return
        yield row


def _beginnings(config: DataConfig, seed: int) -> Iterator[Row]:
    """Yield the first words of pieces of speeches."""
    for row in TEXTS["sotu"].rows(config, seed):
        words = row["text"].split()[:BEGINNING_WORDS]
        if len(words) == BEGINNING_WORDS:
            yield {"text": " ".join(words)}


def _openings(config: DataConfig, seed: int) -> Iterator[Row]:
    """Yield the first turns of conversations in a random order, round after round."""
    del config
    rows = conversations("train")
    generator = numpy_generator(seed, "order")
    while True:
        for i in generator.permutation(len(rows)):
            yield {"messages": rows[i]["messages"][:1]}


def _stories(config: DataConfig, seed: int) -> Iterator[Row]:
    """Yield school problems in words, made of templates and small numbers."""
    del config
    generator = numpy_generator(seed, "stories")
    while True:
        one, two = (NAMES[i] for i in generator.choice(len(NAMES), 2, replace=False))
        a, b = (int(number) for number in generator.integers(2, 13, 2))
        numbers = {
            "a": a,
            "b": b,
            "c": int(generator.integers(1, a + b)),
        }  # nothing below 0 is left
        things = THINGS[int(generator.integers(len(THINGS)))]
        story = STORIES[int(generator.integers(len(STORIES)))]
        question = story.format(one=one, two=two, things=things, **numbers)
        yield {"messages": [{"role": "user", "content": question + STEPS}]}


def _functions(config: DataConfig, seed: int) -> Iterator[Row]:
    """Yield requests for functions of the standard library's sub-packages, by their docstrings,
    module after module in a random order, round after round.
    """
    del config
    generator = numpy_generator(seed, "order")
    files = files_of("stdlib")
    while True:
        for i in generator.permutation(len(files)):
            for request in _requests(PACKAGES["stdlib"].read(files[i])):
                yield {"messages": [{"role": "user", "content": request}]}


def _requests(module: str) -> Iterator[str]:
    """Yield a request for every function of a module that has a docstring."""
    try:
        tree = ast.parse(module)
    except SyntaxError:  # a module that was cut at its size limit
        return
    for node in ast.walk(tree):
        doc = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
        first = doc.strip().splitlines()[0] if doc and doc.strip() else ""
        if isinstance(node, ast.FunctionDef) and 10 < len(first) < LONGEST_FUNCTION:
            yield f"Write a Python function `{node.name}`: {first}"


def _tool_questions(config: DataConfig, seed: int) -> Iterator[Row]:
    """Yield tools and questions of the generator's train split."""
    del config
    for row in growing(schemas.rows, seed):
        yield {"messages": row["messages"][: row["prompt_turns"]]}


def written(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    rows: Sequence[Row],
    settings: BuildSettings,
    seed: int,
) -> list[Row]:
    """Return the rows with what the model writes after each, in their order."""
    from agent_forge import models

    own = settings.own
    start = text_start(tokenizer)
    ids = [
        encode_prompt(tokenizer, row["messages"]) if "messages" in row
        else [start, *tokenizer.encode(row["text"], add_special_tokens=False)]
        for row in rows
    ]  # fmt: skip
    replies = models.generate(
        model,
        ids,
        models.Decoding(
            max_new_tokens=own.new_tokens,
            stop_ids=stop_ids(tokenizer, model),
            temperature=own.temperature,
            top_p=own.top_p,
            seed=seed,
            batch_rows=own.batch_rows,
        ),
    )
    return [_continued(tokenizer, row, reply) for row, reply in zip(rows, replies, strict=True)]


def _continued(tokenizer: "PreTrainedTokenizerFast", row: Row, reply: list[int]) -> Row:
    from agent_forge.agent.turn import decode_reply

    if "text" in row:
        return {"text": row["text"] + str(tokenizer.decode(reply, skip_special_tokens=True))}
    answer = kept_reply(tokenizer, decode_reply(tokenizer, reply))
    return {"messages": [*row["messages"], {"role": "assistant", "content": answer}]}


def batch_seed(settings: BuildSettings, domain: str, number: int) -> int:
    """Return the seed of a batch's sampling."""
    return seed_for(settings.seed, "data_set", domain, number)


def shuffled(rows: Sequence[Row], settings: BuildSettings, domain: str) -> list[Row]:
    """Return rows in an order that the seed decides."""
    order: Any = np.asarray(
        numpy_generator(settings.seed, "data_set", "order", domain).permutation(len(rows))
    )
    return [rows[i] for i in order]
