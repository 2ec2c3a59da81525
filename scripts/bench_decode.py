"""Decode speed, prefill speed, memory and size of packed inference against transformers and llama.cpp, in one run.

    python scripts/bench_decode.py outputs/smollm2 --work outputs/bench_decode [--llama-python PYTHON] [--threads 2]
        [--checkpoints outputs/bench/ours-62 ...] [--device cuda]

Rates are made by plain rounding (speed needs no quality) and kept in --work: ternary with an 8-bit or 4-bit embedding,
int4, int8, VPTQ, bfloat16. --checkpoints adds compressed ones, such as bench_compress.py's water-filled files. Each case
runs in processes of its own: load, warm up, read a prompt, decode. The cases take turns --repeats times, so that what the
machine does besides falls on all of them; medians over the turns. llama.cpp runs through a Python that has
llama-cpp-python (--llama-python), from GGUF files written by `forge export`'s code. Prints one table, then the bars, each
met or MISSED. With --device cuda the compressed layers run there, in torch or Triton, beside transformers.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

PROMPT = (
    "Fellow citizens of the Senate and of the House of Representatives. Among the vicissitudes incident to life no "
    "event could have filled me with greater anxieties than that of which the notification was transmitted by your order."
)
EMBEDDING = "model.embed_tokens"
CHECKPOINT = "ternary + int8 embedding"  # the rate that is also written as a whole compressed checkpoint
RATES = {
    "ternary + int8 embedding": ({"ternary": {"group": 128}}, {"intk": {"bits": 8, "group": 0}}),
    "ternary + int4 embedding": ({"ternary": {"group": 128}}, {"intk": {"bits": 4, "group": 64}}),
    "int4 + int8 embedding": ({"intk": {"bits": 4, "group": 64}}, {"intk": {"bits": 8, "group": 0}}),
    "int8 + int8 embedding": ({"intk": {"bits": 8, "group": 64}}, {"intk": {"bits": 8, "group": 0}}),
    "vptq v4 + int8 embedding": ({"vptq": {"vector": 4, "iterations": 1}}, {"intk": {"bits": 8, "group": 0}}),
    "bfloat16": ({"raw": {"dtype": "bfloat16"}}, {"raw": {"dtype": "bfloat16"}}),
}
LLAMA_TYPES = ("Q4_0", "Q4_K", "Q8_0", "F16")
# Which llama.cpp type has the same bits a weight, or the nearest that is faster.
SAME_BITS = {
    "ternary + int8 embedding": "Q4_0", "ternary + int4 embedding": "Q4_0", "int4 + int8 embedding": "Q4_0",
    "int8 + int8 embedding": "Q8_0", "vptq v4 + int8 embedding": "Q4_0", "bfloat16": "F16",
}  # fmt: skip
BASE = "transformers float32"
TERNARY_TIMES, TERNARY_PEER, TERNARY_TOKENS = 10.0, 1.0, 200.0  # x transformers, x llama.cpp Q4_0, tokens/s
OTHER_PEER, MOST_MS, MOST_EXTRA_BYTES = 0.8, 50.0, 150e6  # x llama.cpp at the same bits, ms a token, beyond the file


def rss_bytes() -> int:
    """Return the resident memory of this process, mapped files included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


def make_checkpoint(source: Path, name: str, out: Path) -> None:
    """Write the compressed checkpoint of one rate by plain rounding: entropy-coded, as `forge compress` writes it."""
    from agent_forge import checkpoint, codecs, models
    from agent_forge.models import compressed

    model, tokenizer = models.load(source), models.load_tokenizer(source)
    coded = {}
    for tensor, weight, codec, settings in tensors_of_rate(model, name):
        coded[tensor] = codecs.encode(codec, weight, settings)
    compressed.compress(model, coded)
    checkpoint.write(out, lambda d: models.save(model, tokenizer, d), phase="compress", seed=0, config={}, name=name)


