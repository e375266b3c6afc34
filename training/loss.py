"""The training loss, and the sums from which every metric is computed."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from input_pipeline import MixedLabels

Outputs = jax.Array | tuple[jax.Array, list[jax.Array]]
Labels = jax.Array | MixedLabels
Loss = Callable[[jax.Array, Labels], jax.Array]
"""From logits (N, classes) and labels to each image's loss, (N,)."""


def other_loss(config: ConfigDict) -> Loss | None:
    """Returns the loss that training minimises by config.loss; None for the cross-entropy of the softmax."""
    if config.loss == "cross_entropy":
        return None
    return functools.partial(
        binary_cross_entropy, label_smoothing=config.label_smoothing, target_threshold=config.target_threshold
    )


def cross_entropy(logits: jax.Array, labels: Labels, label_smoothing: float = 0.0) -> jax.Array:
    """Returns each image's cross-entropy in nats, shape (N,), from logits (N, classes) and labels (N,).

    Label smoothing (Szegedy et al. 2015, section 7) spreads that share of the target evenly over all classes. For mixed
    labels the result is the weighted mean of the two labels' cross-entropies. That is equal to the cross-entropy with
    the mixed target, because cross-entropy is linear in the target.
    """
    if isinstance(labels, MixedLabels):
        own, other = (cross_entropy(logits, label, label_smoothing) for label in (labels.label, labels.other))
        return labels.share * own + (1 - labels.share) * other
    if not label_smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.softmax_cross_entropy(logits, _targets(logits, labels, label_smoothing))


def _targets(logits: jax.Array, labels: jax.Array, label_smoothing: float) -> jax.Array:
    """Returns the target of each class, (N, classes), for integer labels (N,)."""
    return optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), label_smoothing)


def binary_cross_entropy(
    logits: jax.Array, labels: Labels, label_smoothing: float = 0.0, target_threshold: float = 0.0
) -> jax.Array:
    """Returns each image's binary cross-entropy in nats, the mean over the classes, shape (N,).

    Each class is a yes-or-no question with a sigmoid of its own (Wightman et al. 2021, ResNet strikes back, section 2),
    so both labels of a mixed image can be right.

    Args:
      logits: (N, classes).
      labels: (N,) integers, or mixed labels.
      label_smoothing: share of the target spread over all classes, [0, 1).
      target_threshold: targets above it, after smoothing and mixing, become 1 and the others 0; 0: they stay.
    """
    if isinstance(labels, MixedLabels):
        share = labels.share[:, None].astype(logits.dtype)
        own, other = (_targets(logits, label, label_smoothing) for label in (labels.label, labels.other))
        targets = share * own + (1 - share) * other
    else:
        targets = _targets(logits, labels, label_smoothing)
    if target_threshold:
        targets = (targets > target_threshold).astype(logits.dtype)
    return optax.sigmoid_binary_cross_entropy(logits, targets).mean(-1)


