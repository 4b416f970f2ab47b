"""The parts of ``benchmarks/paper.py``: its plan, the stages of a seed, what the seeds say together, verdicts, the page."""
