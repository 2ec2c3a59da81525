"""Shared fixtures: one tiny tokenizer, one tiny Llama, a checkpoint of it, and one finished run of
all phases.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Two workers of pytest on two cores: with two threads each they would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads this once, when it is imported

import pytest
import torch
from filelock import FileLock
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import agent_forge
from agent_forge import checkpoint, data, models
from agent_forge.config import DataConfig
from agent_forge.data.synthetic import memory, reasoning, tools

torch.set_num_threads(1)

TEXT = (
    "Fellow citizens of the Senate and of the House. The state of the union is strong, "
    "and the work of the nation "
    "goes on in year {i}. We thank the people of district {j} for their letters and "
    "for their labor."
)


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 400 short documents, so that every split has some."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(400):
        (folder / f"{i:03}.txt").write_text(
            " ".join(TEXT.format(i=1790 + i, j=i * j % 97) for j in range(1, 4))
        )
    return folder


@pytest.fixture(scope="session")
def data_config(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Return data settings over `text_folder`, with a cache of the session's own."""
    return DataConfig(
        text=[str(text_folder)],
        max_text_bytes=0,
        cache=str(tmp_path_factory.mktemp("cache")),
        rows=[],
        near_duplicates=0.0,
        sampling="random",
        encoding="utf-8",
        ignore_keys=[],
    )


@pytest.fixture(scope="session")
def tiny_tokenizer(data_config: DataConfig) -> PreTrainedTokenizerFast:
    """Return a tokenizer of at most 512 tokens, with ChatML and tool tokens."""
    rows = [
        m["content"]
        for task in (reasoning, memory, tools)
        for r in task.rows(50, "train", 0)
        for m in r["messages"]
    ]
    return data.train_tokenizer([*data.documents(data_config, "train"), *rows], 512)


@pytest.fixture(scope="session")
def llama_config(tiny_tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the shape of the tiny Llama: grouped queries, tied embeddings, widths that hold no
    128-group.
    """
    return LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tiny_tokenizer.pad_token_id,
        bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id,
    )


@pytest.fixture
def tiny_llama(llama_config: LlamaConfig) -> LlamaForCausalLM:
    """Return a fresh tiny Llama with seeded weights (a function-scoped copy, safe to change)."""
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config).eval()


@pytest.fixture(scope="session")
def tiny_checkpoint(
    llama_config: LlamaConfig,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path_factory: pytest.TempPathFactory,
) -> checkpoint.Checkpoint:
    """Return a checkpoint directory of the tiny Llama. Do not write into it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config).eval()
    return checkpoint.write(
        tmp_path_factory.mktemp("checkpoints") / "tiny",
        lambda directory: models.save(model, tiny_tokenizer, directory),
        phase="import",
        seed=0,
        config={},
        name="tiny",
        role="trunk",
    )


Forge = Callable[..., "subprocess.CompletedProcess[str]"]
# A run of minutes on a busy machine; the tests that need one wait for whoever makes it.
RUN_SECONDS = 900


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that may have to make the shared run enough time for it."""
    for item in items:
        if "tiny_run" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(RUN_SECONDS))


@pytest.fixture(scope="session")
def forge() -> Forge:
    """Return a function that runs `forge ARGUMENTS` in a process of its own, with output captured
    apart.
    """

    def run(
        *arguments: str, cwd: Path | None = None, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            forge_command(*arguments), cwd=cwd, env=forge_environment(**environment),
            capture_output=True, text=True, timeout=RUN_SECONDS, stdin=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip

    return run


def forge_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "agent_forge", *arguments]


def forge_environment(**changes: str) -> dict[str, str]:
    root = str(Path(agent_forge.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **changes}


@pytest.fixture(scope="session")
def start_forge() -> Callable[..., "subprocess.Popen[str]"]:
    """Return a function that starts `forge ARGUMENTS` and returns the process, its output piped."""

    def start(*arguments: str, cwd: Path | None = None) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            forge_command(*arguments), cwd=cwd, env=forge_environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    return start


def tiny_settings(place: Path) -> list[str]:
    """Return the overrides of a run of all phases in `place` that takes a minute."""
    return [
        "experiment=tiny", f"run_dir={place / 'run'}", f"data.cache={place / 'cache'}",
        "runtime.threads=1", "runtime.save_every_seconds=1",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, forge: Forge) -> Path:
    """Return the directory of one finished `forge run-all`, shared by all workers of a session.

    Do not write into it.
    """
    return finished_tiny_run(tmp_path_factory, forge)


@pytest.fixture(scope="session", autouse=True)
def _tiny_run_beside_the_first_tests(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, forge: Forge
) -> None:
    """Where several workers share the run, begin it at once: later all of them would wait for the
    one that makes it.
    """
    is_used = any("tiny_run" in getattr(item, "fixturenames", ()) for item in request.session.items)
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw0" and is_used:
        tmp_path_factory.getbasetemp()  # two threads that call this first would each create one

        def begin() -> None:
            # the first test that needs the run makes it again and tells
            with suppress(AssertionError):
                finished_tiny_run(tmp_path_factory, forge)

        threading.Thread(target=begin, daemon=True).start()


def finished_tiny_run(tmp_path_factory: pytest.TempPathFactory, forge: Forge) -> Path:
    """Return the shared run's directory.

    The first caller of all workers makes it, the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    place = root / "tiny-run"
    with FileLock(root / "tiny-run.lock"):
        if not (place / "run" / "done").exists():
            run = forge("run-all", *tiny_settings(place))
            assert run.returncode == 0, run.stderr
            (place / "run" / "done").touch()
    return place / "run"


@contextmanager
def mounted_tmpfs(place: Path, options: str) -> Iterator[Path]:
    """Mount a small file system of memory at `place`.

    Skips the test where mounting is not allowed.
    """
    place.mkdir(parents=True, exist_ok=True)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip(f"mounting a tmpfs is not allowed here: {mount.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a directory on a disk of 3 MB."""
    with mounted_tmpfs(tmp_path / "small", "size=3m") as place:
        yield place


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a directory that not even root can write."""
    with mounted_tmpfs(tmp_path / "read-only", "ro,size=1m") as place:
        yield place
