"""Benches: one file per claim, with what it claims (CLAIM), the bar it must meet (BAR), and `run`.

    python -m scripts.bench list                     every bench with its claim and bar
    python -m scripts.bench run NAME [arguments]     measure; writes results/NAME.json and .md
    python -m scripts.bench render                   docs/results.md and README from results/

`run(arguments) -> Result` prints what it measures on the way. Files without CLAIM are shared
helpers: result.py (the record), stats.py (pairs, medians, intervals), perplexity.py (held-out
text), engines.py (training engines), render.py (the pages).
"""
