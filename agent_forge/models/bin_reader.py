"""Turn one PyTorch `.bin` file into safetensors: `python -I bin_reader.py SOURCE TARGET`.

`weights_only` refuses every pickle that asks for more than tensors. As a second barrier this runs
as a separate process, which does not have its parent's environment and may not start others. It
imports nothing from this package.
"""

import sys


def convert(source: str, target: str) -> None:
    """Write the tensors of `source` to `target`.

    Raises torch's own error for a pickle that holds more than tensors.
    """
    import torch
    from safetensors.torch import save_file

    state = torch.load(source, map_location="cpu", weights_only=True)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        inside = (
            ", ".join(map(str, list(state)[:6]))
            if isinstance(state, dict)
            else type(state).__name__
        )
        raise ValueError(
            f"it holds {inside}, not a dictionary of tensors; save model.state_dict() alone"
        )
    # Each tensor is copied, because tied tensors share memory, which safetensors does not store.
    save_file(
        {str(name): value.detach().clone().contiguous() for name, value in state.items()}, target
    )


def main() -> int:
    """Convert argv[1] to argv[2]; on failure print the reason as one line on stderr."""
    import resource

    import torch

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # From here on there is no new process or thread (root is exempt from this limit).
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    try:
        convert(sys.argv[1], sys.argv[2])
    except Exception as error:  # noqa: BLE001 - the parent reports it in one line
        print(" ".join(str(error).split())[:400], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
