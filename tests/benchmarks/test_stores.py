"""Runs on a faulty S3 store; `make test-all` runs them where moto and s3fs are installed."""

import pytest

from benchmarks import faults


@pytest.mark.slow
def test_every_run_on_a_faulty_store_held(tmp_path):
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    from benchmarks import stores

    store = stores.Store(faults.Bench(tmp_path, small=True))
    try:
        problems = {name: list(filter(None, row(store))) for name, row in stores.ROWS.items()}
    finally:
        store.close()
    assert problems == dict.fromkeys(stores.ROWS, [])
