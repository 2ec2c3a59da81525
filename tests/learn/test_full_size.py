"""Cognate at full size: one optimiser step of 25,083,528 parameters, batch 4 x 256, in less than 3
GB.
"""

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import resource, sys
from pathlib import Path
import torch, yaml
torch.set_num_threads(2)
from agent_forge.checkpoint import Workspace
from agent_forge.config import OptimConfig
from agent_forge.core.events import EventLog
from agent_forge.learn import TrainRequest, lm_loss, train
from agent_forge.models.cognate import CognateConfig, CognateForCausalLM

shape = yaml.safe_load(Path(sys.argv[1]).read_text())
shape.pop("kind")
torch.manual_seed(0)
model = CognateForCausalLM(CognateConfig(**shape))
assert sum(p.numel() for p in model.parameters()) == 25_083_528
ids = torch.randint(32000, (4, 256), generator=torch.Generator().manual_seed(0))
class Same:
    def batch(self, step):
        return {"input_ids": ids, "labels": ids}
optim = OptimConfig(method="muon", lr=3e-3, muon_lr=0.02, warmup_steps=1, cooldown_share=0.0, weight_decay=0.05,
                    beta1=0.9, beta2=0.95, clip_norm=1.0, average_share=0.0)
out = Workspace(Path(sys.argv[2]) / "out", phase="t", seed=0, config={})
records = train(model, TrainRequest(batches=Same(), loss_fn=lm_loss, stage="s", steps=2, optim=optim, seed=0,
                                    events=EventLog(None, "t"), out=out))
print(records[0].loss, records[1].loss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
def test_a_step_of_the_25m_model_fits_in_three_gigabytes(tmp_path: Path) -> None:
    shape = Path(__file__).parents[2] / "conf" / "model" / "25m.yaml"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(shape), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second, peak_bytes = (float(value) for value in done.stdout.split())
    assert second < first
    assert peak_bytes < 3e9
