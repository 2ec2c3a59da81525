"""Traces of tool use: generated questions, answered by really running the tools.

A trace is {"kind", "messages", "answer", "filtered", "stages"}: its kind, the messages that are
trained, the final answer, whether the Toolformer filter applies, and the user turns of all its
conversations in order, which the held-out measurement asks. That of a word problem has also
"result", the number, and "part", the sort of problem. Memory traces come in three
conversations on one SQLite store: write, replace, recall. The split of a trace depends on what it
asks for (the fact, or the numbers in ascending order), and no two held-out traces ask for the same.
Where a split holds fewer of these, there are fewer traces.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agent_forge.agent import (
    Call,
    DocumentIndex,
    Memory,
    Toolbox,
    ToolContext,
    format_call,
    format_response,
)
from agent_forge.config import DataConfig
from agent_forge.core.errors import DataError, PhaseError
from agent_forge.core.seeds import numpy_generator
from agent_forge.data import documents, split_of
from agent_forge.data.synthetic import memory, tools, word_problems

Trace = dict[str, Any]
TOOLS = {
    "calculator": ("calculator",),
    "word_problems": ("calculator",),
    "memory": ("remember", "recall"),
    "code": ("code",),
    "retrieve": ("retrieve",),
}
STORED = "Stored."
WRITE = (
    "Remember that the {key} is {value}.",
    "Keep in mind: the {key} is {value}.",
    "Note that the {key} is {value}.",
)
REPLACE = ("Remember that the {key} is now {value}.", "Note that the {key} changed to {value}.")
RECALL = (
    "Recall the {key}.",
    "What did I tell you about the {key}?",
    "Look up the {key} in your memory.",
)
WORDS = (
    "river",
    "house",
    "garden",
    "winter",
    "people",
    "nation",
    "letter",
    "morning",
    "silver",
    "window",
    "bridge",
)
PASSAGE_WORDS = 12
STORE_DOCUMENTS = 24
PATIENCE = 5000  # draws without a new trace after which a split is taken to hold no more


def make(
    kind: str, count: int, split: str, seed: int, data: DataConfig, digits: int = tools.DIGITS
) -> list[Trace]:
    """Return `count` traces of a kind; digits: the most digits of a sum's operands.

    Raises PhaseError when a tool returns a wrong result.
    """
    if kind == "calculator":
        return _calculator(tools.rows(count, split, seed, digits=digits))
    return _MAKERS[kind](count, split, seed, data)


def toolbox(kind: str, split: str, data: DataConfig) -> Callable[[], Toolbox]:
    """Return a function that returns the toolbox of one conversation of a kind.

    Each conversation has its own memory; all share one document store.
    """
    if kind == "memory":
        return lambda: Toolbox(TOOLS[kind], ToolContext(memory=Memory()))
    context = (
        ToolContext(documents=passage_store(data, split)) if kind == "retrieve" else ToolContext()
    )
    box = Toolbox(TOOLS[kind], context)
    return lambda: box


def passage_store(data: DataConfig, split: str) -> DocumentIndex:
    """Return a store of short passages from real documents of a split."""
    index = DocumentIndex(Memory().store, PASSAGE_WORDS)
    for number, text in enumerate(documents(data, split)):
        if number == STORE_DOCUMENTS:
            break
        index.add(text[:4000])
    return index


def _calculator(rows: Sequence[dict[str, Any]]) -> list[Trace]:
    """Return traces of generated rows; questions that need no tool stay as they are."""
    box = Toolbox(TOOLS["calculator"])
    traces = []
    for row in rows:
        question = row["messages"][0]["content"]
        if not row["tool"]:
            traces.append(_trace("calculator", row["messages"], row["answer"], filtered=False))
            continue
        messages, result = _ask(
            box, question, Call("calculator", {"expression": row["expression"]})
        )
        expected, answer = row.get("result", row["answer"]), row["answer"]
        if result != expected:
            raise PhaseError(
                f"the calculator says {row['expression']} = {result}, the question says {expected}"
            )
        traces.append(_trace("calculator", [*messages, _says(answer)], answer, filtered=True))
    return traces


def _word_problems(count: int, split: str, seed: int, data: DataConfig) -> list[Trace]:  # noqa: ARG001
    """Return word problems, each with its number and the sort that it is counted under."""
    rows = word_problems.rows(count, split, seed)
    return [
        {**trace, "kind": "word_problems", "result": row["result"], "part": row["kind"]}
        for trace, row in zip(_calculator(rows), rows, strict=True)
    ]


def _memory(count: int, split: str, seed: int, data: DataConfig) -> list[Trace]:  # noqa: ARG001
    """Return traces that write a fact, replace it in half of the cases, and recall it afterwards.

    Each step is a conversation of its own.
    """
    generator = numpy_generator(seed, "bake", "memory", split)
    traces: list[Trace] = []
    split_filter = _Wanted("memory", split)
    while len(traces) < count and split_filter.misses < PATIENCE:
        name = memory.KEYS[int(generator.integers(len(memory.KEYS)))]
        key = f"code of the {name}"
        old, new = (str(int(n)) for n in generator.choice(np.arange(10, 100), 2, replace=False))
        replaced = bool(generator.integers(2))
        facts = [f"{name}/{value}" for value in ((old, new) if replaced else (old,))]
        if not split_filter.takes(facts[-1], *facts[:-1]):
            continue
        box = Toolbox(TOOLS["memory"], ToolContext(memory=Memory()))
        parts = [(WRITE, old), (REPLACE, new)] if replaced else [(WRITE, old)]
        turns: list[list[dict[str, str]]] = []
        for forms, value in parts:
            question = _pick(generator, forms).format(key=key, value=value)
            messages, _ = _ask(box, question, Call("remember", {"about": name, "fact": value}))
            turns.append([*messages, _says(STORED)])
        messages, result = _ask(
            box, _pick(generator, RECALL).format(key=key), Call("recall", {"query": name})
        )
        answer = result.rpartition(": ")[2]
        if answer != (new if replaced else old):
            raise PhaseError(
                f"the memory recalls '{result}' for {name}, the newest fact is {new if replaced else old}"
            )
        turns.append([*messages, _says(answer)])
        stages = [turn[0]["content"] for turn in turns]
        traces += [_trace("memory", turn, STORED, filtered=False) for turn in turns[:-1]]
        traces.append(_trace("memory", turns[-1], answer, filtered=True, stages=stages))
    return traces[:count]


def _code(count: int, split: str, seed: int, data: DataConfig) -> list[Trace]:  # noqa: ARG001
    """Return traces of small programs that have to run for their output to be known."""
    generator = numpy_generator(seed, "bake", "code", split)
    box = Toolbox(TOOLS["code"])
    traces: list[Trace] = []
    split_filter = _Wanted("code", split)
    while len(traces) < count and split_filter.misses < PATIENCE:
        numbers = [int(n) for n in generator.integers(1, 100, 3)]
        word = _pick(generator, WORDS)
        sort = int(generator.integers(3))
        question, code = (
            (
                f"Run code to add {numbers[0]}, {numbers[1]} and {numbers[2]}.",
                f"print(sum({numbers}))",
            ),
            (
                f"Run code to sort {numbers[0]}, {numbers[1]} and {numbers[2]}.",
                f"print(sorted({numbers}))",
            ),
            (
                f"Run code to write {word} {numbers[0] % 5 + 1} times.",
                f"print('{word}' * {numbers[0] % 5 + 1})",
            ),
        )[sort]
        if not split_filter.takes(question if sort == 2 else f"{sort} {sorted(numbers)}"):
            continue
        messages, result = _ask(box, question, Call("code", {"code": code}))
        traces.append(_trace("code", [*messages, _says(result)], result, filtered=True))
    return traces


def _retrieve(count: int, split: str, seed: int, data: DataConfig) -> list[Trace]:
    """Return questions by the two rarest words of a passage, where the store really returns that
    passage.
    """
    generator = numpy_generator(seed, "bake", "retrieve", split)
    index = passage_store(data, split)
    box = Toolbox(TOOLS["retrieve"], ToolContext(documents=index))
    passages = [
        str(text) for (text,) in index.store.rows("SELECT content FROM passages ORDER BY id")
    ]
    counts = Counter(word for passage in passages for word in set(_long_words(passage)))
    traces: list[Trace] = []
    for i in generator.permutation(len(passages)):
        rare = sorted(set(_long_words(passages[i])), key=lambda word: (counts[word], word))[:2]
        if len(rare) < 2 or len(traces) == count:
            continue
        query = " ".join(rare)
        messages, result = _ask(
            box,
            f"Find the passage with {rare[0]} and {rare[1]}.",
            Call("retrieve", {"query": query}),
        )
        if result == passages[i]:
            traces.append(_trace("retrieve", [*messages, _says(result)], result, filtered=True))
    if not traces:
        raise DataError(
            f"no passage of the {split} split can be found by two of its words; give data.text more prose"
        )
    return traces


class _Wanted:
    """Decides which drawn questions a split takes.

    All facts of a question must belong to the split, and a held-out question is taken only once.
    """

    def __init__(self, kind: str, split: str) -> None:
        self.kind, self.split = kind, split
        self.seen: set[str] = set()
        self.misses = 0

    def takes(self, form: str, *others: str) -> bool:
        """Return whether the question of canonical form `form` is taken; `others` are the further
        facts that it states.
        """
        inside = all(split_of(f"bake/{self.kind}/{one}") == self.split for one in (form, *others))
        if not inside or (self.split != "train" and form in self.seen):
            self.misses += 1
            return False
        self.seen.add(form)
        self.misses = 0
        return True


def _ask(box: Toolbox, question: str, call: Call) -> tuple[list[dict[str, str]], str]:
    """Run `call` for `question`; return the conversation so far and the result. Raises PhaseError
    if the tool fails.
    """
    result = box.run(call)
    if result.error:
        raise PhaseError(f"a trace cannot be made: {call.name} on '{question}' gave {result.text}")
    messages = [
        {"role": "user", "content": question},
        _says(format_call(call)),
        {"role": "tool", "content": format_response(result.text)},
    ]
    return messages, result.text


def _trace(
    kind: str,
    messages: Sequence[dict[str, str]],
    answer: str,
    *,
    filtered: bool,
    stages: Sequence[str] = (),
) -> Trace:
    user_turns = list(stages) or [messages[0]["content"]]
    return {
        "kind": kind,
        "messages": list(messages),
        "answer": answer,
        "filtered": filtered,
        "stages": user_turns,
    }


def _says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _pick(generator: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(generator.integers(len(options)))]


def _long_words(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 3]


_MAKERS: dict[str, Callable[[int, str, int, DataConfig], list[Trace]]] = {
    "word_problems": _word_problems,
    "memory": _memory,
    "code": _code,
    "retrieve": _retrieve,
}