def divergence(logits: jax.Array, teacher_logits: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Returns each image's Kullback-Leibler divergence from the teacher in nats, times temperature^2, shape (N,).

    Hinton et al. 2015, section 2.1: the factor keeps the size of the gradient independent of the temperature.

    Args:
      logits: (N, classes).
      teacher_logits: (N, classes).
      temperature: divisor of both.
    """
    own, target = (jax.nn.log_softmax(each / temperature) for each in (logits, teacher_logits))
    return temperature**2 * jnp.sum(jnp.exp(target) * (target - own), axis=-1)


class Lesson(NamedTuple):
    """What a teacher says about a batch.

    Attributes:
      logits: (N, classes).
      weight: share of the divergence in the main classifier's loss.
      temperature: of the divergence.
    """

    logits: jax.Array
    weight: float
    temperature: float


def weighted_loss(
    outputs: Outputs,
    labels: Labels,
    aux_weights: tuple[float, ...] = (),
    label_smoothing: float = 0.0,
    other: Loss | None = None,
    lesson: Lesson | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the batch's mean loss and the sums from which the metrics are computed.

    The loss is the main classifier's plus each auxiliary classifier's times its weight (Szegedy et al. 2014,
    section 5). The metric `loss` is the main classifier's cross-entropy alone, as in an evaluation, but with smoothed
    and mixed labels. With auxiliary classifiers, `other` or a lesson, the metric `total_loss` is the loss returned
    here.

    Args:
      outputs: of a network: logits (N, classes), or (logits, [auxiliary logits in depth order]).
      labels: (N,) integers in [0, classes), or mixed labels, whose accuracies count the label with the larger share.
      aux_weights: one weight for each auxiliary classifier.
      label_smoothing: share of the target spread over all classes, [0, 1).
      other: the loss that all classifiers minimise in place of the cross-entropy.
      lesson: the teacher's logits, if the run has a teacher; the main classifier's loss is then (1 - weight) times its
        loss without a teacher plus weight times the divergence from the teacher.
    """
    logits, auxiliary_logits = outputs if isinstance(outputs, tuple) else (outputs, [])
    shown = cross_entropy(logits, labels, label_smoothing)
    loss_of = other or functools.partial(cross_entropy, label_smoothing=label_smoothing)
    main = other(logits, labels) if other else shown
    if lesson:
        taught = divergence(logits, lesson.logits, lesson.temperature)
        main = (1 - lesson.weight) * main + lesson.weight * taught
    auxiliary = [loss_of(aux, labels) for aux in auxiliary_logits]
    losses = main + sum(weight * loss for weight, loss in zip(aux_weights, auxiliary, strict=True))
    labels = labels.label if isinstance(labels, MixedLabels) else labels
    sums = classification_sums(logits, labels, shown, jnp.ones_like(shown))
    if auxiliary or other or lesson:
        sums["total_loss"] = jnp.sum(losses)
        sums |= {f"aux{index}_loss": jnp.sum(loss) for index, loss in enumerate(auxiliary, start=1)}
    return jnp.mean(losses), sums


def classification_sums(
    logits: jax.Array, labels: jax.Array, losses: jax.Array, mask: jax.Array
) -> dict[str, jax.Array]:
    """Returns sums over the images whose mask is 1: loss, accuracy_top1, accuracy_top5 and the number of examples.

    An image is correct in top-k if fewer than k classes rank above its label; of classes with equal logits the lower
    number ranks first. With five classes or fewer every image is correct in top-5.

    Args:
      logits: (N, classes).
      labels: (N,).
      losses: (N,).
      mask: (N,), 1 for an image that counts and 0 for padding.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    before = jnp.arange(logits.shape[-1]) < labels[:, None]
    rank = jnp.sum((logits > own) | ((logits == own) & before), axis=-1)
    return {
        "loss": jnp.sum(jnp.where(mask > 0, losses, 0)),
        "accuracy_top1": jnp.sum(mask * (rank < 1)),
        "accuracy_top5": jnp.sum(mask * (rank < 5)),
        "examples": jnp.sum(mask),
    }


def gradient_norm_sums(gradient: dict[str, Any], examples: jax.typing.ArrayLike) -> dict[str, jax.Array]:
    """Returns the 2-norms of the whole gradient and of each part of the network, each multiplied by `examples`.

    When `means` divides the sums by the number of examples, the result is the mean norm over the steps.

    Args:
      gradient: of the loss, a nested dict whose first level is the network's parts: conv1, stage1, head.
      examples: number of images in the step.
    """
    norms = {f"gradient_norm/{part}": optax.tree.norm(inner) for part, inner in gradient.items()}
    norms["gradient_norm"] = optax.tree.norm(list(norms.values()))
    return {name: norm * examples for name, norm in norms.items()}


def means(sums: dict[str, float]) -> dict[str, float]:
    """Returns the metrics: each sum divided by the number of examples, which itself is left out."""
    return {name: float(total) / float(sums["examples"]) for name, total in sums.items() if name != "examples"}


def zero_sums(
    num_aux_heads: int = 0, gradient_parts: Iterable[str] = (), other_loss: bool = False
) -> dict[str, np.ndarray]:
    """Returns all sums at zero, float32.

    Args:
      num_aux_heads: how many auxiliary classifiers the network has.
      gradient_parts: names of the network's parts whose gradient norms are logged; empty if none are.
      other_loss: whether training minimises another loss than the main classifier's cross-entropy.
    """
    names = ["loss", "accuracy_top1", "accuracy_top5", "examples"]
    if num_aux_heads or other_loss:
        names += ["total_loss", *(f"aux{index}_loss" for index in range(1, num_aux_heads + 1))]
    if parts := list(gradient_parts):
        names += ["gradient_norm", *(f"gradient_norm/{part}" for part in parts)]
    return {name: np.zeros((), np.float32) for name in names}
