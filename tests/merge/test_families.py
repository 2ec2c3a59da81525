"""Linear merges and frankenmerges over many families of transformers: right, or refused by name;
never silently wrong.
"""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from agent_forge.core.errors import ConfigError
from agent_forge.merge import job as merge_job
from agent_forge.merge import layers

from . import families

# Families whose layers depend on their number in the stack in a way that no config can say
# otherwise.
REFUSED_STACKS = ("DeepseekV3Config", "DiffLlamaConfig")


def merge(recipe: dict[str, object], folder: Path) -> Path:
    file = folder / "recipe.yml"
    file.write_text(yaml.safe_dump(recipe))
    job = merge_job.prepare(file)
    try:
        return merge_job.run(job, folder / "out").path
    finally:
        job.close()


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_linear_merge_is_the_model_with_the_mean_of_the_weights(
    family: str, tmp_path: Path
) -> None:
    one = families.make_model(family, 0)
    two = families.make_model(family, 1, one)
    families.save(one, tmp_path / "one")
    families.save(two, tmp_path / "two")
    models = [
        {"model": name, "parameters": {"weight": weight}}
        for name, weight in (("one", 0.25), ("two", 0.75))
    ]
    out = merge({"merge_method": "linear", "models": models}, tmp_path)
    truth = copy.deepcopy(one)
    with torch.no_grad():
        for parameter, other in zip(truth.parameters(), two.parameters(), strict=True):
            parameter.mul_(0.25).add_(other, alpha=0.75)
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(
        families.logits(loaded.eval()), families.logits(truth), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_frankenmerge_of_six_layers_from_four_computes_what_the_stacked_layers_compute(
    family: str, tmp_path: Path
) -> None:
    one = families.make_model(family, 0)
    two = families.make_model(family, 1, one)
    families.save(one, tmp_path / "one")
    families.save(two, tmp_path / "two")
    slices = [
        {"sources": [{"model": "one", "layer_range": [0, 3]}]},
        {"sources": [{"model": "two", "layer_range": [1, 4]}]},
    ]
    recipe = {"merge_method": "passthrough", "slices": slices}
    if family in REFUSED_STACKS:
        slices[1]["sources"][0]["layer_range"] = [0, 3]
        with pytest.raises(ConfigError, match=r"config\.json: \w+ "):
            merge(recipe, tmp_path)
        return
    out = merge(recipe, tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    path = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]
    truth = families.stacked(one, two, path)
    torch.testing.assert_close(
        families.logits(loaded.eval()), families.logits(truth), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("offset", [0, 1, 2, 3])
def test_layers_of_another_kind_at_every_nth_place_move_by_whole_periods(offset: int) -> None:
    """A layer keeps its kind where old and new place, both counted from the offset, agree."""
    donor = {"attn_layer_period": 4, "attn_layer_offset": offset}
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 0, 1, 2, 3], [0, 1, 2, 3, 0, 1, 2, 3]):
        layers._refuse_places(donor, [(donor, layer) for layer in order], len(order))
    for order in ([1, 2, 3], [0, 1, 2, 4], [2, 3, 0, 1]):
        with pytest.raises(ConfigError, match="gives every 4th layer another kind"):
            layers._refuse_places(donor, [(donor, layer) for layer in order], len(order))
