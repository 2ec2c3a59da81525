"""What is in view of the model: the newest turns that fit a token budget, and a summary of the rest.

Reads a conversation, writes nothing. Turns that no longer fit are not cut in silence: a summary of
them stands in the system turn. The default summary takes whole sentences of the speakers by
SumBasic (Nenkova, Vanderwende 2005): the words that occur most stand for the whole, and a word that
a chosen sentence covers counts less from then on. The model can write the summary instead
(`rolling`).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from agent_forge.agent.embedding import words
from agent_forge.agent.passages import sentences

Message = Mapping[str, str]
# (turns that left the window, whether a text fits) -> summary, "" where nothing fits
Summariser = Callable[[Sequence[Message], Callable[[str], bool]], str]

SUMMARY_SHARE = 0.2  # most of the budget that the summary may take
HEAD = "Earlier in this conversation:"
_SPEAKERS = {"user": "User", "assistant": "Assistant"}
_SHORT = 3  # words of at most so many letters say little; numbers always count


class WorkingMemory:
    """The part of a conversation that fits a budget; `count_tokens` counts one message.

    summarise: what becomes of turns that leave the window; None drops them.
    left_out: how many messages the last window did not hold.
    """

    def __init__(
        self,
        budget_tokens: int,
        count_tokens: Callable[[Message], int],
        summarise: Summariser | None = None,
    ) -> None:
        self.budget_tokens = budget_tokens
        self.count_tokens = count_tokens
        self.summarise = summarise
        self.left_out = 0

    def window(self, messages: Sequence[Message], pinned: int = 0) -> list[dict[str, str]]:
        """Return system turns, a summary where turns had to leave, and the newest turns that fit.

        The last user turn and what follows it always stay. Turns leave in groups that begin with a
        user turn, so that a tool's answer never stays without its call.
        pinned: how many of the first turns, system turns not counted, stay and are not summarised.
        """
        system = [message for message in messages if message["role"] == "system"]
        turns = [message for message in messages if message["role"] != "system"]
        fixed, turns = [*system, *turns[:pinned]], turns[pinned:]
        groups = _groups(turns)
        left = self.budget_tokens - sum(map(self.count_tokens, fixed))
        recent = self._recent(groups, left)
        summary = ""
        if len(recent) < len(groups) and self.summarise is not None:
            most = int(SUMMARY_SHARE * self.budget_tokens)
            recent = self._recent(groups, left - most)
            gone = [message for group in groups[: len(groups) - len(recent)] for message in group]
            summary = self._summary(gone, most)
        shown = [message for group in recent for message in group]
        self.left_out = len(turns) - len(shown)
        return [dict(message) for message in (*_with_summary(fixed, summary), *shown)]

    def _recent(self, groups: Sequence[list[Message]], left: int) -> list[list[Message]]:
        """Return the newest groups that fit into `left` tokens, at least one."""
        recent: list[list[Message]] = []
        for group in reversed(groups):
            left -= sum(map(self.count_tokens, group))
            if recent and left < 0:
                break
            recent.insert(0, group)
        return recent

    def _summary(self, gone: Sequence[Message], most_tokens: int) -> str:
        assert self.summarise is not None

        def fits(text: str) -> bool:
            return self.count_tokens(_system(f"{HEAD}\n{text}")) <= most_tokens

        summary = self.summarise(gone, fits)
        return f"{HEAD}\n{summary}" if summary else ""


def _groups(turns: Sequence[Message]) -> list[list[Message]]:
    groups: list[list[Message]] = []
    for message in turns:
        if message["role"] == "user" or not groups:
            groups.append([])
        groups[-1].append(message)
    return groups


def _system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def _with_summary(fixed: Sequence[Message], summary: str) -> list[Message]:
    """Add a summary to the last system turn: templates of many models take one, at the start."""
    if not summary:
        return list(fixed)
    count = sum(message["role"] == "system" for message in fixed)
    if not count:
        return [_system(summary), *fixed]
    last = fixed[count - 1]
    return [*fixed[: count - 1], _system(f"{last['content']}\n{summary}"), *fixed[count:]]


def sum_basic(gone: Sequence[Message], fits: Callable[[str], bool]) -> str:
    """Return sentences of what users and the assistant said, one per line, in their order.

    Departure from the paper: questions come last, for they were answered and tell no fact.
    """
    lines = [
        (f"{_SPEAKERS[message['role']]}: {sentence}", _content_words(sentence))
        for message in gone
        if message["role"] in _SPEAKERS and "<tool_call>" not in message["content"]
        for sentence in sentences(message["content"])
    ]
    lines = [(line, content) for line, content in dict(lines).items() if content]
    counts = Counter(word for _, content in lines for word in content)
    total = sum(counts.values())
    weights = {word: count / total for word, count in counts.items()}
    chosen: list[int] = []
    open_lines = list(range(len(lines)))
    while open_lines:
        best = max(
            open_lines, key=lambda i: (_states(lines[i][0]), _mean(weights, lines[i][1]), -i)
        )
        open_lines.remove(best)
        trial = "\n".join(lines[i][0] for i in sorted([*chosen, best]))
        if not fits(trial):
            continue  # a shorter sentence may still fit
        chosen.append(best)
        for word in lines[best][1]:
            weights[word] **= 2
    return "\n".join(lines[i][0] for i in sorted(chosen))


def _states(line: str) -> bool:
    return not line.rstrip("\"')").endswith("?")


def _content_words(sentence: str) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(word for word in words(sentence) if len(word) > _SHORT or word.isdigit())
    )


def _mean(weights: Mapping[str, float], content: Sequence[str]) -> float:
    return sum(weights[word] for word in content) / len(content)


def rolling(write: Callable[[str], str]) -> Summariser:
    """Return a summariser that lets a model `write` a summary of a transcript.

    What was summarised before is not read again: the next summary is written from the last one and
    the turns that left since. Where the model's summary does not fit, its first sentences that do
    are taken.
    """
    known: dict[int, str] = {}  # number of turns -> their summary
    seen: list[str] = []

    def summarise(gone: Sequence[Message], fits: Callable[[str], bool]) -> str:
        lines = [
            f"{_SPEAKERS.get(message['role'], 'Tool')}: {message['content']}" for message in gone
        ]
        if lines[: len(seen)] != seen:  # another conversation
            known.clear()
        seen[:] = lines
        if len(lines) not in known:
            before = max((count for count in known if count <= len(lines)), default=0)
            known[len(lines)] = write("\n".join([known.get(before, ""), *lines[before:]]).strip())
        summary = ""
        for sentence in sentences(known[len(lines)]):
            if not fits(longer := f"{summary} {sentence}".strip()):
                break
            summary = longer
        return summary

    return summarise
