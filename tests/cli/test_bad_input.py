"""Bad input ends in one line (what, where, what to do) and its exit code, with nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import Result

from agent_forge import checkpoint, models
from agent_forge.checkpoint import Checkpoint
from agent_forge.pipeline import run_phase as controller

Cli = Callable[..., Result]
Refused = Callable[..., str]


@pytest.fixture
def refused(cli: Cli, tmp_path: Path, text_folder: Path) -> Refused:
    """Return a function that runs a phase into `out`, checks that it is refused cleanly, and
    returns the one line.
    """

    def run(exit_code: int, phase: str, *settings: str) -> str:
        result = cli(
            phase, f"out={tmp_path / 'runs' / 'out'}", f"data.text=[{text_folder}]",
            f"data.cache={tmp_path / 'cache'}", "runtime.threads=1", *settings,
        )  # fmt: skip
        last = result.stderr.strip().splitlines()[-1]
        assert result.exit_code == exit_code, result.stderr
        assert last.startswith("forge: ")
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "runs" / "out").exists()
        assert not list(tmp_path.rglob(".tmp-*"))
        return last

    return run


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make starting a worker a failure of the test: the fault must be found before."""
    monkeypatch.setattr(controller, "run_child", lambda *_: pytest.fail("a worker was started"))


def write_model(place: Path, config: LlamaConfig, tokenizer: PreTrainedTokenizerFast) -> Checkpoint:
    torch.manual_seed(1)
    model = LlamaForCausalLM(config).eval()
    return checkpoint.write(
        place, lambda directory: models.save(model, tokenizer, directory), phase="import", seed=0,
        config={}, name=place.name,
    )  # fmt: skip


@pytest.mark.usefixtures("no_child")
def test_a_wrong_key(refused: Refused) -> None:
    assert "did you mean 'train.steps'" in refused(2, "bitnet", "train.step=3")


@pytest.mark.usefixtures("no_child")
def test_a_missing_and_a_corrupt_checkpoint(
    refused: Refused, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint.path, tmp_path / "model")
    line = refused(74, "bitnet", f"sources=[{tmp_path / 'modle'}]")
    assert f"no checkpoint at {tmp_path / 'modle'}; did you mean 'model'?" in line
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    line = refused(74, "bitnet", f"sources=[{tmp_path / 'model'}]")
    assert f"{weights} is damaged: 100 bytes, the manifest says" in line


@pytest.mark.usefixtures("no_child")
def test_an_unwritable_place(
    refused: Refused, tiny_checkpoint: Checkpoint, read_only_disk: Path
) -> None:
    line = refused(
        74,
        "bitnet",
        f"sources=[{tiny_checkpoint.path}]",
        f"out={read_only_disk / 'x'}",
        "linear.group_size=16",
    )
    assert (
        "Read-only file system; name a directory that you may write (out= of a phase, "
        "run_dir= of run-all"
    ) in line


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "rows.jsonl",
            '{"txt": "a"}\n{"text": ""}\n',
            "no usable row; a row needs a non-empty 'text'",
        ),
        ("rows.jsonl", '{"text": "a"\n', "rows.jsonl:1: not JSON"),
        ("rows.csv", "a,b\n", "unknown kind of file; known:"),
        ("rows.parquet", "PAR1 but not really", "rows.parquet"),
        ("empty.txt", " \n", "no usable document"),
    ],
)
def test_a_data_file_without_a_usable_row(
    refused: Refused,
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
    name: str,
    content: str,
    message: str,
) -> None:
    file = tmp_path / name
    file.write_text(content)
    line = refused(74, "bitnet", f"sources=[{tiny_checkpoint.path}]", f"data.text=[{file}]")
    assert message in line
    assert str(file) in line


@pytest.mark.usefixtures("no_child")
def test_data_that_is_not_there(refused: Refused, tiny_checkpoint: Checkpoint) -> None:
    assert "'sotuu' is neither a known package" in refused(
        74, "bitnet", f"sources=[{tiny_checkpoint.path}]", "data.text=[sotuu]"
    )


def test_sources_with_other_tokenizers(
    refused: Refused, tiny_checkpoint: Checkpoint, llama_config: LlamaConfig,
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path,
) -> None:  # fmt: skip
    content = json.loads(tiny_tokenizer.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    plain = [token for token in vocabulary if token.isalpha()]
    vocabulary[plain[0]], vocabulary[plain[1]] = vocabulary[plain[1]], vocabulary[plain[0]]
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)))
    stranger = write_model(tmp_path / "stranger", llama_config, other)
    line = refused(74, "evomerge", f"sources=[{tiny_checkpoint.path},{stranger.path}]")
    assert "tokenizer" in line


