"""A `forge` without work for the routes' tests: settings of bitnet that a client may send steer it.

train.steps: how many events; gate.samples: milliseconds between them; seed: how it ends, 0 well,
1 rejected by its gate, 2 failed, 3 killed, 4 never. `cognate` is the real phase, for measurements.
"""

import os
import sys

from scripts.bench.serve_stub import claim_exit_file, leave_exit, main

ENDS = ("done", "rejected", "failed", "crash", "hang")


def translated(arguments: list[str]) -> list[str]:
    """Return forge's settings, then the stub's own."""
    settings = dict(part.split("=", 1) for part in arguments[1:] if "=" in part)
    return [
        *arguments, f"steps={settings.get('train.steps', 3)}",
        f"pause={int(settings.get('gate.samples', 0)) / 1000}",
        f"end={ENDS[int(settings.get('seed', 0))]}",
    ]  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "cognate":
        os.execv(sys.executable, [sys.executable, "-m", "agent_forge", *sys.argv[1:]])
    exit_file = claim_exit_file()
    code = main(translated(sys.argv[1:]))
    leave_exit(exit_file, code)
    sys.exit(code)
