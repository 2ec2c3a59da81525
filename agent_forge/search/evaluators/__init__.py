"""Backends: in_process, pool, ray. Each has open(task, settings, check_stop) -> Evaluator."""
