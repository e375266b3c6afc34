"""Writes the network of a workdir to a file for other programs: StableHLO, ONNX, or its weights for PyTorch.

StableHLO and ONNX hold the whole network, its weights and the normalisation: pixels of 0 to 255 go in, logits come out.
"""

import contextlib
import json
import logging
import pathlib
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.nnx.traversals import flatten_mapping, unflatten_mapping

import models
from models.rewriting import with_default_forms
from models.torch_files import write_safetensors
from models.torch_names import to_torch
from training.inference import make_apply
from training.platform import float64_enabled
from training.state import make_mesh, make_model
from training.transfer import load_weights
from training.workdir import read_class_names

FORMATS = ("stablehlo", "onnx", "safetensors")
STABLEHLO_PLATFORMS = ("cpu", "cuda", "tpu")
ONNX_OPSET = 21  # onnxruntime reads it since 1.18, of 2024


class Exported(NamedTuple):
    """What export_workdir wrote.

    Attributes:
      path: of the file.
      model: the name of the network.
      step: of the checkpoint.
    """

    path: pathlib.Path
    model: str
    step: int


def export_workdir(
    workdir: pathlib.Path,
    format: str,
    step: int | str | None = None,
    batch_size: int | None = None,
    uint8: bool = False,
) -> Exported:
    """Writes the network of a workdir as MODEL.stablehlo, MODEL.onnx or MODEL.safetensors, into the workdir.

    The file's metadata are the model, the step and the names of the classes in the order of the logits. docs/export.md
    says how each file is read.

    Args:
      workdir: a folder that train.py made.
      format: one of FORMATS.
      step: a checkpoint's step, "best", or None for the newest.
      batch_size: the number of images that the network takes; None: any number.
      uint8: whether the images are uint8; otherwise they are float32. Both are 0 to 255.

    Raises:
      ValueError: if the format cannot express the network, a library for it is missing, or the step has no intact
        checkpoint.
      FileNotFoundError: if the folder is not a workdir.
      OSError: if the file cannot be written; an old file of that name is unchanged.
    """
    config, params, batch_stats, step = load_weights(workdir, make_mesh(1), step)
    path = workdir / f"{config.model}.{format}"
    class_names = json.dumps(read_class_names(workdir))
    metadata = {"model": config.model, "step": str(step), "class_names": class_names}
    if format == "safetensors":
        entry = models.get_entry(config.model)
        values = unflatten_mapping(flatten_mapping(params) | flatten_mapping(batch_stats))
        write_safetensors(path, to_torch(entry, make_model(config, training=True), values), metadata)
        return Exported(path, config.model, step)

    config.dtype = "float32"  # a file of bfloat16 runs on few platforms
    params, batch_stats = jax.tree.map(lambda array: np.asarray(array, np.float32), (params, batch_stats))
    apply = make_apply(config, make_model(config, training=False))
    shape = (batch_size, config.image_size, config.image_size, config.channels)
    write = {"stablehlo": _write_stablehlo, "onnx": _write_onnx}[format]
    temporary = path.with_name(f".{path.name}")
    with float64_enabled(False):
        try:
            write(temporary, lambda images: apply(params, batch_stats, images), shape, uint8, metadata)
            temporary.rename(path)
        except ImportError as error:
            raise ValueError(f"--to={format} needs the package {error.name}; pip install {error.name}") from error
        except OSError as error:
            raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
        except Exception as error:  # of the exporter; its kinds are its own
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{config.model} cannot be written as {format}: {reason}; choose another --to") from error
        finally:
            temporary.unlink(missing_ok=True)
    return Exported(path, config.model, step)


Apply = Callable[[jax.Array], jax.Array]
Shape = tuple[int | None, int, int, int]


def _write_stablehlo(path: pathlib.Path, apply: Apply, shape: Shape, uint8: bool, metadata: dict[str, str]) -> None:
    """Writes a zip archive: network.bin is for jax.export.deserialize, metadata.json a JSON object."""
    from jax import export

    (batch,) = export.symbolic_shape("batch") if shape[0] is None else (shape[0],)
    images = jax.ShapeDtypeStruct((batch, *shape[1:]), np.uint8 if uint8 else np.float32)
    exported = export.export(jax.jit(apply), platforms=STABLEHLO_PLATFORMS)(images)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("network.bin", bytes(exported.serialize()))
        file.writestr("metadata.json", json.dumps(metadata | {"class_names": json.loads(metadata["class_names"])}))


def _write_onnx(path: pathlib.Path, apply: Apply, shape: Shape, uint8: bool, metadata: dict[str, str]) -> None:
    """Writes a network with the input `images` and the output `logits`."""
    batch = "batch" if shape[0] is None else shape[0]
    images: Any = jax.ShapeDtypeStruct((batch, *shape[1:]), np.uint8 if uint8 else np.float32)
    with _quiet():
        import jax2onnx

        model = jax2onnx.to_onnx(
            with_default_forms(apply),
            [images],
            model_name=metadata["model"],
            opset=ONNX_OPSET,
            input_names=["images"],
            output_names=["logits"],
        )
    _pool_over_two_axes(model.graph)
    for name, value in metadata.items():
        model.metadata_props.add(key=name, value=value)
    path.write_bytes(model.SerializeToString())


def _pool_over_two_axes(graph: Any) -> None:
    """Changes the graph's poolings over (N, H, W, C), which jax2onnx 0.13 writes, to poolings over the usual (H, W).

    onnxruntime pools over three axes at most. jax2onnx puts two axes in front of the map by two nodes, pools over all
    others, and takes the two axes away by a third node.
    """
    from onnx import helper

    makers = {name: node for node in graph.node for name in node.output}
    for pool in [node for node in graph.node if node.op_type == "MaxPool"]:
        options = {attribute.name: helper.get_attribute_value(attribute) for attribute in pool.attribute}
        if len(options["kernel_shape"]) != 4:
            continue
        second = makers[pool.input[0]]
        first = makers[second.input[0]]
        (last,) = (node for node in graph.node if pool.output[0] in node.input)
        for node, order in ((first, (0, 3, 1, 2)), (last, (0, 2, 3, 1))):
            node.op_type = "Transpose"
            del node.input[1:], node.attribute[:]
            node.attribute.append(helper.make_attribute("perm", order))
        pool.input[0] = first.output[0]
        graph.node.remove(second)
        pads = options.get("pads", [0] * 8)
        both = {name: options[name][1:3] for name in ("kernel_shape", "strides")} | {"pads": pads[1:3] + pads[5:7]}
        del pool.attribute[:]
        pool.attribute.extend(helper.make_attribute(name, value) for name, value in both.items())
    used = {name for node in graph.node for name in node.input}
    for constant in [constant for constant in graph.initializer if constant.name not in used]:
        graph.initializer.remove(constant)
    del graph.value_info[:]  # shapes between the nodes, some of them no longer right; each reader infers them


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides jax2onnx's warnings: of operations that this version of JAX lacks, and of types that it does not have."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
