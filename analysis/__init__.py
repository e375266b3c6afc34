"""Networks taken apart: costs and receptive fields, read off the program that runs."""

from analysis.costs import Layer
from analysis.summary import Summary, read_reference, summarize

__all__ = ["Layer", "Summary", "read_reference", "summarize"]
