"""Bake a trait: KL between the parent under a system prompt and the student without it, on the
parent's own answers.

The teacher answers questions under the prompt. At every token of an answer the top K of its
distribution are stored, and the rest is one tail. Strength is measured on questions of other
topics: s = 1 − KL(P_u ‖ P_s) / KL(P_u ‖ P_0), 0 for the parent, 1 for a student that behaves as if
prompted. Source: prompt baking (arXiv:2409.13697), which trains adapters; here all weights learn,
because the text and tool losses of the same step hold them in place.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from agent_forge import models
from agent_forge.core.device import sent
from agent_forge.core.errors import ConfigError
from agent_forge.core.seeds import numpy_generator
from agent_forge.data import encode_prompt, split_of, stop_ids, turn_end
from agent_forge.data.windows import begin_ids, fitting_prompt, positions
from agent_forge.evaluate.tasks.persona import KINDS, TOPICS
from agent_forge.phases.bake import TraitConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


class Drawing(Protocol):
    """How the teacher answers: how long, how random, and how much of its distribution is stored."""

    reply_tokens: int
    temperature: float
    top_k: int


# The least probability of a tail: its logarithm stays finite where rounding leaves nothing or less.
SMALLEST = 1e-8


def questions(trait: TraitConfig, count: int, split: str, seed: int, name: str) -> list[str]:
    """Return `count` questions of a split; the split goes by topic, as in the persona task. Raises
    ConfigError.
    """
    topics = [f"{kind} {noun}" for kind in KINDS for noun in TOPICS]
    topics = [topic for topic in topics if split_of(f"persona/{topic}") == split]
    candidates = [form.format(topic) for topic in topics for form in trait.questions]
    if not candidates:
        raise ConfigError(
            f"persona.traits.{name}.questions is empty; give at least one question with {{}} for a topic"
        )
    order = numpy_generator(seed, "bake", "persona", name, split).permutation(len(candidates))
    return [candidates[i] for i in order[:count]]


@torch.no_grad()
def teach(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    trait: TraitConfig,
    texts: Sequence[str],
    config: Drawing,
    seed: int,
) -> dict[str, Tensor]:
    """Return the prompted parent's answers, as the unprompted student sees them; with an empty
    system prompt, the answers of the parent as it is.

    ids: (N, T) int64, question and answer, zero-padded; mask: (N, T) bool, True where the next
    token is the answer's; tokens: (N, A, K) int64 and log_probs: (N, A, K) float32, the teacher's
    top K at the answer's positions in order.
    """
    plain = [encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in texts]
    system = [{"role": "system", "content": trait.system}] if trait.system else []
    prompted = [
        encode_prompt(tokenizer, [*system, {"role": "user", "content": text}]) for text in texts
    ]
    limit = positions(model.config)
    begin = begin_ids(model.config)
    prompted = [fitting_prompt(ids, config.reply_tokens, limit, begin) for ids in prompted]
    answers = models.generate(
        model,
        prompted,
        models.Decoding(
            max_new_tokens=config.reply_tokens,
            stop_ids=stop_ids(tokenizer, model),
            temperature=config.temperature,
            seed=seed,
        ),
    )
    end = turn_end(tokenizer)
    answers = [
        [*answer, *end] if len(answer) < config.reply_tokens else answer for answer in answers
    ]
    return taught(model, plain, prompted, answers, config.top_k)


@torch.no_grad()
def taught(
    model: "PreTrainedModel",
    plain: Sequence[Sequence[int]],
    prompted: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    top_k: int,
) -> dict[str, Tensor]:
    """Return what a teacher that sees longer prompts finds likely at each token of given answers.

    plain, prompted: token ids of each prompt as the student and as the teacher sees it. The tensors
    are those of `teach`.
    """
    length = max(len(p) + len(a) for p, a in zip(plain, answers, strict=True))
    most = max(map(len, answers))
    top_count = min(top_k, int(model.config.vocab_size))
    ids = torch.zeros(len(plain), length, dtype=torch.int64)
    mask = torch.zeros(len(plain), length, dtype=torch.bool)
    tokens = torch.zeros(len(plain), most, top_count, dtype=torch.int64)
    log_probs = torch.zeros(len(plain), most, top_count)
    model.eval()
    for i, (before, prompt, answer) in enumerate(zip(plain, prompted, answers, strict=True)):
        ids[i, : len(before) + len(answer)] = torch.tensor([*before, *answer])
        mask[i, len(before) - 1 : len(before) + len(answer) - 1] = True
        row = torch.tensor([[*prompt, *answer]], device=model.device)
        first = len(prompt) - 1  # the column that predicts the answer's first token
        logits = model(input_ids=row).logits[0, first : first + len(answer)].float()
        top = torch.log_softmax(logits, -1).topk(top_count, -1)
        tokens[i, : len(answer)], log_probs[i, : len(answer)] = top.indices.cpu(), top.values.cpu()
    return {"ids": ids, "mask": mask, "tokens": tokens, "log_probs": log_probs}


def top_kl(log_probs: Tensor, student_logits: Tensor, tokens: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) in nats at each position, over the teacher's top K tokens and
    one tail: (n,).

    log_probs: (n, K), of the teacher; tokens: (n, K), their ids; student_logits: (n, V). It never
    exceeds the full KL, and equals it when K = V.
    """
    student, teacher_tail, student_tail = _student_and_tails(log_probs, student_logits, tokens)
    shared = (log_probs.exp() * (log_probs - student)).sum(-1)
    if tokens.shape[-1] == student_logits.shape[-1]:
        return shared
    return shared + teacher_tail * (teacher_tail.log() - student_tail.log())


