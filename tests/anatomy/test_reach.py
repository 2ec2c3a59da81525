"""How much of a model a method reaches, against counts by hand."""

from transformers import LlamaForCausalLM

from agent_forge.anatomy.reach import Reach, counted


def test_a_kind_of_half_a_percent_is_named_and_smaller_ones_are_summed_up() -> None:
    reach = Reach(1000, 900, {"a": 95, "b": 5})
    assert reach.line("trains") == "trains 90% of 1,000 weights; not reached: a 9.5%, b 0.5%"
    reach = Reach(1000, 900, {"b": 4, "c": 5, "a": 91})
    assert reach.line("trains") == (
        "trains 90% of 1,000 weights; not reached: a 9.1%, c 0.5%, "
        "norms, biases and other small tensors 0.4%"
    )


def test_all_of_a_model_leaves_nothing_and_of_an_empty_one_the_share_is_none() -> None:
    assert Reach(8, 8).line("codes") == "codes 100% of 8 weights; not reached: nothing"
    assert Reach(0, 0).share == 0
    assert Reach(8, 2).share == 0.25


def test_each_weight_is_counted_once_under_its_kind(tiny_llama: LlamaForCausalLM) -> None:
    sizes = {name: p.numel() for name, p in tiny_llama.named_parameters()}
    queries = [p for name, p in tiny_llama.named_parameters() if "q_proj" in name]
    reach = counted(tiny_llama, queries)
    norms = sum(size for name, size in sizes.items() if "norm" in name)
    outer = sum(size for name, size in sizes.items() if "embed" in name or "lm_head" in name)
    assert reach.total == sum(sizes.values())
    assert reach.reached == sum(size for name, size in sizes.items() if "q_proj" in name)
    assert reach.missed == {
        "norms and biases": norms,
        "embeddings and head": outer,
        "linear layers that settings leave out": reach.total - reach.reached - norms - outer,
    }
