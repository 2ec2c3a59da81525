"""Decode speed, prefill speed, memory and size of packed inference against transformers and
llama.cpp, in one run.

    python -m scripts.bench run decode outputs/smollm2 --work outputs/bench_decode [--threads 2]
        [--llama-python PYTHON] [--checkpoints outputs/bench/ours-62 ...] [--device cuda]

Rates are made by plain rounding (speed needs no quality) and kept in --work: ternary with an 8-bit
or 4-bit embedding, int4, int8, VPTQ, bfloat16. --checkpoints adds compressed ones, such as the
bench compress's water-filled files. Each case runs in processes of its own: load, warm up, read a
prompt, decode. The cases take turns --repeats times, so that what the machine does besides falls on
all of them; medians over the turns. llama.cpp runs through a Python that has llama-cpp-python
(--llama-python), from GGUF files written by `forge export`'s code. Prints one table, then the bars,
each met or MISSED. With --device cuda the compressed layers run there, in torch or Triton, beside
transformers.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

from scripts.bench.result import ROOT, Figure, Result, bars_met, here

CLAIM = "Packed codes decode faster than transformers, and than llama.cpp at the same bits (SmolLM2-135M)"
BAR = "ternary 10 x transformers, 1.0 x Q4_0, 200 tokens/s; others .8 x; file + 150 MB; 50 ms"

PROMPT = (
    "Fellow citizens of the Senate and of the House of Representatives. Among the vicissitudes incident to life no "
    "event could have filled me with greater anxieties than that of which the notification was transmitted by your order."
)
EMBEDDING = "model.embed_tokens"
CHECKPOINT = (
    "ternary + int8 embedding"  # the rate that is also written as a whole compressed checkpoint
)
RATES = {
    "ternary + int8 embedding": ({"ternary": {"group": 128}}, {"intk": {"bits": 8, "group": 0}}),
    "ternary + int4 embedding": ({"ternary": {"group": 128}}, {"intk": {"bits": 4, "group": 64}}),
    "int4 + int8 embedding": (
        {"intk": {"bits": 4, "group": 64}},
        {"intk": {"bits": 8, "group": 0}},
    ),
    "int8 + int8 embedding": (
        {"intk": {"bits": 8, "group": 64}},
        {"intk": {"bits": 8, "group": 0}},
    ),
    "vptq v4 + int8 embedding": (
        {"vptq": {"vector": 4, "iterations": 1}},
        {"intk": {"bits": 8, "group": 0}},
    ),
    "bfloat16": ({"raw": {"dtype": "bfloat16"}}, {"raw": {"dtype": "bfloat16"}}),
}
LLAMA_TYPES = ("Q4_0", "Q4_K", "Q8_0", "F16")
# The llama.cpp type with the same bits per weight, or the nearest faster type.
SAME_BITS = {
    "ternary + int8 embedding": "Q4_0",
    "ternary + int4 embedding": "Q4_0",
    "int4 + int8 embedding": "Q4_0",
    "int8 + int8 embedding": "Q8_0",
    "vptq v4 + int8 embedding": "Q4_0",
    "bfloat16": "F16",
}
BASE = "transformers float32"
# Bars for ternary codes: times as fast as transformers, times as fast as llama.cpp's Q4_0, tokens
# per second.
TERNARY_TIMES, TERNARY_PEER, TERNARY_TOKENS = 10.0, 1.0, 200.0
# Bars for the others: times as fast as llama.cpp at the same bits, ms per token, bytes of memory
# beyond the file.
OTHER_PEER, MOST_MS, MOST_EXTRA_BYTES = 0.8, 50.0, 150e6


def rss_bytes() -> int:
    """Return the resident memory of this process, mapped files included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


