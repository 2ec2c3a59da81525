"""Several accelerators, without one: who takes which, and over what they talk."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agent_forge.core.device import pick_device
from agent_forge.core.errors import ConfigError
from agent_forge.learn import distribution
from agent_forge.search.evaluators import pool
from agent_forge.search.evaluators import ray as rays
from tests.search.planted import Planted, quadratic, settings


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch believe in two CUDA devices, as one of two processes of torchrun sees them."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")


@pytest.mark.usefixtures("two_cards")
def test_each_process_takes_its_own_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 1)
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="names one accelerator for 2 processes"):
        pick_device("cuda:0")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"runtime.processes=3: this machine has 2 accelerators"):
        pick_device("auto")


@pytest.mark.parametrize(("device", "backend"), [("cuda:1", "nccl"), ("cpu", "gloo")])
def test_processes_talk_by_nccl_on_cuda_and_gloo_elsewhere(
    device: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: dict[str, Any] = {}
    monkeypatch.setattr(distribution.ranks, "size", lambda: 2)
    monkeypatch.setattr(distribution.ranks, "rank", lambda: 1)
    monkeypatch.setattr(
        distribution.dist, "init_process_group", lambda name, **_: called.update(backend=name)
    )
    monkeypatch.setattr(
        torch.accelerator, "set_device_index", lambda index: called.update(index=index)
    )
    distribution.World(torch.device(device))
    assert called == (
        {"backend": "nccl", "index": 1} if device == "cuda:1" else {"backend": backend}
    )


class OnCuda(Planted):
    """A task whose workers need an accelerator each."""

    device = "cuda"


@pytest.mark.parametrize(("task", "width"), [(OnCuda, 2), (Planted, 3)])
def test_a_pool_has_a_worker_an_accelerator_where_the_task_needs_one(
    task: type[Planted], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(pool.os, "sched_getaffinity", lambda _: {0, 1, 2})
    opened = pool.open(task(quadratic), settings(workers=0, batch_candidates=8), lambda: None)
    assert opened.width == width


@pytest.mark.parametrize(
    ("task", "need", "width"), [(OnCuda, {"num_gpus": 1}, 2), (Planted, {"num_cpus": 1}, 4)]
)
def test_ray_gives_each_actor_a_gpu_where_the_task_needs_one(
    task: type[Planted], need: dict[str, int], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options_of_actor: dict[str, Any] = {}
    actor = SimpleNamespace(ready=SimpleNamespace(remote=object))

    def remote(**options: Any) -> Any:
        options_of_actor.update(options)
        return lambda _: SimpleNamespace(remote=lambda *_: actor)

    cluster = SimpleNamespace(
        is_initialized=lambda: True, cluster_resources=lambda: {"GPU": 2.0, "CPU": 4.0},
        put=lambda value: value, remote=remote,
    )  # fmt: skip
    monkeypatch.setattr(rays, "_ray", lambda: cluster)
    opened = rays.open(task(quadratic), settings(workers=0, batch_candidates=8), lambda: None)
    assert opened.width == width
    assert options_of_actor == {**need, "max_restarts": 0}
