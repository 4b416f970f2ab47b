"""Experts: causal language models tuned on the selected subsets, their answers, and how these are judged."""
