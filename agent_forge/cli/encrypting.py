"""`forge encrypt` and `forge decrypt`: checkpoints at rest in the age format."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent_forge.cli.errors import one_line_errors
from agent_forge.cli.inspection import Target
from agent_forge.cli.phase_commands import Json, Verbose, examples
from agent_forge.cli.render import console, print_json, say

if TYPE_CHECKING:
    from agent_forge.checkpoint import Checkpoint

Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Write there and leave DIR as it is; else DIR is replaced."),
]


def add_to(app: typer.Typer) -> None:
    """Add the subcommands of this file."""
    app.command(
        "encrypt",
        help="Encrypt a checkpoint (age format); every command opens it with the key in reach.",
        epilog=examples(
            "forge encrypt outputs/run_all/8-compress --new-key",
            "forge encrypt outputs/run_all/8-compress --rotate --recipient age1…",
        ),
    )(encrypt_command)
    app.command(
        "decrypt",
        help="Decrypt a checkpoint; nothing is written where a file was cut or changed.",
        epilog=examples(
            "forge decrypt outputs/run_all/8-compress",
            "forge decrypt outputs/safe --out outputs/plain",
        ),
    )(decrypt_command)


def encrypt_command(
    path: Target,
    out: Out = None,
    recipient: Annotated[
        list[str] | None,
        typer.Option("--recipient", "-r", help="A public key (age1…); may be repeated."),
    ] = None,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make a key first, in the key file (0600).")
    ] = False,
    rotate: Annotated[
        bool, typer.Option("--rotate", help="Give an encrypted checkpoint other recipients.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Encrypt a checkpoint. Keys are never read from the command line."""
    with one_line_errors(verbose):
        from agent_forge.checkpoint import age, directory, encryption
        from agent_forge.core.errors import ConfigError

        if new_key and recipient:
            raise ConfigError("--new-key makes the recipient; leave --recipient out")
        # No key is made where nothing can be encrypted.
        encryption.check_target(out or path, directory.open(path, verify=False))
        if new_key:
            public = age.new_identity()
            say(console(), f"wrote a key to {age.key_file()}; keep a copy of it")
            recipient = [public]
        write = encryption.rotate if rotate else encryption.encrypt
        _show(write(path, out or path, recipient or ()), as_json)


def decrypt_command(
    path: Target, out: Out = None, as_json: Json = False, verbose: Verbose = False
) -> None:
    """Decrypt a checkpoint."""
    with one_line_errors(verbose):
        from agent_forge.checkpoint import encryption

        _show(encryption.decrypt(path, out or path), as_json)


def _show(written: "Checkpoint", as_json: bool) -> None:
    state = written.manifest.encryption
    recipients = state["recipients"] if state else []
    if as_json:
        print_json({"path": str(written.stored), "id": written.id, "recipients": recipients})
        return
    how = f"encrypted for {', '.join(recipients)}" if state else "in plain"
    text = f"{written.stored}: id {written.id}, {len(written.manifest.files)} files {how}"
    say(console(stderr=False), text)
