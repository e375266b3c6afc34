"""Vision transformers.

Dosovitskiy et al. 2020, An image is worth 16x16 words: transformers for image recognition at scale.
Beyer, Zhai, Kolesnikov 2022, Better plain ViT baselines for ImageNet-1k.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.layers import (
    Classifier,
    Constant,
    Conv,
    Dense,
    Dropout,
    LayerNorm,
    Module,
    Normal,
    StochasticDepth,
    lecun_uniform,
    parameter,
    xavier_uniform,
)
from models.network import TENSORFLOW_PIXELS, Entry, Network
from models.operations import attend, store

DEPTH = 12  # blocks of ViT-Ti, ViT-S and ViT-B


def qkv_uniform(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """xavier_uniform for three dense layers side by side, (I, 3 O)."""
    return np.concatenate([xavier_uniform(random, (shape[0], shape[1] // 3)) for _ in range(3)], axis=1)


class Embedding(Module):
    """The class token in front of the patches, and learned position embeddings: section 3.1, equation 1."""

    def __init__(self, width: int, grid: int):
        """Builds the parameters; grid is the number of patches a side of the image."""
        self.class_token = parameter((1, 1, width), Constant(0))
        self.position = parameter((1, 1 + grid**2, width), Normal(0.02))
        self.dtype = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps patches (N, H, W, C) to a sequence (N, 1 + H W, C); other grids get interpolated positions."""
        images, height, width, features = x.shape
        position = resize_positions(self.position.get_value(), (height, width)).astype(self.dtype)
        class_token = self.class_token.get_value().astype(self.dtype)
        class_tokens = jnp.broadcast_to(class_token, (images, 1, features))
        return jnp.concatenate((class_tokens, x.reshape(images, -1, features)), axis=1) + position


def resize_positions(position: Any, grid: tuple[int, int]) -> Any:
    """Interpolates the position embeddings of a square grid to another grid: section 3.2.

    As in timm the interpolation is bicubic and antialiased.

    Args:
      position: (1, P + S S, C), a JAX or NumPy array: P = 0 or 1 embeddings of a class token, then those of the S x S
        patches by rows.
      grid: (height, width) of the new grid, H and W.

    Returns:
      (1, P + H W, C), of the same type.
    """
    side = math.isqrt(position.shape[1])
    others, features = position.shape[1] - side**2, position.shape[2]
    if grid == (side, side):
        return position
    rows, columns = (_bicubic_weights(side, size).astype(position.dtype) for size in grid)
    resized = (rows @ position[0, others:].reshape(side, -1)).reshape(grid[0], side, features)
    resized = (columns @ resized).reshape(1, -1, features)
    stack = np.concatenate if isinstance(position, np.ndarray) else jnp.concatenate
    return stack((position[:, :others], resized), axis=1)


def _bicubic_weights(size: int, new_size: int) -> np.ndarray:
    """Returns the share of each of `size` values in each of `new_size`, (new_size, size): Keys 1981, a = -1/2."""
    scale = size / new_size
    centers = (np.arange(new_size)[:, None] + 0.5) * scale - 0.5
    x = np.abs(np.arange(size) - centers) / max(scale, 1)  # antialiasing: the kernel is as wide as what it shrinks
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


def fit_positions(path: tuple[Any, ...], array: Any, shape: tuple[int, ...]) -> Any:
    """Returns the value of a variable from weights for another image size; only position embeddings depend on it.

    Args:
      path: of the variable in the network.
      array: its value in the weights.
      shape: of the variable.

    Returns:
      The array, resized to the shape if it has the position embeddings of another square grid.
    """
    if path[-1:] != ("position",) or array.ndim != 3 or array.shape[2] != shape[2]:
        return array
    side, old_side = math.isqrt(shape[1]), math.isqrt(array.shape[1])
    if shape[1] - side**2 != array.shape[1] - old_side**2:
        return array
    return resize_positions(array, (side, side))


