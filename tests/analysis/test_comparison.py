"""The comparison of two runs of the benchmark."""

import pytest

from analysis.comparison import compare, differing_conditions


def row(rate, error=0.01, **others):
    values = {"model": "vgg16", "mode": "train", "batch_size": 32, "image_size": 224, "dtype": "float32"}
    values |= {"status": "ok", "images_per_second": rate, "device": "cpu"}
    return values | {"images_per_second_low": rate * (1 - error), "images_per_second_high": rate * (1 + error)} | others


@pytest.mark.parametrize(
    "rate, error, verdict",
    [
        (100, 0.01, "same"),
        (97, 0.01, "same"),  # significantly slower, but within the tolerance
        (93, 0.01, "slower"),
        (93, 0.2, "unclear"),
        (110, 0.01, "faster"),
        (110, 0.2, "same"),
    ],
)
def test_verdicts(rate, error, verdict):
    (result,) = compare([row(rate, error)], [row(100)], tolerance=0.05)
    assert result["verdict"] == verdict
    assert result["ratio_low"] < result["ratio"] == rate / 100 < result["ratio_high"]


def test_rates_without_an_interval_are_never_slower_for_sure():
    stage = {"mode": "input", "stage": "decode", "images_per_second_low": None, "images_per_second_high": None}
    (result,) = compare([row(90, **stage)], [row(100, **stage)], tolerance=0.05)
    assert (result["verdict"], result["ratio"], result["ratio_low"]) == ("unclear", 0.9, None)


def test_what_could_be_measured_before_and_what_has_no_counterpart():
    full = {"status": "out_of_memory", "images_per_second": None}
    old = [row(100), row(100, batch_size=64), row(1, batch_size=128) | full]
    new = [row(1) | full, row(5, batch_size=128), row(5, mode="infer")]
    (result,) = compare(new, old, tolerance=0.05)
    assert (result["verdict"], result["ratio"], result["batch_size"]) == ("failed", None, 32)


def test_other_hardware_is_said():
    assert differing_conditions([row(1)], [row(1)]) == []
    assert differing_conditions([row(1)], [row(1, device="NVIDIA H200")]) == ["device: cpu, was NVIDIA H200"]
    assert differing_conditions([row(1, xla_flags="-a")], [row(1)]) == ["xla_flags: -a, was None"]


def test_only_the_same_work_is_compared():
    assert not compare([row(1, dataset="digits")], [row(1, dataset="cifar10")], tolerance=0.05)
    assert compare([row(1, mode="input")], [row(1, mode="input", model="lenet5")], tolerance=0.05)