def make_packed(source: Path, name: str, out: Path) -> None:
    """Write the packed file of one rate: the codes of `make_checkpoint` without the minutes of entropy coding."""
    import torch

    from agent_forge import codecs, models
    from agent_forge.codecs.payload import Payload
    from agent_forge.kernels import matrix
    from agent_forge.runtime import loading
    from agent_forge.runtime.model import PackedModel
    from agent_forge.runtime.shape import shape_of

    model = models.load(source)
    bits = 8 if "ternary" in RATES[name][0] else 0
    places = {module: f"{i}.{part}" for i, part, module in linear_modules(model.config.num_hidden_layers)}
    matrices, norms = {}, {}
    for tensor, weight, codec, settings in tensors_of_rate(model, name):
        parts, meta = codecs.load(codec).encode(weight.float(), codecs.settings(codec, settings), None)
        made = matrix.from_payload(
            Payload(codec, tuple(weight.shape), meta, parts, b""), 0 if tensor == EMBEDDING else bits
        )
        matrices[places.get(tensor, "embedding")] = made
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

    return [(i, part, f"model.layers.{i}.{module}") for i in range(layers) for part, module in MODULES.items()]


def tensors_of_rate(model, name: str):  # type: ignore[no-untyped-def]
    """Yield (tensor, weight, codec, settings) of a rate."""
    from agent_forge.models import compressed
    from agent_forge.models.ternary import TernarySettings, ternarise

    linears, embedding = RATES[name]
    if "ternary" in linears:
        ternarise(model, TernarySettings(group_size=128, activation_bits=8, packing="five_trits", skip=[]))
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
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
            moments.append(done())
        return moments

    found = measured(once, len(prompt)) | {"load_s": loaded}
    return found | ({"rss_bytes": torch.cuda.max_memory_allocated()} if device == "cuda" else {})


def run_llama(path: Path, prompt: list[int], new_tokens: int, threads: int) -> dict[str, float]:
    """Measure llama.cpp; imports nothing of this project, so it runs under another Python."""
    import llama_cpp
    import numpy as np

    llm = llama_cpp.Llama(model_path=str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)

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
    given = (options.model, prompt, options.tokens, options.threads)
    if options.case == "packed":
        return run_packed(*given)
    if options.case == "llama":
        return run_llama(*given)
    return run_torch(*given, options.device, options.dtype)


