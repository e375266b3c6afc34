"""Exact evaluation during training: every image counts once, for any batch size and any number of devices."""

from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from input_pipeline import DamagedImageError
from training.interruption import Interruption
from training.loss import means
from training.step import Batch, Sums


def evaluate_each(
    eval_step: Callable[[dict, dict, Batch], Sums],
    variables: Sequence[tuple[dict, dict]],
    batches: Iterable[Batch],
    interruption: Interruption | None = None,
) -> list[dict[str, float]] | None:
    """Evaluates several sets of weights of one network on each batch; returns None after an interruption.

    The results are loss (nats), accuracy_top1, accuracy_top5 (shares) and examples, the number of images that were
    evaluated: all except damaged ones that the loader left out.

    Args:
      eval_step: from training.step.
      variables: a pair of params and batch_stats for each set.
      batches: padded batches on the devices, with `mask`.
      interruption: once it is true, the evaluation stops and returns None.

    Raises:
      DamagedImageError: if the loader left every image out.
    """
    sums = []
    for batch in batches:
        if interruption:
            return None
        sums.append([eval_step(params, batch_stats, batch) for params, batch_stats in variables])
        jax.block_until_ready(sums[-3:-2])  # limits the number of batches that wait on the devices
    # The host adds the sums in float64, so that counts are exact for any number of images.
    totals = jax.tree.map(lambda *parts: float(np.sum(parts, dtype=np.float64)), *jax.device_get(sums))
    if not totals[0]["examples"]:
        raise DamagedImageError("not one image of the evaluation could be decoded; choose another split or dataset")
    return [means(total) | {"examples": int(total["examples"])} for total in totals]
