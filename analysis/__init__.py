"""Costs and receptive fields of networks, benchmarks, explanations of scores and comparisons of runs, with pictures."""
