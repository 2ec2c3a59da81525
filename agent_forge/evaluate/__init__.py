"""Score models on held-out items and judge a child against its parent.

A task is one file in `tasks/`: items of a split, and a score of (numerator, denominator) per item.
Every score carries n and a bootstrap interval; a gate compares parent and child on the same items,
in pairs. Importing this does not need torch.
"""

from agent_forge.evaluate.domain import (
    DOMAINS,
    TABLE,
    DomainScores,
    agreement,
    domain_scores,
    domains_remembered,
    kept_by_domain,
    kept_words,
    perplexity,
)
from agent_forge.evaluate.elsewhere import TITLE, kept_elsewhere, kept_text, unseen_scores
from agent_forge.evaluate.engine import (
    canonical_form,
    choice_log_likelihood,
    exact_match,
    generate_replies,
    item_pairs,
    load_task,
    measure_speed,
    measure_speeds,
    row_nll,
    score,
    score_items,
    scores_of,
    task_items,
)
from agent_forge.evaluate.judge import (
    Cost,
    Retention,
    Verdict,
    judge,
    retention,
    retention_by_kind,
)
from agent_forge.evaluate.memory import footprint, peak_memory_bytes, reset_peak_memory
from agent_forge.evaluate.scores import (
    Scores,
    bootstrap_interval,
    cluster_numbers,
    cluster_sums,
    draw_from,
    holm,
    paired_gain,
    split_hash,
)
from agent_forge.evaluate.task import EvalContext, Task

__all__ = [
    "DOMAINS",
    "TABLE",
    "TITLE",
    "Cost",
    "DomainScores",
    "EvalContext",
    "Retention",
    "Scores",
    "Task",
    "Verdict",
    "agreement",
    "bootstrap_interval",
    "canonical_form",
    "choice_log_likelihood",
    "cluster_numbers",
    "cluster_sums",
    "domain_scores",
    "domains_remembered",
    "draw_from",
    "exact_match",
    "footprint",
    "generate_replies",
    "holm",
    "item_pairs",
    "judge",
    "kept_by_domain",
    "kept_elsewhere",
    "kept_text",
    "kept_words",
    "load_task",
    "measure_speed",
    "measure_speeds",
    "paired_gain",
    "peak_memory_bytes",
    "perplexity",
    "reset_peak_memory",
    "retention",
    "retention_by_kind",
    "row_nll",
    "score",
    "score_items",
    "scores_of",
    "split_hash",
    "task_items",
    "unseen_scores",
]
