"""Evaluation tasks, one file each: TASK, items(split, n, context) and score(model, ...)."""