def make_checkpoint(source: Path, name: str, out: Path) -> None:
    """Write the compressed checkpoint of one rate by plain rounding.

    Entropy-coded, as `forge compress` writes it.
    """
    from agent_forge import checkpoint, codecs, models
    from agent_forge.models import compressed

    model, tokenizer = models.load(source), models.load_tokenizer(source)
    coded = {}
    for tensor, weight, codec, settings in tensors_of_rate(model, name):
        coded[tensor] = codecs.encode(codec, weight, settings)
    compressed.compress(model, coded)
    checkpoint.write(
        out,
        lambda d: models.save(model, tokenizer, d),
        phase="compress",
        seed=0,
        config={},
        name=name,
    )


def make_packed(source: Path, name: str, out: Path) -> None:
    """Write the packed file of one rate.

    The codes of `make_checkpoint` without the minutes of entropy coding.
    """
    import torch

    from agent_forge import codecs, models
    from agent_forge.codecs.payload import Payload
    from agent_forge.kernels import matrix
    from agent_forge.runtime import loading
    from agent_forge.runtime.model import PackedModel
    from agent_forge.runtime.shape import shape_of

    model = models.load(source)
    bits = 8 if "ternary" in RATES[name][0] else 0
    places = {
        module: f"{i}.{part}" for i, part, module in linear_modules(model.config.num_hidden_layers)
    }
    matrices, norms = {}, {}
    for tensor, weight, codec, settings in tensors_of_rate(model, name):
        parts, meta = codecs.load(codec).encode(
            weight.float(), codecs.settings(codec, settings), None
        )
        packed = matrix.from_payload(
            Payload(codec, tuple(weight.shape), meta, parts, b""),
            0 if tensor == EMBEDDING else bits,
        )
        matrices[places.get(tensor, "embedding")] = packed
    matrices["head"] = matrices["embedding"]
    for parameter, value in model.named_parameters():
        if value.ndim == 1:
            layer = parameter.split(".")[2]
            kind = "norm_before" if "input" in parameter else "norm_after"
            norms["final_norm" if "layers" not in parameter else f"{layer}.{kind}"] = (
                value.detach().to(torch.float32).numpy()
            )
    loading.save(PackedModel(shape_of(model.config.to_dict()), matrices, norms), out)


def linear_modules(layers: int) -> list[tuple[int, str, str]]:
    """Return (layer, part, module name) of every linear."""
    from agent_forge.runtime.loading import MODULES

    return [
        (i, part, f"model.layers.{i}.{module}")
        for i in range(layers)
        for part, module in MODULES.items()
    ]


def tensors_of_rate(model, name: str):  # type: ignore[no-untyped-def]
    """Yield (tensor, weight, codec, settings) of a rate."""
    from agent_forge.models import compressed
    from agent_forge.models.ternary import TernarySettings, ternarise

    linears, embedding = RATES[name]
    if "ternary" in linears:
        ternarise(
            model, TernarySettings(group_size=128, activation_bits=8, packing="five_trits", skip=[])
        )
    for tensor, weight in compressed.coded_tensors(model).items():
        ((codec, settings),) = (embedding if tensor == EMBEDDING else linears).items()
        yield tensor, weight, codec, settings


def run_packed(path: Path, prompt: list[int], new_tokens: int, threads: int) -> dict[str, float]:
    """Measure the packed engine."""
    from agent_forge import runtime

    start = time.perf_counter()
    model = runtime.load(path, threads=threads)
    loaded = time.perf_counter() - start

    def once() -> list[Moment]:
        moments = [now()]
        model.generate(prompt, max_new_tokens=new_tokens, on_token=lambda _: moments.append(now()))
        return moments

    return measured(once, len(prompt)) | {"load_s": loaded}


def run_torch(
    path: Path, prompt: list[int], new_tokens: int, threads: int, device: str, dtype: str
) -> dict[str, float]:
    """Measure a checkpoint in torch, by transformers' cache and greedy choice."""
    import torch

    from agent_forge import models

    torch.set_num_threads(threads)
    start = time.perf_counter()
    model = models.load(path, device=device, dtype=getattr(torch, dtype))
    loaded = time.perf_counter() - start

    def done() -> Moment:
        if device != "cpu":
            torch.accelerator.synchronize()
        return now()

    @torch.no_grad()
    def once() -> list[Moment]:
        moments = [done()]
        ids = torch.tensor([prompt], device=device)
        output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        moments.append(done())
        for _ in range(new_tokens - 1):
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            output = model(
                input_ids=token,
                past_key_values=output.past_key_values,
                use_cache=True,
                logits_to_keep=1,
            )
            moments.append(done())
        return moments

    speeds = measured(once, len(prompt)) | {"load_s": loaded}
    return speeds | ({"rss_bytes": torch.cuda.max_memory_allocated()} if device == "cuda" else {})


