"""Search over any genome: search methods, a race on shared items, a journal, islands.

A search is a pure function of its seed and of what candidates score; scores are journalled as they
arrive, so a search that was killed replays from the journal and ends in the same genome. Knows
nothing of models. A search method is one file in `searchers/`, a way to run candidates (this
process, a process pool, Ray) one file in `evaluators/`, both found by name. Importing `settings`
(what a config holds) loads nothing heavy.
"""
