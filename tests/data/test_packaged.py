"""Text that packages carry: which languages and modules, apart from what is scored, and a missing
package refused.
"""

import importlib.util
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from agent_forge import data
from agent_forge.config import DataConfig
from agent_forge.config.compose import compose
from agent_forge.config.limits import kinds_of_data
from agent_forge.core.errors import ConfigError, DataError
from agent_forge.data import packaged
from agent_forge.data.documents import check_source, documents, source_files
from agent_forge.evaluate import EvalContext
from agent_forge.evaluate.tasks import unseen
from agent_forge.phases.compress import Config
from agent_forge.pipeline.run_phase import check_settings


def test_conversations_are_whole_turns_in_many_languages_and_none_in_english() -> None:
    files = packaged.files_of("chatterbot_corpus")
    folders = {file.parent.name for file in files}
    assert len(folders) > 20
    assert {"chinese", "russian", "german", "spanish"} <= folders
    assert not folders & {"english", "hinglish", "arabic", "greek", "polish", "vietnamese"}
    texts = list(packaged.documents_of("chatterbot_corpus"))
    assert len(texts) == len(files)
    assert max(len(text.encode()) for text in texts) <= packaged.MOST_BYTES
    chinese = dict(zip([f"{file.parent.name}/{file.stem}" for file in files], texts, strict=True))[
        "chinese/conversations"
    ]
    assert chinese.startswith("早上好，你好吗?\n我挺好的，你呢\n")
    assert "\n\n你好\n" in chinese


def test_code_of_the_calibration_is_none_of_the_code_that_is_scored(
    data_config: DataConfig,
) -> None:
    calibrated = {file.name: file for file in packaged.files_of("stdlib")}
    assert len(calibrated) > 100
    everything = "\n".join(packaged.documents_of("stdlib"))
    context = EvalContext(data=data_config, seed=0)
    for item in unseen.items("validation", 60, context):
        assert item["text"] not in everything


@pytest.mark.parametrize("kind", ["code", "languages"])
def test_a_kind_of_packaged_text_fills_windows_and_splits_share_no_document(
    kind: str, tiny_tokenizer: PreTrainedTokenizerFast, data_config: DataConfig
) -> None:
    source = data.source(kind, data_config, tiny_tokenizer, "validation", 0)
    ids, labels = source.take(np.random.default_rng(0), 32)
    assert ids.tolist() == labels.tolist()
    config = replace(data_config, text=[packaged.KINDS[kind]])
    train, validation = (set(documents(config, split)) for split in ("train", "validation"))
    assert len(train) > len(validation) > 2
    assert not train & validation
    assert len(source_files(packaged.KINDS[kind])) > len(train)
    check_source(packaged.KINDS[kind])


def test_a_mix_whose_package_or_rows_are_missing_is_refused_before_work(
    data_config: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = compose("compress", Config, ["out=x"])
    config.data = data_config
    config.calibration.mix = {"text": 1.0, "rows": 0.5}
    with pytest.raises(
        ConfigError, match=r"calibration\.mix: the mix names 'rows', but data\.rows is empty"
    ):
        check_settings("compress", config)
    config.calibration.mix = {"text": 1.0, "languages": 0.5, "rows": 0.0}
    assert list(kinds_of_data(config)) == [
        ("calibration.mix", "text"),
        ("calibration.mix", "languages"),
    ]
    check_settings("compress", config)
    original = importlib.util.find_spec

    def without(name: str, *more: Any) -> Any:
        return None if name == "chatterbot_corpus" else original(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(
        ConfigError,
        match=r"calibration\.mix: .*agent-forge\[demo\]'.*leave 'languages' out of the mix",
    ):
        check_settings("compress", config)
    with pytest.raises(DataError, match="chatterbot_corpus: the package is not installed"):
        check_source("chatterbot_corpus")
