"""A pretend accelerator: tensors that say they lie on another device, hold CPU data, and refuse to
meet CPU tensors.

Reads and writes nothing. Inside `pretend_accelerator()` torch believes in one accelerator, `lazy`
(a device type that no build of torch computes on, and whose backward pass autograd runs in the
calling thread). Its results equal the CPU's to the bit, so that a whole phase can be compared
with a run on the CPU. As on CUDA, an operation may copy between the two devices, index with indices
of the CPU, and use a CPU tensor without dimensions; any other mix raises "two devices".
"""

import contextlib
import traceback
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

KIND = "lazy"
DEVICE = torch.device(KIND, 0)
aten = torch.ops.aten
# Operations that CUDA lets read both devices: copies, and those whose indices may lie on the CPU.
COPIES = {aten.copy_, aten._to_copy, aten._copy_from, aten._foreach_copy_}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
# For these operations CUDA makes the host wait until the device has finished all earlier work.
WAITS = {
    aten._local_scalar_dense, aten.nonzero, aten.bincount, aten.masked_select, aten.equal,
    aten.is_nonzero, aten._unique2,
}  # fmt: skip
# Attributes and methods that read memory directly are answered by the held tensor.
READS_MEMORY = {Tensor.data_ptr, Tensor.untyped_storage, Tensor.tolist, Tensor.storage_offset}
# Autocast casts the operands of these operations.
PRODUCTS = {
    torch.nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, torch.bmm,
    Tensor.mm, Tensor.bmm, torch.addmm, torch.baddbmm, torch.einsum,
    torch.nn.functional.scaled_dot_product_attention,
}  # fmt: skip


class Pretend(Tensor):
    """A tensor on the pretend accelerator; `held` is the CPU tensor with its data."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretend":
        wrapper: Any = Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        wrapper.held = held
        return wrapper

    def __init__(self, held: Tensor) -> None:
        """Do nothing: all is done in `__new__`."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer what reads memory, and give all else to the operations."""
        if func in READS_MEMORY:
            return func(args[0].held, *args[1:])
        if func is Tensor.numpy or func is Tensor.__array__:
            raise TypeError(
                f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            args[0].held = args[1].held
        return result

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation on what is held."""
        return compute(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pretend":
        copied = memo.get(id(self))
        if copied is None:
            copied = memo[id(self)] = Pretend(self.held.clone()).requires_grad_(self.requires_grad)
            copied.__dict__.update(
                {key: value for key, value in self.__dict__.items() if key != "held"}
            )
        return copied

    def __repr__(self, **_: Any) -> str:
        return f"Pretend({self.held!r})"


_waits: list[str] | None = None


@contextlib.contextmanager
def counted_waits() -> Iterator[list[str]]:
    """Yield a list that grows by the name of each operation for which the host would wait for CUDA.

    These are reads of a number, whatever has a size that depends on values (a mask that picks,
    too), and copies to the CPU. Copies to the device are not counted, nor is `tolist`, by which a
    training step reads all its numbers at once.
    """
    global _waits
    before, _waits = _waits, []
    try:
        yield _waits
    finally:
        _waits = before


def _is_wait(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    if func.overloadpacket in INDEXED:
        masks = any(
            value is not None and value.dtype in (torch.bool, torch.uint8) for value in args[1]
        )
        # A single value for all places of a mask is filled in without counting them.
        return masks and (func.overloadpacket is aten.index or args[2].numel() != 1)
    if func.overloadpacket in COPIES:
        device = args[0].device if func.overloadpacket is aten.copy_ else kwargs.get("device")
        return device is not None and not _is_pretend(device)
    return func.overloadpacket in WAITS


def _caller() -> str:
    """Return the last lines of code outside torch and this file, innermost first."""
    frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename][:-3]
    return " < ".join(
        f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}" for frame in frames[:-5:-1]
    )


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return the result of an operation, on the device where CUDA would leave it.

    Raises RuntimeError ("two devices") where the operation meets tensors of both devices that it
    may not mix.
    """
    inputs = list(_tensors((args, kwargs.values())))
    there = any(isinstance(value, Pretend) for value in inputs)
    device = kwargs.get("device")
    if (there or _is_pretend(device)) and kwargs.get("generator") is not None:
        raise RuntimeError(f"two devices: {func} on {DEVICE} draws from a generator of the CPU")
    if there:
        if _waits is not None and _is_wait(func, args, kwargs):
            _waits.append(f"{func} in {_caller()}")
        if func.overloadpacket not in COPIES:
            _refuse_two_devices(func, args, inputs)
        args = _held(args)
        kwargs = {key: _held(value) for key, value in kwargs.items()}
    if device is not None:
        there = _is_pretend(device)
        kwargs = {**kwargs, "device": torch.device("cpu") if there else device}
    elif there and func.overloadpacket in COPIES:
        there = isinstance(inputs[0], Pretend)
    result = func(*args, **kwargs)
    return (
        _wrapped(result, {id(value.held): value for value in inputs if isinstance(value, Pretend)})
        if there
        else result
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, type({}.values()))):
        for part in value:
            yield from _tensors(part)


