"""`forge export`: a checkpoint as GGUF, Ollama model, Hugging Face folder or packed file."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from agent_forge.cli.errors import one_line_errors
from agent_forge.cli.phase_commands import Json, Verbose, examples
from agent_forge.cli.render import console, print_json, say


def add_to(app: typer.Typer) -> None:
    """Add the subcommand of this file."""
    app.command(
        "export",
        help="Export a checkpoint as GGUF, Ollama model, Hugging Face folder or packed file.",
        epilog=examples(
            "forge export outputs/run_all/8-compress --out agent.bin --format packed",
            "forge export outputs/smollm2 --out model.gguf --type Q8_0 --check",
            "forge export outputs/bake --out adapter.gguf --format lora",
        ),
    )(export_command)


def export_command(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint directory.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="File (gguf, packed, lora) or folder (hf, ollama) to write."
        ),
    ],
    format_name: Annotated[
        str, typer.Option("--format", "-f", help="gguf, ollama, hf, packed or lora.")
    ] = "gguf",
    kind: Annotated[
        str,
        typer.Option(
            "--type", "-t", help="gguf: F16 Q8_0 Q4_0 Q4_K TQ1_0 TQ2_0; hf: F32 F16 BF16."
        ),
    ] = "",
    check: Annotated[
        bool, typer.Option("--check", help="Load the file in llama.cpp and compare logits.")
    ] = False,
    llama_python: Annotated[
        str,
        typer.Option(
            "--llama-python",
            envvar="FORGE_LLAMA_PYTHON",
            help="A Python with llama-cpp-python, when this one has none.",
        ),
    ] = "",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Export a checkpoint; exit 3 when the check finds other logits."""
    with one_line_errors(verbose):
        from agent_forge.export.run import export
        from agent_forge.pipeline.report import words

        done = export(path, out, format_name, kind, check=check, llama_python=llama_python)
        if as_json:
            print_json(asdict(done))
            return
        show = console(stderr=False)
        say(show, f"wrote {', '.join(done.files)} ({words.size(done.size_bytes)}, {done.type})")
        for line in done.lines:
            say(show, f"  {line}")
        if done.check:
            for name, value in done.check.items():
                say(
                    show,
                    f"  check {name}: "
                    f"{value if isinstance(value, (bool, int)) else f'{value:.4g}'}",
                )