def run_llama(path: Path, prompt: list[int], new_tokens: int, threads: int) -> dict[str, float]:
    """Measure llama.cpp; imports nothing of this project, so it runs under another Python."""
    import llama_cpp
    import numpy as np

    llm = llama_cpp.Llama(
        model_path=str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def greedy() -> int:
        logits = llama_cpp.llama_get_logits_ith(llm._ctx.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (llm.n_vocab(),)).argmax())

    def once() -> list[Moment]:
        llm.reset()
        moments = [now()]
        llm.eval(prompt)
        moments.append(now())
        for _ in range(new_tokens - 1):
            llm.eval([greedy()])
            moments.append(now())
        return moments

    return measured(once, len(prompt))


Moment = tuple[float, float]


def now() -> Moment:
    """Return the clock and the processor time of all threads, in seconds."""
    return time.perf_counter(), time.process_time()


def measured(once, prompt_tokens: int) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """Return the speeds of one run after one to warm up; best: of the fastest single token."""
    once()
    run = once()
    seconds = [b[0] - a[0] for a, b in pairwise(run[1:])]
    return {
        "tokens_per_s": len(seconds) / sum(seconds),
        "best_tokens_per_s": 1 / min(seconds),
        "prompt_tokens_per_s": prompt_tokens / (run[1][0] - run[0][0]),
        "cpu_ms": 1000 * (run[-1][1] - run[1][1]) / len(seconds),
        "rss_bytes": rss_bytes(),
    }


def run_case(options: argparse.Namespace) -> dict[str, float]:
    """Run the case that a process was started for."""
    prompt = [int(token) for token in options.prompt_ids.split(",")]
    common = (options.model, prompt, options.tokens, options.threads)
    if options.case == "packed":
        return run_packed(*common)
    if options.case == "llama":
        return run_llama(*common)
    return run_torch(*common, options.device, options.dtype)


