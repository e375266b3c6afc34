"""Costs and receptive fields of networks, counted in the traced program; benchmarks; and pictures of both."""
