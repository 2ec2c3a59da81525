"""Print one table: tiny random models of each family against each command, and whether the logits
agree.

Usage: python scripts/family_table.py [FAMILY ...] [--write docs/families.md]. A cell is the
relative difference of logits between what the command made and what it should have made ("exact"
where they are equal), or the line that says why not. Everything runs in this process and in a
temporary folder; FORGE_LLAMA_PYTHON may name a Python that has llama.cpp.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agent_forge import evaluate, models, runtime
from agent_forge.checkpoint import Checkpoint, Workspace
from agent_forge.config.compose import compose
from agent_forge.core.errors import ConfigError, ForgeError
from agent_forge.core.events import EventLog
from agent_forge.export import check, hf_folder
from agent_forge.export.run import export
from agent_forge.models.importing import import_model
from agent_forge.phases import PhaseRun
from agent_forge.runtime.causal import open_model
from tests import tiny_families

LENGTH = 48  # tokens of a window
PROMPT = [5, 6, 7, 8]
NEW_TOKENS = 8


@dataclass
class Bench:
    """One family in a folder: its Hugging Face directory, its model, and the checkpoints that
    commands made.
    """

    kind: str
    root: Path
    model: Any
    words: Any
    made: dict[str, Checkpoint] = field(default_factory=dict)

    def data(self) -> list[str]:
        """Return the settings of a small folder of text."""
        folder = self.root / "text"
        if not folder.is_dir():
            folder.mkdir()
            for i in range(60):
                words = tiny_families.TEXT[i * 7 : i * 7 + 400]
                (folder / f"{i}.txt").write_text(f"{i} {words}", encoding="utf-8")
        return [
            f"data.text=[{folder}]", "data.max_text_bytes=0", f"data.cache={self.root / 'cache'}", "data.rows=[]",
            "data.near_duplicates=0",
        ]  # fmt: skip


def open_bench(kind: str, root: Path) -> Bench:
    """Write the family's directory and return it."""
    root.mkdir(parents=True)
    words = tiny_families.tokenizer(bos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tiny_families.save(
        root / "hf", tiny_families.build(kind, **tiny_families.FAMILIES[kind]), words
    )
    return Bench(kind, root, models.load(root / "hf"), words)


def imported(bench: Bench) -> str:
    """Import the directory."""
    bench.made["import"] = import_model(bench.root / "hf", bench.root / "import")
    return said(tiny_families.relative_error(models.load(bench.made["import"]), bench.model))


def evaluated(bench: Bench) -> str:
    """Score the model on text, and compare with transformers' own loss on the same tokens."""
    ids = torch.tensor([bench.words.encode(tiny_families.TEXT[:300])[:LENGTH]])
    with torch.no_grad():
        expected = float(bench.model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
    row = (ids[0].tolist(), [False, *[True] * (ids.shape[1] - 1)])
    actual = float(evaluate.row_nll(bench.model, [row])[0, 0])
    return said(abs(actual - expected) / expected)


def merged(bench: Bench) -> str:
    """Merge two models by their mean, and compare with the mean of the weights."""
    from agent_forge.merge.job import prepare, run

    other = tiny_families.build(bench.kind, seed=1, **tiny_families.FAMILIES[bench.kind])
    tiny_families.save(bench.root / "hf2", other, bench.words)
    recipe = bench.root / "recipe.yml"
    names = "".join(
        f"- {{model: {bench.root / name}, parameters: {{weight: 1}}}}\n" for name in ("hf", "hf2")
    )
    recipe.write_text(f"merge_method: linear\nmodels:\n{names}dtype: float32\n", encoding="utf-8")
    actual = models.load(run(prepare(recipe), bench.root / "merge"))
    expected = models.load(bench.root / "hf")
    with torch.no_grad():
        for mine, theirs in zip(expected.parameters(), other.parameters(), strict=True):
            mine.add_(theirs).div_(2)
    return said(tiny_families.relative_error(actual, expected))


def phase(bench: Bench, name: str, settings: list[str]) -> tuple[Checkpoint, str]:
    """Run a phase in this process; return its checkpoint and what it says of its reach."""
    import importlib

    from agent_forge import checkpoint

    room = importlib.import_module(f"agent_forge.phases.{name}")
    places = [
        f"sources=[{bench.root / 'import'}]",
        f"out={bench.root / name}",
        "runtime.device=cpu",
    ]
    config = compose(name, room.Config, [*places, *bench.data(), *settings])
    (config.train if name == "bitnet" else config.calibration).mix = {"text": 1.0}
    fits = importlib.import_module(f"agent_forge.phases.{name}.fits")
    line = fits.check(config, models.load(bench.made["import"]).config.to_dict())[0]
    out = Workspace(
        bench.root / name,
        phase=name,
        seed=config.seed,
        config=config,
        parents=[bench.made["import"]],
    )
    run = importlib.import_module(f"agent_forge.phases.{name}.run").run
    report = run(PhaseRun(config, [bench.made["import"]], out, EventLog(None, name)))
    return checkpoint.open(report.outputs[0]), line.partition(" reach ")[2].partition(" of ")[0]


def ternary(bench: Bench) -> str:
    """Make the model ternary with 8-bit embeddings, train two steps; the packed file gives the
    logits of the latents.
    """
    from agent_forge.models.ternary import save_packed

    bench.made["bitnet"], reach = phase(bench, "bitnet", [
        "linear.group_size=32", "linear.embedding_bits=8", "train.steps=2", "train.rows=2", f"train.length_tokens={LENGTH}",
        "init.rows=4", "measure_items=2", "unseen_items=2", "domain_items=0",
    ])  # fmt: skip
    model = models.load(bench.made["bitnet"])
    save_packed(models.load(bench.made["bitnet"]), bench.words, bench.root / "ternary-packed")
    return f"{said(tiny_families.relative_error(models.load(bench.root / 'ternary-packed'), model))}, reaches {reach}"


def compressed(bench: Bench) -> str:
    """Compress the model; its codes give the logits of the weights that they stand for."""
    bench.made["compress"], reach = phase(bench, "compress", [
        "measure.unseen_items=2", "measure.domain_items=0", "calibration.windows=3", f"calibration.length_tokens={LENGTH}",
        "calibration.count_windows=0", "measure.windows=2", f"measure.length_tokens={LENGTH}", "codec.min_weights=64",
        "codec.candidates=[{codec: intk, bits: 8}, {codec: intk, bits: 4}]", "budget.bytes_ratio=0.3",
        "budget.quality_floor=0", "recover.steps=0", "recover.block_steps=0",
    ])  # fmt: skip
    model = models.load(bench.made["compress"])
    return f"{said(tiny_families.relative_error(hf_folder.dense(model), model))}, reaches {reach}"


def exported(bench: Bench) -> str:
    """Write GGUF in float16; llama.cpp, where there is one, and an import of the file give the
    model's logits.
    """
    python = check.usable_python()
    done = export(
        bench.root / "import",
        bench.root / "m.gguf",
        "gguf",
        "F16",
        check=bool(python),
        llama_python=python,
    )
    back = models.load(import_model(bench.root / "m.gguf", bench.root / "back"))
    there = f"llama.cpp {done.check['checkpoint_error']:.0e}, " if done.check else ""
    return f"{there}back {said(tiny_families.relative_error(back, bench.model))}"


def chatted(bench: Bench) -> str:
    """Generate as the chat does, with a cache, and compare with the likeliest tokens without
    one.
    """
    model = open_model(bench.root / "import")
    tokens = models.generate(model, [PROMPT], models.Decoding(max_new_tokens=NEW_TOKENS))[0]
    ids = [*PROMPT]
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            ids.append(int(bench.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return (
        "same tokens"
        if ids[len(PROMPT) :] == tokens
        else f"other tokens: {tokens} for {ids[len(PROMPT) :]}"
    )


def packed(bench: Bench) -> str:
    """Run the compressed checkpoint from its codes, without torch."""
    if "compress" not in bench.made:
        raise ConfigError("nothing was compressed")
    actual = torch.from_numpy(runtime.load(bench.made["compress"]).logits(PROMPT))
    with torch.no_grad():
        expected = models.load(bench.made["compress"])(input_ids=torch.tensor([PROMPT])).logits[0]
    return said(float((actual - expected).norm() / expected.norm()))


COMMANDS: dict[str, Callable[[Bench], str]] = {
    "import": imported, "eval": evaluated, "merge": merged, "bitnet": ternary, "compress": compressed,
    "export (GGUF)": exported, "chat": chatted, "run packed": packed,
}  # fmt: skip


def said(error: float) -> str:
    """Return a relative difference in words."""
    return "exact" if error == 0 else f"{error:.0e}"


def row(kind: str, root: Path) -> dict[str, str]:
    """Return the cells of a family: command -> what came of it. A command that refuses says so; a
    defect raises.
    """
    bench, cells = open_bench(kind, root / kind), {}
    for name, command in COMMANDS.items():
        try:
            cells[name] = command(bench)
        except ForgeError as error:
            cells[name] = f"refused: {error}"
    return cells


def table(rows: dict[str, dict[str, str]]) -> str:
    """Return Markdown: the table, refusals as footnotes."""
    notes: dict[str, int] = {}
    lines = [f"| family | {' | '.join(COMMANDS)} |", f"|---|{'---|' * len(COMMANDS)}"]
    for kind, cells in rows.items():
        shown = []
        for name in COMMANDS:
            text = cells[name]
            if text.startswith("refused: "):
                text = (
                    f"refused ({notes.setdefault(text.removeprefix('refused: '), len(notes) + 1)})"
                )
            shown.append(text)
        lines.append(f"| {kind} | {' | '.join(shown)} |")
    return "\n".join([*lines, "", *(f"{number}. {text}" for text, number in notes.items())])


HEAD = """# Families

What works on which model family, on tiny random models. `python scripts/family_table.py --write docs/families.md` prints it:
each cell is the relative difference of logits between what a command made and what it should have made. `reaches` is the
share of the weights that a phase quantises: in tiny models embeddings and experts weigh differently than in large ones.
GGUF files hold float16 here, so their differences are float16's; llama.cpp computes in other orders and formats besides.

"""


def main() -> int:
    """Print the table, and write it to the file of --write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", default=list(tiny_families.FAMILIES))
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in arguments.families:
            rows[kind] = row(kind, Path(folder))
            print(kind, rows[kind], file=sys.stderr, flush=True)
    text = table(rows)
    print(text)
    if arguments.write:
        arguments.write.write_text(f"{HEAD}{text}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