def in_process(case: "Case", options: argparse.Namespace, prompt: list[int]) -> dict[str, float]:
    """Run one case in a process of its own."""
    command = [case.python, "-m", "scripts.bench.decode", str(case.path)]
    command += ["--case", case.kind, "--dtype", case.dtype]
    command += ["--device", options.device, "--prompt-ids", ",".join(map(str, prompt))]
    command += ["--tokens", str(options.tokens), "--threads", str(options.threads)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{case.kind} {case.path} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def size_of(path: Path) -> int:
    """Return the bytes of the weights."""
    return (
        path.stat().st_size
        if path.is_file()
        else sum(f.stat().st_size for f in path.glob("*.safetensors"))
    )


@dataclass(frozen=True)
class Case:
    """kind: packed, torch or llama. peer: the llama.cpp type that it is held against."""

    kind: str
    path: Path
    python: str = sys.executable
    dtype: str = "float32"
    peer: str = ""


def prepare(options: argparse.Namespace) -> dict[str, Case]:
    """Make what the cases asked for lack in the work folder; return them by label."""
    cases: dict[str, Case] = {}

    def add(
        label: str,
        case: Case,
        make: Callable[[Path], object] | None = None,
        marker: Path | None = None,
    ) -> None:
        if options.only and not any(part in label for part in options.only):
            return
        if make is not None and not (marker or case.path).exists():
            make(case.path)
        cases[label] = case

    on_cpu = options.device == "cpu"
    add(BASE, Case("torch", options.model))
    if not on_cpu:
        add("transformers bfloat16", Case("torch", options.model, dtype="bfloat16"))
    for name in RATES:
        folder = options.work / name.replace(" ", "_").replace("+_", "")
        if on_cpu:
            file = folder.with_suffix(".forge")
            add(
                name,
                Case("packed", file, peer=SAME_BITS[name]),
                partial(make_packed, options.model, name),
            )
        if not on_cpu or name == CHECKPOINT:
            case = Case("packed" if on_cpu else "torch", folder, peer=SAME_BITS[name])
            add(
                f"{name}, checkpoint",
                case,
                partial(make_checkpoint, options.model, name),
                folder / "config.json",
            )
    for path in options.checkpoints:
        label = (
            f"water-filled, {size_of(path) / 1e6:.0f} MB"
            if "waterfill" in codecs_of(path)
            else path.name
        )
        add(label, Case("packed" if on_cpu else "torch", path, peer="Q4_0"))
    for kind in LLAMA_TYPES if options.llama_python else ():
        file = options.work / f"model-{kind}.gguf"
        add(
            f"llama.cpp {kind}",
            Case("llama", file, options.llama_python),
            partial(make_gguf, options.model, kind),
        )
    return cases


def make_gguf(source: Path, kind: str, out: Path) -> None:
    """Write the GGUF file of one type."""
    from agent_forge.export import gguf_file

    gguf_file.write(source, out, kind)


def codecs_of(path: Path) -> set[str]:
    """Return the codecs of a compressed checkpoint's matrices."""
    from agent_forge.codecs import payload
    from agent_forge.runtime.tensors import Tensors

    tensors = Tensors(path)
    names = [name for name in tensors.names() if name.endswith(".payload")]
    return {payload.read(tensors.get(name).tobytes(), name).codec for name in names[:1]}


def arguments_of(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(prog="decode", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("model", type=Path)
    add("--work", type=Path, default=Path("outputs/bench_decode"))
    add("--checkpoints", type=Path, nargs="*", default=[], help="compressed checkpoints to add")
    add("--llama-python", default="")
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--threads", type=int, default=2)
    add("--prompt-tokens", type=int, default=128)
    add("--tokens", type=int, default=96)
    add("--repeats", type=int, default=5)
    add("--only", nargs="*", default=[], help="run only the cases whose label holds one of these")
    add("--prepare", action="store_true", help="make the files and stop")
    add("--case", choices=["packed", "torch", "llama"], help=argparse.SUPPRESS)
    add("--dtype", default="float32", help=argparse.SUPPRESS)
    add("--prompt-ids", default="", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def run(arguments: Sequence[str] = ()) -> Result:
    """Prepare, run every case, print the table and the bars."""
    options = arguments_of(arguments)
    cases = prepare(options)
    if options.prepare:
        raise SystemExit(0)
    prompt = prompt_of(options)
    turns: dict[str, list[dict[str, float]]] = {label: [] for label in cases}
    for _ in range(options.repeats):
        for label, case in cases.items():
            turns[label].append(in_process(case, options, prompt))
            print(
                f"measured {label}: {turns[label][-1]['tokens_per_s']:.1f} tokens/s",
                file=sys.stderr,
            )
    rows = {
        label: medians(runs) | {"size": size_of(cases[label].path)} for label, runs in turns.items()
    }
    print(table(rows, cases, options))
    bars = judged(rows, cases) if options.device == "cpu" else []
    print("\n| bar | figure | |\n|---|---|---|")
    for bar in bars:
        print(f"| {bar.claim}: {bar.bar} | {bar.figure:.2f} | {'met' if bar.met else 'MISSED'} |")
    speeds = [
        Figure(claim=label, figure=row["tokens_per_s"], unit="tokens/s", key=label)
        for label, row in rows.items()
    ]
    return Result(
        claim=CLAIM, topic="Decoding", bar=BAR, n=f"medians of {options.repeats} turns",
        **bars_met(bars), figures=[*speeds, *bars], tables=table(rows, cases, options),
        **here("decode", arguments),
    )  # fmt: skip


def prompt_of(options: argparse.Namespace) -> list[int]:
    """Return the ids of PROMPT, repeated to as many tokens as are asked for."""
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(options.model / "tokenizer.json")).encode(PROMPT).ids
    return (ids * (options.prompt_tokens // len(ids) + 1))[: options.prompt_tokens]


def medians(turns: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of every figure over the turns; of the fastest tokens the fastest."""
    from scripts.bench import stats

    best = max(turn["best_tokens_per_s"] for turn in turns)
    return stats.medians(turns) | {"best_tokens_per_s": best}


def table(
    rows: dict[str, dict[str, float]], cases: dict[str, Case], options: argparse.Namespace
) -> str:
    """Return Markdown.

    One row per case, ratios to transformers and to llama.cpp at the same bits.
    """
    memory = " (device memory here)" if options.device != "cpu" else ""
    lines = [
        f"{options.tokens} tokens after {options.prompt_tokens}, {options.threads} threads, medians of {options.repeats};",
        "fastest: of single tokens; cpu: processor time per token, all threads (waiting ones included);",
        f"RSS{memory}: beyond the file's bytes.\n",
        "| case | tok/s | fastest | cpu ms | x transformers | x llama.cpp | prompt tok/s | x llama.cpp | MB | RSS - MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    base = rows.get(BASE)
    for label, row in rows.items():
        peer = rows.get(f"llama.cpp {cases[label].peer}")
        lines.append(
            f"| {label} | {row['tokens_per_s']:.1f} | {row['best_tokens_per_s']:.0f} | {row['cpu_ms']:.2f} "
            f"| {ratio(row, base, 'tokens_per_s')} "
            f"| {ratio(row, peer, 'tokens_per_s')}{f' ({cases[label].peer})' if peer else ''} "
            f"| {row['prompt_tokens_per_s']:.0f} | {ratio(row, peer, 'prompt_tokens_per_s')} | {row['size'] / 1e6:.1f} "
            f"| {(row['rss_bytes'] - row['size']) / 1e6:.0f} |"
        )
    return "\n".join(lines)


def judged(rows: dict[str, dict[str, float]], cases: dict[str, Case]) -> list[Figure]:
    """Return each bar with the figure held against it; nothing for what was not run."""
    base = rows.get(BASE)
    bars = []
    for label, row in rows.items():
        if cases[label].kind != "packed":
            continue
        peer = rows.get(f"llama.cpp {cases[label].peer}")
        ternary = label.startswith("ternary")
        speed, extra = row["tokens_per_s"], (row["rss_bytes"] - row["size"]) / 1e6
        bars.append(at_most(label, 1000 / speed, MOST_MS, "ms per token"))
        bars.append(at_most(label, extra, MOST_EXTRA_BYTES / 1e6, "MB beyond the file"))
        if ternary:
            bars.append(at_least(label, speed, TERNARY_TOKENS, "tokens/s"))
        if ternary and base:
            times = speed / base["tokens_per_s"]
            bars.append(at_least(label, times, TERNARY_TIMES, "x transformers"))
        if peer:
            least = TERNARY_PEER if ternary else OTHER_PEER
            unit = f"x llama.cpp {cases[label].peer}"
            bars.append(at_least(label, speed / peer["tokens_per_s"], least, unit))
    return bars


def at_most(claim: str, figure: float, limit: float, unit: str) -> Figure:
    """Return a figure that meets its bar when it is not above the limit."""
    bar = f"at most {limit:g} {unit}"
    return Figure(claim=claim, figure=figure, unit=unit, bar=bar, met=figure <= limit)


def at_least(claim: str, figure: float, limit: float, unit: str) -> Figure:
    """Return a figure that meets its bar when it is not below the limit."""
    bar = f"at least {limit:g} {unit}"
    return Figure(claim=claim, figure=figure, unit=unit, bar=bar, met=figure >= limit)


def ratio(row: dict[str, float], other: dict[str, float] | None, figure: str) -> str:
    """Return how many times the other's figure this row has."""
    return f"{row[figure] / other[figure]:.2f}" if other else "-"


if __name__ == "__main__":
    print(json.dumps(run_case(arguments_of(sys.argv[1:]))))
