"""Training: the state, the loss, the optimizer, the compiled step, evaluation, checkpoints and metrics."""