def test_a_model_without_a_layer_to_quantise(
    refused: Refused, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    line = refused(2, "bitnet", f"sources=[{tiny_checkpoint.path}]", "linear.skip=['*']")
    assert "nothing to make ternary" in line
    assert "shorten skip" in line
    line = refused(
        2,
        "compress",
        f"sources=[{tiny_checkpoint.path}]",
        f"out={tmp_path / 'other'}",
        "codec.min_weights=1000000000",
    )
    assert "nothing to compress" in line
    assert "lower it or take another checkpoint" in line
    assert not (tmp_path / "other").exists()


def test_weights_that_are_not_numbers_are_never_written(
    refused: Refused, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Fault 7, through a phase: a parent with NaN in it ends in one line, not in a child with NaN
    in it.
    """
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"

    def save(directory: Path) -> None:
        shutil.copytree(tiny_checkpoint.path, directory, dirs_exist_ok=True)
        (directory / "forge.json").unlink()
        tensors = load_file(directory / "model.safetensors")
        tensors["model.norm.weight"][3] = float("nan")
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    checkpoint.write(broken, save, phase="import", seed=0, config={})
    line = refused(
        1, "bitnet", f"sources=[{broken}]", "train.steps=0", "init.method=absmean",
        "measure_items=2", "linear.group_size=32",
        "gate.enabled=false",
    )  # fmt: skip
    assert "non-finite" in line or "not finite" in line or "not a finite" in line


def test_a_checkpoint_that_is_no_model_is_refused_by_chat_and_eval(
    cli: Cli, tmp_path: Path
) -> None:
    checkpoint.write(
        tmp_path / "empty",
        lambda d: (d / "config.json").write_text("{}"),
        phase="x",
        seed=0,
        config={},  # type: ignore[arg-type,return-value]
    )
    for arguments in (
        ["eval", str(tmp_path / "empty"), "--tasks", "text"],
        ["chat", str(tmp_path / "empty"), "hi"],
    ):
        result = cli(*arguments)
        assert result.exit_code == 74
        assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize("dry_run", [["--dry-run"], []])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("compress.runtime.device=mps", "no such device here"),
        ("compress.gate.chain.txt=0.5", "compress.gate.chain: no task 'txt'; did you mean 'text'?"),
        (
            "compress.codec.candidates=[{codec: waterfil}]",
            "no codec 'waterfil'; did you mean 'waterfill'?",
        ),
        (
            "compress.codec.candidates=[{codec: intk, bit: 4}]",
            "no setting 'bit'; did you mean 'bits'?",
        ),
        ("adas.runtime_search.techniques=[rolle]", "did you mean 'role'?"),
        ("bitnet.linear.activation_bits=1", "activation_bits must be 0 (off) or 2 to 16, got 1"),
        ("bake.tools=[calculater]", "no tool 'calculater'; did you mean 'calculator'?"),
        ("adas.tools=[calculater]", "no tool 'calculater'; did you mean 'calculator'?"),
        ("bitnet.gate.tasks={text:", "ends without its '}'"),
        ("train.optim.lr=1e30", "train.optim.lr must be in [0, 10], got 1e+30"),
    ],
)
def test_a_wrong_setting_of_a_later_phase_ends_the_run_before_it_begins(
    cli: Cli, tmp_path: Path, text_folder: Path, setting: str, message: str, dry_run: list[str]
) -> None:
    result = cli(
        "run-all", f"run_dir={tmp_path / 'run'}", f"data.text=[{text_folder}]", setting, *dry_run
    )
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize("dry_run", [["--dry-run"], []])
@pytest.mark.parametrize("key", ["bake.tools", "bake.preferences.rows", "adas.tools"])
def test_files_of_a_later_phase_that_are_not_there_end_the_run_before_it_begins(
    cli: Cli, tmp_path: Path, text_folder: Path, key: str, dry_run: list[str]
) -> None:
    name = tmp_path / ("no.py" if key.endswith("tools") else "no.jsonl")
    result = cli(
        "run-all", f"run_dir={tmp_path / 'run'}", f"data.text=[{text_folder}]", f"{key}=[{name}]",
        *dry_run,
    )  # fmt: skip
    assert result.exit_code == 74, result.stderr
    assert str(name) in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("no_child")
def test_data_of_a_later_phase_that_is_not_there_ends_the_run_before_it_begins(
    cli: Cli, tmp_path: Path, text_folder: Path
) -> None:
    result = cli(
        "run-all",
        f"run_dir={tmp_path / 'run'}",
        f"data.text=[{text_folder}]",
        "bake.data.text=[sotuu]",
    )
    assert result.exit_code == 74
    assert "'sotuu' is neither a known package" in result.stderr


def test_manifests_that_cannot_be_read_hide_no_other_checkpoint(
    cli: Cli, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint.path, tmp_path / "all" / "whole")
    (tmp_path / "all" / "folder" / "forge.json").mkdir(parents=True)
    (tmp_path / "all" / "link").mkdir()
    (tmp_path / "all" / "link" / "forge.json").symlink_to(tmp_path / "nowhere")
    shown = cli("list", str(tmp_path / "all"), "--json")
    assert shown.exit_code == 0
    assert [json.loads(line)["name"] for line in shown.stdout.splitlines()] == ["tiny"]
    assert shown.stderr.count("forge: ") == 2
    checked = cli("verify", str(tmp_path / "all"))
    assert checked.exit_code == 74
    assert "3 checkpoints, 2 damaged" in checked.stdout
    assert "folder/forge.json cannot be read: Is a directory" in checked.stderr
    assert f"{tmp_path / 'all' / 'link'} is not a checkpoint" in checked.stderr


@pytest.mark.parametrize("damage", ["{", "[]", '{"phase": 5}', "\x00"])
def test_a_damaged_job_is_shown_and_never_gone_on_with(
    cli: Cli, tiny_checkpoint: Checkpoint, tmp_path: Path, text_folder: Path, damage: str
) -> None:
    """What a job of unknown settings has computed must not be taken for this job's."""
    record = tmp_path / "run" / ".forge" / "4-bitnet"
    record.mkdir(parents=True)
    (record / "job.json").write_text(damage, encoding="utf-8")
    shown = cli("status", str(tmp_path / "run"))
    assert shown.exit_code == 0, shown.stderr
    assert "bitnet" in shown.stdout
    assert f"{record / 'job.json'} is damaged; --no-resume drops it" in shown.stdout
    settings = [
        f"sources=[{tiny_checkpoint.path}]", f"out={tmp_path / 'run' / '4-bitnet'}",
        f"data.text=[{text_folder}]", f"data.cache={tmp_path / 'cache'}", "linear.group_size=16",
    ]  # fmt: skip
    refused = cli("bitnet", *settings)
    assert refused.exit_code == 2
    assert "what its results were made with is not known; drop them with --no-resume" in (
        refused.stderr
    )


TOO_LONG = "x" * 300  # most systems allow names of 255 bytes


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", TOO_LONG], ["inspect", TOO_LONG], ["verify", TOO_LONG], ["status", TOO_LONG],
        ["report", TOO_LONG], ["eval", TOO_LONG], ["compare", TOO_LONG, TOO_LONG],
        ["chat", TOO_LONG, "hi"], ["export", TOO_LONG, "--out", "x.gguf"],
        ["import", TOO_LONG, "--out", "x"], ["merge", TOO_LONG, "--dry-run"],
        ["data", "inspect", f"{TOO_LONG}.jsonl"], ["doctor", "--out", TOO_LONG],
        ["bitnet", f"sources=[{TOO_LONG}]", "--dry-run"], ["index", TOO_LONG],
        ["tools", "check", f"{TOO_LONG}.py"], ["encrypt", TOO_LONG], ["decrypt", TOO_LONG],
        ["bitnet", "--config", TOO_LONG, "--dry-run"], ["keys", "list", "--state", TOO_LONG],
        ["audit", "head", TOO_LONG],
    ],
)  # fmt: skip
def test_a_name_that_no_file_can_have_is_one_line(cli: Cli, arguments: list[str]) -> None:
    result = cli(*arguments)
    assert result.exit_code in (2, 74), result.exception
    assert result.stderr.count("\n") == 1
    assert "too long" in result.stderr or f"no {TOO_LONG}" in result.stderr


