"""Print the directory of the last accepted checkpoint of a run: `python scripts/final_agent.py
outputs/run_all`.
"""

import sys
from pathlib import Path

from agent_forge.pipeline.report import read_run
from agent_forge.pipeline.run_all import final_checkpoint


def main() -> int:
    """Print the path, or say that there is none."""
    run_dir = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/run_all")
    final, _ = final_checkpoint(read_run(run_dir))
    if not final:
        print(f"no finished phase below {run_dir}; run `forge run-all` first", file=sys.stderr)
        return 74
    print(final)
    return 0


if __name__ == "__main__":
    sys.exit(main())