class SinCosEmbedding(Module):
    """Fixed position embeddings, half of the features for each axis, and no class token: Beyer 2022; MoCo v3's."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps patches (N, H, W, C), C a multiple of 4, to a sequence (N, H W, C)."""
        images, height, width, features = x.shape
        frequencies = 10_000.0 ** -np.linspace(0, 1, features // 4)
        rows, columns = (
            axis.reshape(-1, 1) * frequencies for axis in np.meshgrid(range(height), range(width), indexing="ij")
        )
        position = np.concatenate((np.sin(columns), np.cos(columns), np.sin(rows), np.cos(rows)), axis=1)
        return x.reshape(images, -1, features) + position.astype(x.dtype)


class Attention(Module):
    """Multi-head self-attention: appendix A."""

    def __init__(self, width: int, heads: int):
        """Builds the layers; queries, keys and values come from one dense layer."""
        self.qkv = Dense(width, 3 * width, qkv_uniform, Constant(0))
        self.out = Dense(width, width, xavier_uniform, Constant(0))
        self.heads = heads

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, length, C) to the same shape."""
        images, length, width = x.shape
        qkv = self.qkv(x).reshape(images, length, 3, self.heads, width // self.heads)
        return self.out(attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).reshape(x.shape))


class MLP(Module):
    """Two dense layers with a GELU between them, four times as wide inside: section 3.1."""

    def __init__(self, width: int, dropout_rate: float):
        """Builds the layers."""
        self.dense1 = Dense(width, 4 * width, xavier_uniform, Normal(1e-6))
        self.dropout1 = Dropout(dropout_rate)
        self.dense2 = Dense(4 * width, width, xavier_uniform, Normal(1e-6))
        self.dropout2 = Dropout(dropout_rate)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, length, C) to the same shape."""
        x = self.dropout1(jax.nn.gelu(self.dense1(x), approximate=False))
        return self.dropout2(self.dense2(x))


