"""Versions of models in a git repository: what any remote holds, read by the `git` command.

A model is a directory with `forge.json` or `config.json`; its weights are LFS pointers, whose hashes
and sizes are shown and whose content is never fetched. Refs are fetched one at a time, without
history and without large files, into a bare repository of this server's own.
"""

import json
import os
import re
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

from agent_forge.core.errors import ConfigError, DataError, did_you_mean

MANIFESTS = ("forge.json", "config.json")
CARDS = ("README.md", "model_card.md")
MAX_TEXT_BYTES = 2**20
TIMEOUT_SECONDS = 60
POINTER = re.compile(
    r"version https://git-lfs\.github\.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n?"
)
POINTER_BYTES = 1024  # a pointer is smaller; anything larger is a file of its own
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+@-]{0,199}")


class GitRegistry:
    """A remote repository of models. remote: an address or a directory, as `git clone` takes it.

    cache: where the bare repository lies. Raises ConfigError for a remote that looks like an option.
    """

    def __init__(self, remote: str, cache: Path) -> None:
        if remote.startswith("-") or not remote.strip():
            raise ConfigError(f"a registry is the address or directory of a repository: '{remote}'")
        self.remote = remote
        self.repository = cache / "registry.git"

    def refs(self, kind: str) -> list[dict[str, str]]:
        """Return name and commit of the branches ("heads") or tags of the remote."""
        listed = self._git("ls-remote", f"--{kind}", "--", self.remote)
        rows: dict[str, str] = {}
        for line in listed.splitlines():
            commit, _, name = line.partition("\t")
            short = name.removeprefix(f"refs/{kind}/")
            # An annotated tag is listed twice; the line with ^{} is the commit that it names.
            rows[short.removesuffix("^{}")] = commit
        return [{"name": name, "commit": commit} for name, commit in rows.items()]

    def models(self, ref: str) -> list[str]:
        """Return the directories of a ref that hold a model; "." is the repository itself."""
        files = self._files(self._fetch(ref))
        found_in = {str(PurePosixPath(name).parent) for name in files
                    if PurePosixPath(name).name in MANIFESTS}  # fmt: skip
        return sorted(found_in)

    def manifest(self, ref: str, model: str) -> dict[str, Any]:
        """Return the manifest of a model: forge.json, or else config.json. Raises DataError."""
        commit = self._fetch(ref)
        name = self._first(commit, model, MANIFESTS, "manifest")
        try:
            value = json.loads(self._text(commit, name))
        except ValueError:
            raise DataError(f"{name} of {ref} is not JSON") from None
        return value if isinstance(value, dict) else {"value": value}

    def card(self, ref: str, model: str) -> str:
        """Return the model card of a model. Raises DataError."""
        commit = self._fetch(ref)
        return self._text(commit, self._first(commit, model, CARDS, "card"))

    def pointers(self, ref: str, model: str) -> list[dict[str, Any]]:
        """Return name, SHA-256 and size of every file of a model that is an LFS pointer."""
        commit = self._fetch(ref)
        rows = []
        for name, size in self._below(commit, model).items():
            match = POINTER.fullmatch(self._text(commit, name)) if size <= POINTER_BYTES else None
            if match is not None:
                rows.append({"file": name, "sha256": match[1], "bytes": int(match[2])})
        return rows

    def _first(self, commit: str, model: str, names: tuple[str, ...], what: str) -> str:
        files = self._below(commit, model)
        for name in names:
            path = str(PurePosixPath(model) / name)
            if path in files:
                return path
        held = sorted({str(PurePosixPath(name).parent) for name in self._files(commit)})
        raise DataError(f"no {what} of '{model}'{did_you_mean(model, held)}; registry_models lists")

    def _below(self, commit: str, model: str) -> dict[str, int]:
        """Return the files directly in a model's directory, with their sizes."""
        place = PurePosixPath(model)
        return {name: size for name, size in self._files(commit).items()
                if PurePosixPath(name).parent == place}  # fmt: skip

    def _files(self, commit: str) -> dict[str, int]:
        """Return path and size of every file of a commit; links and submodules are left out."""
        files = {}
        for line in self._git("ls-tree", "-r", "-l", "-z", commit).split("\0"):
            head, _, name = line.partition("\t")
            parts = head.split()
            if len(parts) == 4 and parts[0] in ("100644", "100755") and parts[3].isdigit():
                files[name] = int(parts[3])
        return files

    def _text(self, commit: str, name: str) -> str:
        size = self._files(commit)[name]
        if size > MAX_TEXT_BYTES:
            raise DataError(f"{name} has {size:,} bytes; at most {MAX_TEXT_BYTES:,} are read")
        return self._git("cat-file", "blob", f"{commit}:{name}")

    def _fetch(self, ref: str) -> str:
        """Fetch a branch, tag or commit without its history; return the commit."""
        if not _REF.fullmatch(ref) or ".." in ref or ref.endswith((".lock", "/", ".")):
            raise DataError(f"'{ref[:80]}' is not the name of a branch, a tag or a commit")
        if not self.repository.is_dir():
            self._git("init", "--bare", "--quiet", str(self.repository), inside=False)
        self._git("fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules",
                  "--", self.remote, ref)  # fmt: skip
        return self._git("rev-parse", "--verify", "--quiet", "FETCH_HEAD^{commit}").strip()

    def _git(self, *words: str, inside: bool = True) -> str:
        """Return what git prints. Raises DataError with its last line, ConfigError without git."""
        place = ["--git-dir", str(self.repository)] if inside and self.repository.is_dir() else []
        environment = {
            **os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1", "LC_ALL": "C",
            # No transport that runs a command of the address's choosing.
            "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
        }  # fmt: skip
        try:
            result = subprocess.run(
                ["git", *place, *words], capture_output=True, check=False, env=environment,
                timeout=TIMEOUT_SECONDS, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except FileNotFoundError:
            raise ConfigError("the registry needs git, which is not installed") from None
        except subprocess.TimeoutExpired:
            raise DataError(f"the registry did not answer within {TIMEOUT_SECONDS} s") from None
        if result.returncode:
            lines = result.stderr.decode(errors="replace").strip().splitlines()
            said = lines[-1].replace(self.remote, "the registry") if lines else "git failed"
            raise DataError(f"the registry cannot be read: {said[:200]}")
        return result.stdout.decode(errors="replace")
