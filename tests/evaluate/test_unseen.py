"""Text outside the calibration: kinds are mixed, splits are apart, retention is told by kind."""

import json

import numpy as np
import pytest

from agent_forge import evaluate
from agent_forge.config import DataConfig
from agent_forge.core.errors import DataError
from agent_forge.evaluate.tasks import unseen


@pytest.fixture
def context(data_config: DataConfig) -> evaluate.EvalContext:
    return evaluate.EvalContext(data=data_config, seed=3)


def test_all_kinds_are_there_from_the_first_items_on_and_splits_share_none(
    context: evaluate.EvalContext,
) -> None:
    members = {split: unseen.items(split, 60, context) for split in unseen.HELD_OUT}
    for items in members.values():
        assert {item["kind"] for item in items[:32]} == {"python", "languages", "other_languages"}
        assert len({item["cluster"] for item in items if item["kind"] != "python"}) == 8
        assert len({item["canonical"] for item in items}) == 60
    texts = [{item["canonical"] for item in items} for items in members.values()]
    assert len(set.union(*texts)) == sum(map(len, texts))
    assert any("的" in item["text"] for items in members.values() for item in items)
    with pytest.raises(DataError, match="no train split"):
        unseen.items("train", 4, context)


def test_what_is_kept_is_told_of_each_kind_alone(context: evaluate.EvalContext) -> None:
    """Bits double on languages and stay on code: kept 0.5 and 1, whatever the whole says."""
    items = unseen.items("validation", 40, context)
    sizes = np.asarray([len(item["text"].encode()) for item in items], np.float64)
    other = np.asarray([item["kind"] != "python" for item in items])
    parent = evaluate.scores_of("unseen", items, np.stack([2 * sizes, sizes], 1), "validation", 0)
    child = evaluate.scores_of(
        "unseen", items, np.stack([np.where(other, 4, 2) * sizes, sizes], 1), "validation", 0
    )
    metrics, rows = evaluate.kept_elsewhere(parent, child, 200, 0)
    assert {name: figures["value"] for name, figures in metrics.items()} == {
        "unseen_languages_kept": 0.5, "unseen_other_languages_kept": 0.5, "unseen_python_kept": 1.0,
    }  # fmt: skip
    assert {row["kind"]: (row["parent"], row["child"], row["n"]) for row in rows} == {
        "languages": (2.0, 4.0, 4), "other_languages": (2.0, 4.0, 4),
        "python": (2.0, 2.0, int((~other).sum())),
    }  # fmt: skip
    assert 0.5 < evaluate.retention("unseen", parent, child, 200, 0).ratio < 1
    assert "languages 0.500" in evaluate.kept_text(metrics)
    json.dumps(metrics, allow_nan=False)


def test_a_row_of_the_table_has_four_decimals() -> None:
    """Parent 1/3 and child 1/7 of the weight: 3/7 of the parent's bits are 2.3333 times kept."""
    parent, child = (
        evaluate.Scores(
            task="unseen", version=1, metric="bits", higher_is_better=False, chance=8.0,
            split="test", items_hash="same", mean=mean, interval=(0.0, 1.0), values=[mean] * 6,
            weights=[1.0] * 6, kinds=["python"] * 6,
        )
        for mean in (1 / 3, 1 / 7)
    )  # fmt: skip
    metrics, (row,) = evaluate.kept_elsewhere(parent, child, 50, 0)
    assert metrics["unseen_python_kept"]["value"] == pytest.approx(7 / 3)
    assert (row["parent"], row["child"], row["kept"]) == (0.3333, 0.1429, 2.3333)
    assert row["at least"] == round(row["at least"], 4)
