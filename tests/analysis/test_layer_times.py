"""Operations of a compiled program are assigned to the layers that they come from."""

import pytest

from analysis import layer_times
from analysis.layer_times import KINDS, classify, read_origins

PROGRAM = """HloModule jit_train_step

%fused.1 (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0), metadata={op_name="state['params']['norm']['scale']"}
  %multiply.1 = f32[4]{0} multiply(%p, %p), metadata={op_name="jit(train_step)/jvp(norm)/mul"}
  ROOT %add.1 = f32[4]{0} add(%multiply.1, %p), metadata={op_name="jit(train_step)/jvp(norm)/mul"}
}

%fused.2 (q: f32[4]) -> f32[4] {
  ROOT %convolution.9 = f32[4]{0} convolution(%q, %q), window={size=3x3}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %fusion.1 = f32[4]{0} fusion(%a), kind=kLoop, calls=%fused.1
  %fusion.2 = f32[4]{0} fusion(%fusion.1), kind=kCustom, calls=%fused.2
  ROOT %copy.3 = f32[4]{0} copy(%fusion.2)
}
"""


def test_fusions_have_the_origin_of_their_parts():
    origins = read_origins(PROGRAM)
    assert origins["fusion.1"] == "jit(train_step)/jvp(norm)/mul"
    assert origins["fusion.2"] == "convolution"
    assert "copy.3" not in origins and "p" not in origins


@pytest.mark.parametrize(
    "operation, origin, expected",
    [
        (
            "fusion.1",
            "jit(train_step)/transpose(jvp(stage1.0))/conv1/conv_general_dilated",
            ("stage1.0/conv1", KINDS[0]),
        ),
        ("fusion.1", "jit(infer)/stage1.0/norm1/mul", ("stage1.0/norm1", "normalisation")),
        ("fusion.1", "jit(train_step)/jvp(stage1.0)/jit(relu)/max", ("stage1.0", "activation, sum, loss")),
        ("fusion.1", "jit(train_step)/jvp()/reduce_window_max", ("", "pooling")),
        ("fusion.1", "jit(train_step)/mul", ("", "optimizer, input")),
        ("transpose_copy_fusion.2", "jit(train_step)/jvp(stage1.0)/conv1/transpose", ("stage1.0/conv1", "copy")),
        ("fusion.7", "", ("", "unknown")),
    ],
)
def test_kinds_of_work(operation, origin, expected):
    kinds = {"stage1.0/conv1": "convolution", "stage1.0/norm1": "normalisation"}
    assert classify(operation, origin, kinds) == expected


def test_every_layer_of_a_transformer_has_its_kind(summary_of):
    """Vaswani 2017, section 3.2.1: attention is two products; its normalisation is that of layers (Ba 2016)."""
    kinds = {layer.kind: layer_times._kind_of_layer(layer.kind) for layer in summary_of("vit_tiny_patch16_224").layers}
    assert kinds["layer norm"] == "normalisation" and kinds["product"] == kinds["dense"] == "dense"
