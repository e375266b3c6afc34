"""The attainable rate under measured ceilings, the data sheets of devices, and the measurement of the ceilings."""

import pytest

from analysis import nvidia_smi
from analysis.roofline import Ceilings, data_sheet, data_sheet_peak, measure_ceilings
from training.state import make_mesh


def test_the_ridge():
    # Williams 2009: memory limits the rate below the ridge, here 10 operations a byte, and arithmetic above it.
    ceilings = Ceilings(flops_per_second=100.0, bytes_per_second=10.0)
    assert [ceilings.attainable(flops, 1) for flops in (1, 5, 10, 20)] == [10, 50, 100, 100]


@pytest.mark.parametrize(
    "kind, dtype, tf32, peak",
    [
        ("NVIDIA H200", "bfloat16", True, 989.5e12),
        ("NVIDIA H100 80GB HBM3", "float32", True, 494.5e12),
        ("NVIDIA H100 PCIe", "float32", False, 51e12),
        ("NVIDIA A100-SXM4-40GB", "float32", True, 156e12),
        ("Tesla V100-SXM2-16GB", "float32", True, 15.7e12),  # it has no TF32
        ("Tesla V100-SXM2-16GB", "bfloat16", True, None),
        ("TPU v4", "bfloat16", True, 275e12),
        ("TPU v5 lite", "float32", True, 197e12),
        ("TPU v5", "bfloat16", True, 459e12),
        ("TPU v6 lite", "bfloat16", True, 918e12),
        ("NVIDIA H200", "float64", True, None),
        ("cpu", "float32", True, None),
    ],
)
def test_data_sheets(kind, dtype, tf32, peak):
    assert data_sheet_peak(kind, dtype, tf32) == peak


def test_a100s_differ_in_their_memory():
    kinds = "NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"
    assert [data_sheet(kind).bytes_per_second for kind in kinds] == [1.555e12, 2.039e12, 1.935e12]


def test_measured_ceilings(monkeypatch):
    monkeypatch.setattr("analysis.roofline.COPY_BYTES", 2**22)
    monkeypatch.setattr("analysis.roofline.LONG_ENOUGH", 0.001)
    ceilings = measure_ceilings("float32", make_mesh(1))
    # A plausible range for any machine.
    assert 1e8 < ceilings.flops_per_second < 1e16 and 1e8 < ceilings.bytes_per_second < 1e14


def test_draws_of_several_gpus():
    # nvidia-smi --query-gpu=power.draw, two GPUs, five readings: a line a GPU.
    assert nvidia_smi._median_draw("100.5\n99.5\n300\n310\n305\n301\n303\n301\n302\n305\n", gpus=2) == 606
    assert nvidia_smi._median_draw("[N/A]\n", gpus=1) is None
    assert nvidia_smi._median_draw("100\n300\n300\n300\n", gpus=1) is None  # too few