class Block(Module):
    """Attention and an MLP, each behind a normalisation and beside a shortcut: equations 2 and 3; Fig. 1, right."""

    def __init__(self, width: int, heads: int, dropout_rate: float):
        """Builds the layers."""
        self.norm1 = LayerNorm(width)
        self.attention = Attention(width, heads)
        self.dropout = Dropout(dropout_rate)
        self.stochastic_depth1 = StochasticDepth()
        self.norm2 = LayerNorm(width)
        self.mlp = MLP(width, dropout_rate)
        self.stochastic_depth2 = StochasticDepth()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (N, length, C) to the same shape."""
        x = store(x + self.stochastic_depth1(self.dropout(self.attention(self.norm1(x)))))
        return store(x + self.stochastic_depth2(self.mlp(self.norm2(x))))


class ViT(Network):
    """The networks of Table 1, and smaller ones: Ti has 192 features in 3 heads, S 384 in 6, B 768 in 12."""

    def __init__(
        self,
        patch: int,
        width: int,
        num_classes: int,
        channels: int,
        dropout_rate: float,
        image_size: int = 224,
    ):
        """Builds the layers.

        Args:
          patch: side of a patch, in pixels.
          width: number of features of a token; each head of the attention has 64.
          num_classes: number of classes.
          channels: number of channels of the images.
          dropout_rate: dropout rate behind the position embeddings and all dense layers but qkv: appendix B.1. Table 3
            has 0.1; later recipes, Beyer's, DeiT's and torchvision's, have none.
          image_size: side of the images, in pixels, whose patches have a position embedding each.
        """
        self.patch, self.width = patch, width
        self.patches = Conv(channels, width, patch, patch, 0, 1, True, lecun_uniform, Constant(0))
        self.set_image_size(image_size)
        self.dropout = Dropout(dropout_rate)
        for number in range(1, DEPTH + 1):
            setattr(self, f"block{number}", Block(width, width // 64, dropout_rate))
        self.norm = LayerNorm(width)
        self.make_head(num_classes)

    def make_head(self, num_classes: int) -> None:
        """Builds the classifier, with small random weights.

        In the authors' code the weights start at 0, so that no gradient reaches the blocks in the first step.
        """
        self.head = Classifier(self.width, num_classes, Normal(0.02), Constant(0))

    def set_image_size(self, image_size: int) -> None:
        """Builds the position embeddings for images of another size."""
        self.embedding: Module = Embedding(self.width, max(image_size // self.patch, 1))

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields the patches after block1 and so on, as maps (N, H / patch, W / patch, C).

        A network with a class token yields, in place of the last block's patches, class_token: (N, 1, 1, C).
        """
        patches = self.patches(x)
        x = self.dropout(self.embedding(patches))
        first = x.shape[1] - patches.shape[1] * patches.shape[2]  # tokens before the patches
        for number in range(1, DEPTH + 1):
            x = getattr(self, f"block{number}")(x)
            if first and number == DEPTH:  # nothing reads the last block's patches
                yield "class_token", x[:, :1, None]
            else:
                maps = x[:, first:].reshape(patches.shape)
                yield f"block{number}", maps
                # The next block reads what was yielded, so that explanations can take the derivative by it.
                rest = maps.reshape(x.shape[0], x.shape[1] - first, self.width)
                x = jnp.concatenate((x[:, :first], rest), axis=1) if first else rest

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps the class token (N, 1, 1, C) to logits (N, num_classes): equation 4."""
        return self.head(self.norm(x[:, 0, 0]))


class PlainViT(ViT):
    """The network of Beyer 2022: fixed position embeddings, the mean of the patches in place of the class token."""

    def make_head(self, num_classes: int) -> None:
        """Builds the classifier, and before it a dense layer, which big_vision's configuration has (`rep_size`)."""
        self.hidden = Dense(self.width, self.width, lecun_uniform, Constant(0))
        super().make_head(num_classes)

    def set_image_size(self, image_size: int) -> None:
        """Makes the embedding, which has no parameters."""
        self.embedding = SinCosEmbedding()

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, C) to logits (N, num_classes)."""
        return self.head(jnp.tanh(self.hidden(self.norm(x).mean((1, 2)))))


TORCHVISION_NAMES = (
    (r"^patches\.", "conv_proj."),
    (r"^embedding\.class_token", "class_token"),
    (r"^embedding\.position", "encoder.pos_embedding"),
    *((rf"^block{number}\.", f"encoder.layers.encoder_layer_{number - 1}.") for number in range(1, DEPTH + 1)),
    (r"\.norm(\d)\.", r".ln_\1."),
    (r"\.attention\.qkv\.kernel", ".self_attention.in_proj_weight"),
    (r"\.attention\.qkv\.bias", ".self_attention.in_proj_bias"),
    (r"\.attention\.out\.", ".self_attention.out_proj."),
    (r"\.dense1\.", ".0."),
    (r"\.dense2\.", ".3."),
    (r"^norm\.", "encoder.ln."),
    (r"^head\.", "heads.head."),
)
TIMM_NAMES = (
    (r"^patches\.", "patch_embed.proj."),
    (r"^embedding\.class_token", "cls_token"),
    (r"^embedding\.position", "pos_embed"),
    *((rf"^block{number}\.", f"blocks.{number - 1}.") for number in range(1, DEPTH + 1)),
    (r"\.attention\.out\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.dense(\d)\.", r".fc\1."),
)

FILES_NAMES = (  # in torchvision's published files, and in timm's, whose base networks are the same
    (r"\.mlp\.(linear_|fc)1\.", ".mlp.0."),
    (r"\.mlp\.(linear_|fc)2\.", ".mlp.3."),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"\.norm(\d)\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"^norm\.", "encoder.ln."),
    (r"^head\.", "heads.head."),
)

_torchvision: Callable[..., Entry] = partial(
    Entry, paper="Dosovitskiy 2020", torch_names=TORCHVISION_NAMES, old_torch_names=FILES_NAMES
)
_timm: Callable[..., Entry] = partial(Entry, paper="Dosovitskiy 2020", torch_names=TIMM_NAMES, **TENSORFLOW_PIXELS)
ENTRIES = (
    _torchvision("vit_b_16", partial(ViT, 16, 768)),
    _torchvision("vit_b_32", partial(ViT, 32, 768)),
    _timm("vit_small_patch16_224", partial(ViT, 16, 384)),
    _timm("vit_small_patch32_224", partial(ViT, 32, 384)),
    _timm("vit_tiny_patch16_224", partial(ViT, 16, 192)),
    _timm("vit_tiny_patch32_224", partial(ViT, 32, 192)),
    Entry("vit_s16", partial(PlainViT, 16, 384), "Beyer 2022"),
)
