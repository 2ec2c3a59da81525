"""Watch a model while it runs: hooks that remove themselves, the calls of a block, an early stop.

Reads what modules are called with and what they return; a hook may replace either.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from agent_forge.anatomy.stack import stream_out

Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and named arguments of a module
# Sees (module, args, kwargs); returns None, or the arguments to go on with.
Before = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Call | None]
# Sees (module, args, output); returns None, or the output to go on with.
After = Callable[[nn.Module, tuple[Any, ...], Any], Any]


class StopForward(Exception):
    """Ends a forward pass once its first layers are known; `run_until_stop` catches it."""


@contextmanager
def watching(
    *,
    before: Iterable[tuple[nn.Module, Before]] = (),
    after: Iterable[tuple[nn.Module, After]] = (),
) -> Iterator[None]:
    """Call hooks before or after their modules run, and remove them on every way out."""
    handles = []
    try:
        for module, look in before:
            handles.append(module.register_forward_pre_hook(look, with_kwargs=True))
        for module, look in after:
            handles.append(module.register_forward_hook(look))
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_until_stop(module: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Call a module so that its hooks see the pass; one of them may raise StopForward to end it."""
    with suppress(StopForward):
        module(*args, **kwargs)


def recorded_calls(
    model: nn.Module, block: nn.Module, *, once: bool, **inputs: Any
) -> tuple[list[Call], list[Tensor]]:
    """Return the arguments of each call of `block` while the model runs, and the stream it returns.

    once: the pass ends after the block's first call.
    inputs: what the model is called with.
    """
    calls: list[Call] = []
    streams: list[Tensor] = []

    def note_call(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    def note_stream(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        streams.append(stream_out(output))
        if once:
            raise StopForward

    with watching(before=[(block, note_call)], after=[(block, note_stream)]):
        run_until_stop(model, **inputs)
    return calls, streams
