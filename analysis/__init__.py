"""Costs and receptive fields of networks, counted in the traced program; benchmarks; and pictures of both."""

from analysis import effective_receptive_field
from analysis.costs import Layer
from analysis.shape import draw_shapes
from analysis.summary import Summary, read_reference, summarize

__all__ = ["Layer", "Summary", "draw_shapes", "effective_receptive_field", "read_reference", "summarize"]
