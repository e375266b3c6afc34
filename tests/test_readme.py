"""The README's Python code runs, and its results are those that the comments promise."""

import pathlib
import re

import numpy as np

from configs import base
from models import create_model, get_stages, initial_values
from training.configuration import resolve_network
from training.state import make_model
from training.transfer import save_weights

ROOT = pathlib.Path(__file__).parent.parent


def test_the_code_under_from_python(tmp_path, monkeypatch):
    (code,) = re.findall(r"## From Python\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    config = base.get_config()
    config.num_classes = 10
    config = resolve_network(config)
    values = initial_values(make_model(config, training=True), seed=7)
    save_weights(tmp_path / "runs" / "lenet5_digits", config, tuple("0123456789"), values)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)

    # The weights are the workdir's, not those of another seed.
    images, expected = names["images"], create_model("lenet5", seed=7)
    np.testing.assert_allclose(names["logits"], expected(images), rtol=1e-5, atol=1e-6)
    assert {name: maps.shape[-1] for name, maps in names["maps"].items()} == get_stages("lenet5")
    # A step along the gradient changes the logit by step times gradient.
    step = 1e-2 * names["saliency"] / np.linalg.norm(names["saliency"])
    change = expected(images + step)[0, 3] - expected(images - step)[0, 3]
    np.testing.assert_allclose(change, 2e-2 * np.linalg.norm(names["saliency"]), rtol=1e-2)
