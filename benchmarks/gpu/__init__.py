"""Everything that waits for a GPU, in one command: ``python -m benchmarks.gpu``.

``stages/`` has a file for each stage: what it runs and what it makes of it. ``session.py`` is what a stage
works with, and the only place that knows a dry run from a real one; ``runner.py`` gives each stage a process
and a time limit; ``summary.py`` writes the page; ``wheels.py`` brings packages to a machine without network.
"""
