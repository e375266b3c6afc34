"""Networks taken apart: costs and receptive fields, read off the program that runs, and pictures of them."""

from analysis import effective_receptive_field
from analysis.costs import Layer
from analysis.shape import draw_shapes
from analysis.summary import Summary, read_reference, summarize

__all__ = ["Layer", "Summary", "draw_shapes", "effective_receptive_field", "read_reference", "summarize"]