def test_only_what_the_system_refuses_is_shown_as_one_line(capsys: pytest.CaptureFixture) -> None:
    import errno

    import typer

    from agent_forge.cli.errors import one_line_errors

    with pytest.raises(typer.Exit) as left, one_line_errors():
        raise PermissionError(errno.EACCES, "Permission denied", "a/" + "b" * 200)
    assert left.value.exit_code == 74
    assert capsys.readouterr().err == f"forge: a/{'b' * 98}…: Permission denied\n"
    with pytest.raises(typer.Exit), one_line_errors():
        raise OSError(errno.EROFS, "Read-only file system", "disk/.tmp-import-1a2b")
    said = capsys.readouterr().err
    assert said.startswith("forge: cannot write disk: Read-only file system; name a directory that")
    for number in (errno.ENOENT, errno.EINVAL, errno.EBADF):
        with pytest.raises(OSError, match="a defect"), one_line_errors():
            raise OSError(number, "a defect")


def test_no_command_takes_the_place_of_other_files(
    cli: Cli, tiny_checkpoint: Checkpoint, llama_config: LlamaConfig,
    tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path,
) -> None:  # fmt: skip
    """A folder of notes, and a checkpoint of another kind, are never replaced by a new checkpoint."""
    models.save(LlamaForCausalLM(llama_config).eval(), tiny_tokenizer, tmp_path / "plain")
    notes, other = tmp_path / "notes", tmp_path / "other"
    notes.mkdir()
    (notes / "mine.txt").write_text("mine", encoding="utf-8")
    shutil.copytree(tiny_checkpoint.path, other)
    before = (other / "forge.json").read_bytes()
    for place in (notes, other):
        for command in (
            ["import", str(tmp_path / "plain")],
            ["encrypt", str(tiny_checkpoint.path)],
        ):
            if command[0] == "encrypt" and place == other:
                continue  # the same content in another form
            result = cli(*command, "--out", str(place))
            assert result.exit_code == 2, result.stderr
            assert "would be lost; name" in result.stderr
    assert (notes / "mine.txt").read_text(encoding="utf-8") == "mine"
    assert (other / "forge.json").read_bytes() == before
    assert cli("import", str(tmp_path / "plain"), "--out", str(tmp_path / "new")).exit_code == 0
    again = cli("import", str(tmp_path / "plain"), "--out", str(tmp_path / "new"))
    assert again.exit_code == 0, again.stderr
    (tmp_path / "empty").mkdir()
    assert cli("import", str(tmp_path / "plain"), "--out", str(tmp_path / "empty")).exit_code == 0


