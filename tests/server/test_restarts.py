"""A server of jobs that is killed at the wrong moment: the next one finds the truth."""

from pathlib import Path

from scripts.bench.serve_restarts import SCENES, Cycles, flat

CYCLES = len(SCENES)


def test_no_kill_of_the_server_makes_a_job_run_on_paper_or_loses_an_event(tmp_path: Path) -> None:
    cycles = Cycles(tmp_path / "root", seed=0)
    cycles.run(CYCLES)
    cycles.finish()
    assert not cycles.problems
    assert cycles.events > CYCLES
    assert set(cycles.scenes) == set(SCENES)


def test_memory_and_handles_do_not_grow_with_the_number_of_jobs(tmp_path: Path) -> None:
    usage = flat(tmp_path / "root", jobs=20)
    resident, handles = usage["all"][0] - usage["tenth"][0], usage["all"][1] - usage["tenth"][1]
    assert handles <= 2
    assert resident < 8e6
