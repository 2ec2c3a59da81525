"""Evolutionary search over any genome: population, selection, crossover, mutation, racing, and a journal.

A search is a pure function of its seed and of what candidates score; scores are journalled as they arrive, so a
search that was killed replays from the journal and ends in the same genome. Knows nothing of models;
imports nothing heavy: `settings` (what a config holds), `population`, `race`, `journal`, `evolve`.
"""
