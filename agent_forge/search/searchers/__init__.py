"""Search methods: ga, cmaes, nsga2, random_search.

Each has make(space, settings, seed) -> Searcher.
"""
