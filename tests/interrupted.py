"""An interruption of a training run by a number of steps instead of a signal."""


class InterruptedAfter:
    """An interruption that training asks after each call of the step whether a signal came: after so many, it did."""

    def __init__(self, calls: int):
        self.calls = calls

    def __bool__(self):
        self.calls -= 1
        return self.calls < 0

    def agree(self):
        """There is one process."""