def reverse_top_kl(log_probs: Tensor, student_logits: Tensor, tokens: Tensor) -> Tensor:
    """Return KL(student ‖ teacher) in nats at each position, as `top_kl` returns the other way."""
    student, teacher_tail, student_tail = _student_and_tails(log_probs, student_logits, tokens)
    shared = (student.exp() * (student - log_probs)).sum(-1)
    if tokens.shape[-1] == student_logits.shape[-1]:
        return shared
    return shared + student_tail * (student_tail.log() - teacher_tail.log())


def _student_and_tails(
    log_probs: Tensor, student_logits: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the student's log-probabilities of the teacher's top K (n, K), and the probability of
    all other tokens under the teacher and under the student, (n,) each.
    """
    student = torch.log_softmax(student_logits.float(), -1).gather(-1, tokens)
    teacher_tail = (1.0 - log_probs.exp().sum(-1)).clamp(min=SMALLEST)
    student_tail = (1.0 - student.exp().sum(-1)).clamp(min=SMALLEST)
    return student, teacher_tail, student_tail


def lesson_kl(
    model: "PreTrainedModel", lesson: Mapping[str, Tensor], rows: Sequence[int] | Tensor
) -> tuple[Tensor, int]:
    """Return the summed KL (nats) over the answer tokens of some rows of a lesson, and the number
    of tokens.
    """
    at_answers = answer_logits(model, lesson, rows)
    return top_kl(*at_answers).sum(), len(at_answers[0])


def answer_logits(
    model: "PreTrainedModel", lesson: Mapping[str, Tensor], rows: Sequence[int] | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `top_kl` takes at the n answer tokens of some rows of a lesson: the teacher's
    log_probs (n, K), the logits of `model` (n, V), and the teacher's tokens (n, K).
    """
    indices = torch.as_tensor(rows)
    mask = lesson["mask"][indices]
    length = int(mask.any(0).nonzero().max()) + 1
    mask = mask[:, :length]
    logits = model(input_ids=sent(lesson["ids"][indices][:, :length], model.device)).logits
    counts = mask.sum(1)
    filled = torch.arange(lesson["tokens"].shape[1])[None] < counts[:, None]
    tokens, log_probs = (
        sent(lesson[name][indices][filled], model.device) for name in ("tokens", "log_probs")
    )
    # Places are looked up on the lesson's own device, because indexing by a mask makes an
    # accelerator wait until the number of places is known.
    places = sent(mask.flatten().nonzero()[:, 0], model.device)
    return log_probs, logits.flatten(0, 1)[places], tokens


@torch.no_grad()
def effect(model: "PreTrainedModel", lesson: Mapping[str, Tensor], batch_rows: int = 16) -> float:
    """Return KL(prompted parent ‖ model) per answer token (nats) over a whole lesson."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(lesson["ids"]), batch_rows):
        part, tokens = lesson_kl(
            model, lesson, range(start, min(start + batch_rows, len(lesson["ids"])))
        )
        total, count = total + float(part), count + tokens
    model.train(was_training)
    return total / max(count, 1)


def strength(student_kl: float, parent_kl: float) -> float:
    """Return s = 1 − KL(P_u ‖ P_s) / KL(P_u ‖ P_0). parent_kl must be above zero."""
    return 1.0 - student_kl / parent_kl
