"""Measurements of the whole system: ``python -m benchmarks.NAME --help``, from the repository's root.

Each writes ``NAME.json`` and ``NAME.md`` into ``docs/results``. Figures are ratios of rounds that
were run in turn, with their spread, since a rate alone says more about the machine than about the code.
"""
