"""How byte-level BPE cuts text before it merges: GGUF's names and tokenizer.json's rules.

GGUF names a rule in `tokenizer.ggml.pre`. A rule is a series of cuts, each inside the pieces of the
one before. `smollm` sets digits apart and then cuts as GPT-2 does; without the right rule, numbers
become other tokens than the model was trained on. Names and expressions are those in llama.cpp's
llama-vocab.cpp, written as in the models' tokenizers.
"""

from dataclasses import dataclass
from typing import Any

from agent_forge.core.errors import CheckpointError, ConfigError, did_you_mean

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

# A cut is GPT2 or DIGITS, which the tokenizers library has built in, or a regular expression whose
# matches become pieces.
GPT2, DIGITS = "gpt-2's expression", "every digit alone"
LLAMA3 = rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
QWEN2 = rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}|{_REST}"
QWEN35 = (
    rf"{_CONTRACTIONS}|{_BEFORE}[\p{{L}}\p{{M}}]+|\p{{N}}| "
    rf"?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASHED}"
GPT4O = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_SLASHED}"
)
SEED_CODER = (
    rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}{{1}}| "
    rf"?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
THREE_DIGITS = r"\p{N}{1,3}"
CJK = r"[一-龥぀-ゟ゠-ヿ]+"
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to cut. names: GGUF's names for it; an export writes the first."""

    names: tuple[str, ...]
    cuts: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token is not merged from smaller ones
    adds_bos: bool = False  # llama.cpp's default for files that leave it open


RULES = (
    Rule(
        ("gpt-2", "olmo", "mpt", "phi-2", "jais", "trillion", "granite-docling", "exaone4",
         "a.x-4.0", "mellum", "gigachat", "modern-bert"),
        (GPT2,),
    ),
    Rule(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        (DIGITS, GPT2),
    ),
    Rule(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        (LLAMA3,), ignore_merges=True, adds_bos=True,
    ),
    Rule(("smaug-bpe", "dbrx", "glm4", "chatglm-bpe"), (LLAMA3,)),
    Rule(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "megrez", "hunyuan",
         "grok-2", "solar-open"),
        (QWEN2,),
    ),
    Rule(("qwen35",), (QWEN35,)),
    Rule(("tekken",), (TEKKEN,), ignore_merges=True, adds_bos=True),
    Rule(("gpt-4o", "llama4", "kanana2"), (GPT4O,)),
    Rule(("seed-coder",), (SEED_CODER,)),
    Rule(("deepseek-v3", "hunyuan-dense"), (THREE_DIGITS, CJK, DEEPSEEK3)),
    Rule(("bloom", "poro-chat", "gpt3-finnish"), (BLOOM,)),
    Rule(("viking",), (BLOOM, r"\p{N}")),
)  # fmt: skip
_BY_NAME = {name: rule for rule in RULES for name in rule.names}
ADD_BOS = frozenset(name for name, rule in _BY_NAME.items() if rule.adds_bos)


def rule_named(name: str) -> Rule:
    """Return a rule by GGUF's name. Raises CheckpointError with the nearest known one."""
    if name not in _BY_NAME:
        raise CheckpointError(
            f"tokenizer.ggml.pre is '{name}', and how that cuts text is not known "
            f"here{did_you_mean(name, _BY_NAME)}; "
            f"known: {', '.join(_BY_NAME)}. Import the original directory instead"
        )
    return _BY_NAME[name]


def as_json(rule: Rule) -> dict[str, Any]:
    """Return a rule as tokenizer.json's `pre_tokenizer`, which also turns bytes into letters."""
    steps: list[dict[str, Any]] = []
    for cut in rule.cuts:
        if cut == DIGITS:
            steps.append({"type": "Digits", "individual_digits": True})
        elif cut != GPT2:
            steps.append(
                {
                    "type": "Split",
                    "pattern": {"Regex": cut},
                    "behavior": "Isolated",
                    "invert": False,
                }
            )
    steps.append(_byte_level(use_regex=rule.cuts[-1] == GPT2))
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def name_of(pre_tokenizer: dict[str, Any] | None, *, ignore_merges: bool) -> str:
    """Return GGUF's name of the way in which a tokenizer.json cuts text.

    Raises ConfigError for a way without a name, because a guess would give other tokens than the
    model was trained on.
    """
    content = pre_tokenizer or {}
    steps = content.get("pretokenizers", [content])
    cuts = _cuts(steps)
    matching = [rule for rule in RULES if cuts == rule.cuts]
    for rule in matching:
        if rule.ignore_merges == ignore_merges:
            return rule.names[0]
    if matching:
        raise ConfigError(
            f"this tokenizer has ignore_merges={ignore_merges}; llama.cpp's "
            f"{matching[0].names[0]}, which cuts text as "
            f"it does, has {matching[0].ignore_merges}. Use --format hf"
        )
    raise ConfigError(
        f"this tokenizer cuts text by {[_described(step) for step in steps]}, for which "
        "llama.cpp has no name here; "
        f"known: {', '.join(rule.names[0] for rule in RULES)}. Use --format hf"
    )


def _cuts(steps: list[dict[str, Any]]) -> tuple[str, ...] | None:
    """Return the cuts of the steps of a pre-tokenizer, or None where one is of another kind."""
    cuts: list[str] = []
    for step in steps[:-1]:
        pattern = (step.get("pattern") or {}).get("Regex")
        if step.get("type") == "Digits" and step.get("individual_digits"):
            cuts.append(DIGITS)
        elif (
            step.get("type") == "Split"
            and pattern
            and step.get("behavior") == "Isolated"
            and not step.get("invert")
        ):
            cuts.append(_SAME.get(pattern, pattern))
        else:
            return None
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if last.get("use_regex", True):
        cuts.append(GPT2)
    return tuple(cuts)


# Other ways to write the same expression, as some tokenizer.json have them.
_SAME = {
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    + rule.cuts[0].removeprefix(_CONTRACTIONS): rule.cuts[0]
    for rule in RULES
    if rule.cuts[0].startswith(_CONTRACTIONS)
}


def _described(step: dict[str, Any]) -> str:
    pattern = (step.get("pattern") or {}).get("Regex")
    return f"{step.get('type')} {pattern}" if pattern else str(step.get("type"))