def test_a_file_of_tools_cannot_end_the_command(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n", encoding="utf-8")
    result = cli("tools", "check", str(tmp_path / "leaves.py"))
    assert result.exit_code == 2
    assert result.stderr == f"forge: {tmp_path / 'leaves.py'}:2: SystemExit: 0\n"


def test_a_character_that_yaml_does_not_allow_is_named(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "nul.yaml").write_bytes(b"seed: \x00\n")
    result = cli("bitnet", "--config", str(tmp_path / "nul.yaml"), "--dry-run")
    assert result.exit_code == 2
    assert "nul.yaml is not valid YAML: unacceptable character #x0000" in result.stderr
    recipe = cli("merge", str(tmp_path / "nul.yaml"), "--dry-run")
    assert recipe.exit_code == 2
    assert "nul.yaml: not valid YAML: unacceptable character #x0000" in recipe.stderr


def test_a_recipe_in_utf_16_is_read_and_one_that_holds_itself_is_refused(
    cli: Cli, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    recipe = f"merge_method: passthrough\nmodels:\n- model: {tiny_checkpoint.path}\n"
    (tmp_path / "wide.yaml").write_bytes(recipe.encode("utf-16"))
    result = cli("merge", str(tmp_path / "wide.yaml"), "--out", str(tmp_path / "merged"))
    assert result.exit_code == 0, result.stderr
    (tmp_path / "loop.yaml").write_text("models: &x [*x]\n", encoding="utf-8")
    refused = cli("merge", str(tmp_path / "loop.yaml"), "--dry-run")
    assert refused.exit_code == 2
    assert "not valid YAML: it holds itself" in refused.stderr


def test_exporting_what_is_not_there_names_what_may_be_meant(
    cli: Cli, tiny_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint.path, tmp_path / "my model")
    result = cli("export", str(tmp_path / "my modle"), "--out", "x.gguf")
    assert result.exit_code == 74
    assert result.stderr == (
        f"forge: no checkpoint at {tmp_path / 'my modle'}; did you mean 'my model'?\n"
    )


def test_a_device_that_no_machine_has_is_named_with_its_option(
    cli: Cli, tiny_checkpoint: Checkpoint
) -> None:
    result = cli("chat", str(tiny_checkpoint.path), "hi", "--device", "banana")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "forge: --device must be auto, cpu, cuda, cuda:1, mps or another"
    )