def _held(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_held, value))
    return value.held if isinstance(value, Pretend) else value


def _wrapped(value: Any, wrappers: dict[int, Pretend]) -> Any:
    """Return a result on the pretend device; an operation in place returns its input."""
    if isinstance(value, (list, tuple)):
        return type(value)(_wrapped(part, wrappers) for part in value)
    if type(value) is not Tensor:
        return value
    same = wrappers.get(id(value))
    return Pretend(value) if same is None else same


def _refuse_two_devices(func: Any, args: Any, inputs: list[Tensor]) -> None:
    if func.overloadpacket in INDEXED:  # (tensor, indices, values ...)
        inputs = [
            value for place, value in enumerate(args) if place != 1 and isinstance(value, Tensor)
        ]
        if not any(isinstance(value, Pretend) for value in inputs):
            raise RuntimeError(f"two devices: {func} indexes a CPU tensor by indices on {DEVICE}")
    for value in inputs:
        if not isinstance(value, Pretend) and value.ndim:
            raise RuntimeError(
                f"two devices: {func} got a tensor {tuple(value.shape)} on the CPU and one on {DEVICE}"
            )


class _Operations(TorchDispatchMode):
    """Make factories and `.to` on the pretend device return its tensors."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # dynamo's wrapper costs more than the operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What is decided above the operations: autocast, and `torch.tensor`, which reads its data
    without a mode.
    """

    dtype: torch.dtype | None = None  # autocast's dtype; None where it is off

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and _is_pretend(kwargs.get("device")):
            return func(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if self.dtype is not None and func in PRODUCTS:
            args, kwargs = tree_map_only(Pretend, self._cast, (args, kwargs))
        return func(*args, **kwargs)

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self.dtype) if value.is_floating_point() else value

    @contextlib.contextmanager
    def _region(self, dtype: torch.dtype | None, enabled: bool) -> Iterator[None]:
        before, self.dtype = self.dtype, (dtype or torch.bfloat16) if enabled else None
        try:
            yield
        finally:
            self.dtype = before

    def autocast(self, real: Any) -> Any:
        """Return the replacement of `torch.autocast`."""

        def autocast(
            kind: str, dtype: torch.dtype | None = None, enabled: bool = True, **others: Any
        ) -> Any:
            return (
                self._region(dtype, enabled)
                if kind == KIND
                else real(kind, dtype, enabled, **others)
            )

        return autocast

    def is_autocast_enabled(self, real: Any) -> Any:
        """Return the replacement of `torch.is_autocast_enabled`."""
        return lambda *kind: self.dtype is not None if kind == (KIND,) else real(*kind)

    def get_autocast_dtype(self, real: Any) -> Any:
        """Return the replacement of `torch.get_autocast_dtype`."""
        return lambda kind: self.dtype if kind == KIND else real(kind)


def _is_pretend(device: Any) -> bool:
    return device is not None and torch.device(device).type == KIND


@contextlib.contextmanager
def pretend_accelerator() -> Iterator[torch.device]:
    """Let torch believe in one accelerator while the context lasts.

    Yield it, as `current_accelerator` names it.
    """
    named, functions = torch.device(KIND), _Functions()
    known: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True, "current_accelerator": lambda **_: named,
        "device_count": lambda: 1, "synchronize": lambda *_: None,
    }  # fmt: skip
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    # tied weights stay tied, as on CUDA
    torch.__future__.set_swap_module_params_on_conversion(True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            mock.patch.object(torch, KIND, SimpleNamespace(device_count=lambda: 1), create=True)
        )
        for name, answer in known.items():
            stack.enter_context(mock.patch.object(torch.accelerator, name, answer))
        for name in ("autocast", "is_autocast_enabled", "get_autocast_dtype"):
            stack.enter_context(
                mock.patch.object(torch, name, getattr(functions, name)(getattr(torch, name)))
            )
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swaps)
        stack.enter_context(_Operations())
        stack.enter_context(functions)
        yield named