def in_process(case: "Case", options: argparse.Namespace, prompt: list[int]) -> dict[str, float]:
    """Run one case in a process of its own."""
    command = [case.python, __file__, str(case.path), "--case", case.kind, "--dtype", case.dtype]
    command += ["--device", options.device, "--prompt-ids", ",".join(map(str, prompt))]
    command += ["--tokens", str(options.tokens), "--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case.kind} {case.path} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def size_of(path: Path) -> int:
    """Return the bytes of the weights."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.glob("*.safetensors"))


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

    def add(label: str, case: Case, make: Callable[[Path], object] | None = None, made: Path | None = None) -> None:
        if options.only and not any(part in label for part in options.only):
            return
        if make is not None and not (made or case.path).exists():
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
            add(name, Case("packed", file, peer=SAME_BITS[name]), partial(make_packed, options.model, name))
        if not on_cpu or name == CHECKPOINT:
            case = Case("packed" if on_cpu else "torch", folder, peer=SAME_BITS[name])
            add(f"{name}, checkpoint", case, partial(make_checkpoint, options.model, name), folder / "config.json")
    for path in options.checkpoints:
        label = f"water-filled, {size_of(path) / 1e6:.0f} MB" if "waterfill" in codecs_of(path) else path.name
        add(label, Case("packed" if on_cpu else "torch", path, peer="Q4_0"))
    for kind in LLAMA_TYPES if options.llama_python else ():
        file = options.work / f"model-{kind}.gguf"
        add(f"llama.cpp {kind}", Case("llama", file, options.llama_python), partial(make_gguf, options.model, kind))
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


def main() -> None:
    """Prepare, run every case, print the table and the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, default=Path("outputs/bench_decode"))
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[], help="compressed checkpoints to add")
    parser.add_argument("--llama-python", default="")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[], help="run only the cases whose label holds one of these")
    parser.add_argument("--prepare", action="store_true", help="make the files and stop")
    parser.add_argument("--case", choices=["packed", "torch", "llama"], help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--prompt-ids", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_case(options)))
        return
    cases = prepare(options)
    if options.prepare:
        return
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(options.model / "tokenizer.json")).encode(PROMPT).ids
    prompt = (ids * (options.prompt_tokens // len(ids) + 1))[: options.prompt_tokens]
    turns: dict[str, list[dict[str, float]]] = {label: [] for label in cases}
    for _ in range(options.repeats):
        for label, case in cases.items():
            turns[label].append(in_process(case, options, prompt))
            print(f"measured {label}: {turns[label][-1]['tokens_per_s']:.1f} tokens/s", file=sys.stderr)
    rows = {label: medians(found) | {"size": size_of(cases[label].path)} for label, found in turns.items()}
    print_table(rows, cases, options)
    if options.device == "cpu":
        print_bars(rows, cases)


def medians(turns: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of every figure over the turns; of the fastest tokens the fastest."""
    found = {figure: statistics.median(turn[figure] for turn in turns) for figure in turns[0]}
    return found | {"best_tokens_per_s": max(turn["best_tokens_per_s"] for turn in turns)}


def print_table(rows: dict[str, dict[str, float]], cases: dict[str, Case], options: argparse.Namespace) -> None:
    """Print markdown: one row a case, ratios to transformers and to llama.cpp at the same bits."""
    print(
        f"{options.tokens} tokens after {options.prompt_tokens}, {options.threads} threads, medians of {options.repeats};"
    )
    print("fastest: of single tokens; cpu: processor time a token, all threads (waiting ones included);")
    print(f"RSS{' (device memory here)' if options.device != 'cpu' else ''}: beyond the file's bytes.\n")
    print(
        "| case | tok/s | fastest | cpu ms | x transformers | x llama.cpp | prompt tok/s | x llama.cpp | MB | RSS - MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    base = rows.get(BASE)
    for label, row in rows.items():
        peer = rows.get(f"llama.cpp {cases[label].peer}")
        print(
            f"| {label} | {row['tokens_per_s']:.1f} | {row['best_tokens_per_s']:.0f} | {row['cpu_ms']:.2f} "
            f"| {ratio(row, base, 'tokens_per_s')} "
            f"| {ratio(row, peer, 'tokens_per_s')}{f' ({cases[label].peer})' if peer else ''} "
            f"| {row['prompt_tokens_per_s']:.0f} | {ratio(row, peer, 'prompt_tokens_per_s')} | {row['size'] / 1e6:.1f} "
            f"| {(row['rss_bytes'] - row['size']) / 1e6:.0f} |"
        )


def print_bars(rows: dict[str, dict[str, float]], cases: dict[str, Case]) -> None:
    """Print each bar with the figure held against it, met or MISSED; nothing for what was not run."""
    base = rows.get(BASE)
    print("\n| bar | figure | |\n|---|---|---|")
    for label, row in rows.items():
        if cases[label].kind != "packed":
            continue
        peer = rows.get(f"llama.cpp {cases[label].peer}")
        ternary = label.startswith("ternary")
        bar(f"{label}: at most {MOST_MS:.0f} ms a token", 1000 / row["tokens_per_s"], -MOST_MS, " ms")
        bar(
            f"{label}: memory at most file + 150 MB",
            (row["rss_bytes"] - row["size"]) / 1e6,
            -MOST_EXTRA_BYTES / 1e6,
            " MB",
        )
        if ternary:
            bar(f"{label}: at least {TERNARY_TOKENS:.0f} tokens/s", row["tokens_per_s"], TERNARY_TOKENS, "")
        if ternary and base:
            bar(f"{label}: at least 10 x transformers", row["tokens_per_s"] / base["tokens_per_s"], TERNARY_TIMES, " x")
        if peer:
            least = TERNARY_PEER if ternary else OTHER_PEER
            times = row["tokens_per_s"] / peer["tokens_per_s"]
            bar(f"{label}: at least {least} x llama.cpp {cases[label].peer}", times, least, " x")


def bar(text: str, figure: float, limit: float, unit: str) -> None:
    """Print one bar; a negative limit is the most that is allowed."""
    met = figure <= -limit if limit < 0 else figure >= limit
    print(f"| {text} | {figure:.2f}{unit} | {'met' if met else 'MISSED'} |")


def ratio(row: dict[str, float], other: dict[str, float] | None, figure: str) -> str:
    """Return how many times the other's figure this row has."""
    return f"{row[figure] / other[figure]:.2f}" if other else "-"


if __name__ == "__main__":
    main()
