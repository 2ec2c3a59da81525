"""Score a checkpoint by the lm-evaluation-harness: its tasks, task files of the user, and ours.

The harness (package lm-eval, extra `eval`) gets the loaded model, so whatever opens here is scored
there: ternary, compressed and looped ones too. A folder of task files (`--harness-path`) needs no
network when its data are files. `forge_hellaswag` and `forge_truthfulqa` are our own questions as
the harness's multiple choice; its `acc_bytes` on them is our accuracy. Source: Gao et al., "The
Language Model Evaluation Harness", zenodo.10256836.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_forge.core.errors import ConfigError, DataError
from agent_forge.data import text_start, window_prefix
from agent_forge.evaluate.engine import evaluating, task_items
from agent_forge.evaluate.task import EvalContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

MISSING = "the harness is not installed; pip install 'agent-forge[eval]'"
OURS = {"forge_hellaswag": "hellaswag", "forge_truthfulqa": "truthfulqa"}
CHOICE_FILE = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: expected
target_delimiter: ""
metric_list:
  - {{metric: acc_bytes, aggregation: mean, higher_is_better: true}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1}}
"""


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    names: Sequence[str],
    split: str,
    n: int,
    context: EvalContext,
    folder: Path | None = None,
) -> list[dict[str, Any]]:
    """Return {"task", "metric", "value", "stderr", "n"} for every metric of every task.

    names: tasks of the harness, of the files in `folder`, or of OURS. n: the most documents per
    task. Raises ConfigError without the package or for an unknown task, DataError for a task whose
    data cannot be read.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ConfigError(MISSING) from None
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--harness-path {folder}: no such folder of task files")
    with tempfile.TemporaryDirectory(prefix="forge-harness-") as own, evaluating(model):
        for name in names:
            if name in OURS:
                write_choice_task(Path(own), name, tokenizer, split, n, context)
        paths = [own, *([str(folder)] if folder else [])]
        os.environ.setdefault("HF_DATASETS_CACHE", str(Path(own) / "cache"))
        manager = TaskManager(include_path=paths)
        unknown = [name for name in names if not manager.match_tasks([name])]
        if unknown:
            raise ConfigError(
                f"--harness: no task {', '.join(unknown)} in the harness"
                f"{f' or in {folder}' if folder else ''}; ours are {', '.join(OURS)}"
            )
        # Prompts of its own tasks get BOS where the tokenizer puts it; ours bring what begins a text,
        # and the harness adds nothing to a prompt that begins so.
        opened = HFLM(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=16,
            add_bos_token=bool(window_prefix(tokenizer)), prefix_token_id=text_start(tokenizer),
        )  # fmt: skip
        try:
            results = simple_evaluate(
                opened, tasks=list(names), limit=n, task_manager=manager, log_samples=False,
                bootstrap_iters=0,
            )  # fmt: skip
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(
                f"--harness {','.join(names)}: {reason}; a task whose data are not on this machine "
                "needs a network, or task files of your own (--harness-path)"
            ) from None
    return [
        row for name, metrics in results["results"].items() for row in _rows(name, metrics, results)
    ]


def _rows(
    name: str, metrics: Mapping[str, Any], results: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return a row per metric of a task; the harness writes them as "metric,filter"."""
    counts = results.get("n-samples", {}).get(name, {})
    rows = []
    for key, value in metrics.items():
        metric, _, filtered = key.partition(",")
        if filtered and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            error = metrics.get(f"{metric}_stderr,{filtered}")
            rows.append({
                "task": name, "metric": metric if filtered == "none" else key, "value": float(value),
                "stderr": float(error) if isinstance(error, (int, float)) else None,
                "n": int(counts.get("effective", 0)),
            })  # fmt: skip
    return rows


def write_choice_task(
    folder: Path,
    name: str,
    tokenizer: "PreTrainedTokenizerFast",
    split: str,
    n: int,
    context: EvalContext,
) -> None:
    """Write one of our tasks as a task file of the harness, with its questions beside it.

    Choices keep the space before them and prompts the token that starts a text, as we score them.
    """
    start = str(tokenizer.decode([text_start(tokenizer)]))
    lines = [
        json.dumps({
            "prompt": start + item["prompt"],
            "choices": [f" {choice}" for choice in item["choices"]], "expected": item["expected"],
        })
        for item in task_items(OURS[name], split, n, context)
    ]  # fmt: skip
    file = folder / f"{name}.jsonl"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / f"{name}.yaml").write_text(
        CHOICE_FILE.format(name=name, file=json.dumps(str(file))), encoding="utf-8"
    )
