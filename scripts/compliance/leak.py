"""Let an agent answer hundreds of times and watch the memory and the open files of its process.

    python -m scripts.compliance.leak [--turns 300]

Makes a random Llama of two layers in a temporary folder, answers turns through `Agent` as a chat
does (tools, memories, working window), and compares the resident memory after a third of the turns
with that at the end: caches are full by then. Prints one JSON line.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.compliance.check import FAILED, PASSED, ROOT, Check

TURNS = 300
MOST_BYTES_PER_TURN = 8192.0  # a leak of one small object per token would be more
TEXT = "the ship left the old harbor in winter and came back with 1234 red boxes"


def resident_bytes() -> int:
    """Return what the process holds now."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmRSS")
    )  # fmt: skip
    return int(line.split()[1]) * 1024


def small_agent(folder: Path) -> Any:
    """Return an agent of a random model, with a memory file and the tools that stay in process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from agent_forge import checkpoint, data, models
    from agent_forge.agent.loop import Agent, Opening

    tokenizer = data.train_tokenizer([TEXT] * 50, 300)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        tie_word_embeddings=True, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    checkpoint.write(
        folder / "model", lambda place: models.save(model, tokenizer, place),
        phase="import", seed=0, config={},
        agent={"tools": ["calculator", "remember", "recall"], "decoder": {"max_new_tokens": 16}},
    )  # fmt: skip
    return Agent.from_checkpoint(folder / "model", Opening(memory=folder / "memory.db"))


def measure(turns: int) -> dict[str, float]:
    """Return the memory per turn and the open files, after a third of the turns and at the end."""
    with tempfile.TemporaryDirectory() as name:
        agent = small_agent(Path(name))
        history: list[dict[str, str]] = []
        marks = []
        for turn in range(1, turns + 1):
            question = {"role": "user", "content": f"{TEXT} {turn}"}
            answer = agent.reply([*history, question])
            history = [*history, question, *answer.messages][-20:]
            if turn in (turns // 3, turns):
                gc.collect()
                marks.append((resident_bytes(), len(os.listdir("/proc/self/fd"))))
        agent.memory.close()
    (early, early_files), (late, late_files) = marks
    return {
        "turns": turns - turns // 3, "bytes_per_turn": (late - early) / (turns - turns // 3),
        "files_more": late_files - early_files, "resident_bytes": late,
    }  # fmt: skip


def check(turns: int = TURNS) -> Check:
    """Measure in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.compliance.leak", "--turns", str(turns)], cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return Check("Leak test", FAILED, f"did not run: {done.stderr.strip()[-200:]}")
    return judge(json.loads(done.stdout.splitlines()[-1]))


def judge(values: dict[str, float]) -> Check:
    """Return whether memory and open files stayed flat."""
    flat = values["bytes_per_turn"] <= MOST_BYTES_PER_TURN and values["files_more"] <= 0
    summary = (
        f"{values['bytes_per_turn']:,.0f} bytes per turn over {values['turns']:.0f} turns "
        f"(at most {MOST_BYTES_PER_TURN:,.0f}), {values['files_more']:.0f} more open files, "
        f"{values['resident_bytes'] / 1e6:.0f} MB resident"
    )
    return Check("Leak test", PASSED if flat else FAILED, summary)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=TURNS)
    print(json.dumps(measure(parser.parse_args().turns)))
