"""The steps of docs/add_a_network.md add a network, in a copy of the repository."""

import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
TINY = '''"""A tiny network: Nobody 2026."""

from collections.abc import Iterator

import jax

from models.layers import Classifier, ConvReLU, global_average_pool, max_pool
from models.network import Entry, Network


class Tiny(Network):
    """One convolution."""

    def __init__(self, num_classes: int, channels: int, dropout_rate: float):
        """Builds the layers; there is no dropout."""
        self.conv1 = ConvReLU(channels, 8, kernel=3, padding=1)
        self.head = Classifier(8, num_classes)

    def stages(self, x: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """Yields conv1, pooled."""
        yield "conv1", max_pool(self.conv1(x), 2, 2)

    def classify(self, x: jax.Array) -> jax.Array:
        """Maps (N, H, W, 8) to logits (N, num_classes)."""
        return self.head(global_average_pool(x))


ENTRIES = (Entry("onelayer", Tiny, "Nobody 2026", image_size=32, num_classes=10),)
'''


def test_a_file_and_its_name_in_the_list_of_families_are_enough(tmp_path):
    folders = ("analysis", "configs", "input_pipeline", "models", "training", "tests")
    for folder in folders:
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "golden"))
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, tmp_path)

    (tmp_path / "models" / "onelayer.py").write_text(TINY)
    registry = tmp_path / "models" / "__init__.py"
    families = 'FAMILIES = ("lenet", '
    assert families in registry.read_text()
    registry.write_text(registry.read_text().replace(families, 'FAMILIES = ("onelayer", "lenet", '))

    files = ("tests/models/test_registry.py", "tests/models/test_derivatives.py", "tests/analysis/test_summary.py")
    command = (sys.executable, "-m", "pytest", "-q", "-m", "", "-k", "onelayer", "-p", "no:cacheprovider", *files)
    tests = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    # Tests of the native size, any size (two), gradients (two), derivatives (two), and the sum of the layers.
    assert "8 passed" in tests.stdout and "failed" not in tests.stdout, tests.stdout + tests.stderr
