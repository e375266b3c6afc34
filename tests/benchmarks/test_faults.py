"""The reduced bench of faults; `make test-all` runs the whole bench."""

import pytest

from benchmarks import faults


@pytest.fixture(scope="module")
def make_bench(tmp_path_factory):
    """Returns a function that makes the bench of a size, once for all tests of that size."""
    benches = {}

    def make(size):
        if size not in benches:
            benches[size] = faults.Bench(tmp_path_factory.mktemp(size), small=size == "small")
        return benches[size]

    return make


@pytest.mark.parametrize("size", ["small", pytest.param("full", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", faults.ROWS)
def test_every_fault_held(make_bench, name, size):
    row = faults.run_row(name, make_bench(size))
    if size == "small" and not row["tried"]:
        assert name == "one of several processes dies"  # only the whole bench tries it
    assert row["problems"] == [] and row["held"] == row["tried"]
