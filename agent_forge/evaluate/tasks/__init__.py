"""Evaluation tasks, one file each: TASK, items(split, n, context), score(model, tokenizer, items, context)."""
