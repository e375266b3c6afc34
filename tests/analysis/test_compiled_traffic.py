"""Kernels, bytes and arithmetic read from the text of a small program as XLA prints it for a GPU."""

from analysis.compiled_traffic import (
    BACKWARD_SUMS,
    CONVOLUTION,
    FORWARD_MAPS,
    SMALL_KERNELS,
    WEIGHT_GRADIENT,
    bound_seconds,
    bytes_by_role,
    find_kernels,
)

PROGRAM = """\
HloModule jit_train_step, is_scheduled=true

%fused_maximum (param_0: bf16[8,64,64,64], param_1: f32[64]) -> bf16[8,64,64,64] {
  %param_0 = bf16[8,64,64,64]{3,2,1,0} parameter(0)
  %param_1 = f32[64]{0} parameter(1)
  ROOT %maximum.1 = bf16[8,64,64,64]{3,2,1,0} maximum(%param_0, %param_0)
}

%fused_reduce (param_0.1: bf16[8,64,64,64]) -> f32[64] {
  %param_0.1 = bf16[8,64,64,64]{3,2,1,0} parameter(0)
  ROOT %reduce.1 = f32[64]{0} reduce(%param_0.1, %param_0.1), dimensions={0,1,2}
}

%fused_slice (param_0.2: bf16[8,64,64,64]) -> bf16[8,1,1,64] {
  %param_0.2 = bf16[8,64,64,64]{3,2,1,0} parameter(0)
  ROOT %slice.1 = bf16[8,1,1,64]{3,2,1,0} slice(%param_0.2), slice={[0:8], [0:1], [0:1], [0:64]}
}

%command_buffer (p: bf16[8,64,64,64], q: f32[64]) -> bf16[8,64,64,64] {
  %p = bf16[8,64,64,64]{3,2,1,0} parameter(0)
  %q = f32[64]{0} parameter(1)
  ROOT %loop_maximum_fusion = bf16[8,64,64,64]{3,2,1,0} fusion(%p, %q), kind=kLoop, calls=%fused_maximum, \
metadata={op_name="jit(train_step)/jvp(stage1.0)/max"}
}

ENTRY %main.1 (x.1: bf16[8,64,64,64], kernel.1: bf16[32,3,3,64], scale.1: f32[64]) -> bf16[32,3,3,64] {
  %x.1 = bf16[8,64,64,64]{3,2,1,0} parameter(0)
  %kernel.1 = bf16[32,3,3,64]{3,2,1,0} parameter(1)
  %scale.1 = f32[64]{0} parameter(2)
  %call.1 = bf16[8,64,64,64]{3,2,1,0} call(%x.1, %scale.1), to_apply=%command_buffer
  %cudnn-conv.1 = (bf16[8,64,64,32]{3,2,1,0}, u8[4096]{0}) custom-call(%call.1, %kernel.1), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", \
metadata={op_name="jit(train_step)/jvp(stage1.0)/conv1/conv_general_dilated"}
  %get-tuple-element.1 = bf16[8,64,64,32]{3,2,1,0} get-tuple-element(%cudnn-conv.1), index=0
  %input_reduce_fusion.1 = f32[64]{0} fusion(%x.1), kind=kInput, calls=%fused_reduce, \
metadata={op_name="jit(train_step)/transpose(jvp(stage1.0))/norm1/reduce_sum"}
  %loop_slice_fusion.1 = bf16[8,1,1,64]{3,2,1,0} fusion(%x.1), kind=kLoop, calls=%fused_slice
  ROOT %cudnn-conv-bw-filter.1 = (bf16[32,3,3,64]{3,2,1,0}, u8[0]{0}) custom-call(%x.1, %get-tuple-element.1), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter", \
metadata={op_name="jit(train_step)/transpose(jvp(stage1.0))/conv1/conv_general_dilated"}
}
"""
MAP, KERNEL = 8 * 64 * 64 * 64 * 2, 32 * 3 * 3 * 64 * 2  # bytes


def test_kernels_have_their_roles_and_bytes():
    kernels = find_kernels(PROGRAM)
    assert [(kernel.role, kernel.read, kernel.written) for kernel in kernels] == [
        (FORWARD_MAPS, MAP + 64 * 4, MAP),
        (CONVOLUTION, MAP + KERNEL, MAP // 2),  # without the scratch memory of cuDNN
        (BACKWARD_SUMS, MAP, 64 * 4),
        (SMALL_KERNELS, 8 * 64 * 2, 8 * 64 * 2),  # only a slice of the operand is read
        (WEIGHT_GRADIENT, MAP + MAP // 2, KERNEL),
    ]
    assert sum(bytes_by_role(kernels).values()) == sum(kernel.moved for kernel in kernels)


def test_a_convolution_and_its_weight_gradient_take_the_operations_of_the_textbook():
    operations = 2 * (8 * 64 * 64 * 32) * (3 * 3 * 64)
    assert [kernel.flops for kernel in find_kernels(PROGRAM)] == [0, operations, 0, 0, operations]


def test_the_bound_counts_for_each_kernel_the_slower_of_copying_and_arithmetic():
    kernels = find_kernels(PROGRAM)
    assert bound_seconds(kernels, 1.0, 1e30) == sum(kernel.moved for kernel in kernels)
    assert bound_seconds(kernels, 1e30, 1.0) == sum(kernel.flops for kernel in kernels)
