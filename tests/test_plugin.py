"""A family in a package of its own: one module and one entry point, no other file touched."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FAMILY = '''
"""A family of another package: darkness as centre map, one weight as its strength."""
from dataclasses import dataclass

import numpy as np

from wsiscore.errors import ModelError
from wsiscore.cells.rules import CenterRules
from wsiscore.models.contract import Family, GeneratorSpec

SPEC = GeneratorSpec(
    "dots", ("center", "positive", "negative"), mpp=0.5, tile_px=64, margin_px=8, multiple_px=8, rules=CenterRules()
)


@dataclass(frozen=True)
class Config:
    start: float = 0.5


class Dots:
    device = "cpu"

    def __init__(self, spec, strength):
        self.spec, self.strength = spec, strength

    def weights(self):
        return {"strength": np.array([self.strength], np.float32)}

    def __call__(self, tiles):
        right_shape = tiles.ndim == 4 and tiles.shape[1] == 3
        if tiles.dtype != np.uint8 or not right_shape or any(side % 8 for side in tiles.shape[2:]):
            raise ValueError(f"tiles are uint8 (B, 3, H, W), multiples of 8 px, got {tiles.dtype} {tiles.shape}")
        dark = 1 - tiles.mean(axis=1, dtype=np.float32) / 255
        center = np.minimum(dark * np.float32(self.strength), 1)
        return np.stack([center, dark, 1 - dark], axis=1)


def build(config, spec, weights, device):
    if weights is None:
        return Dots(spec, config.start)
    if set(weights) != {"strength"}:
        raise ModelError("the weights are not those of family 'dots': 'strength' is missing")
    return Dots(spec, float(weights["strength"][0]))


FAMILY = Family(name="dots", spec=SPEC, config=Config, build=build)
'''


@pytest.fixture
def installed(tmp_path):
    """Lay out what installing the package would, and return the environment that sees it."""
    (tmp_path / "lab_dots.py").write_text(FAMILY)
    about = tmp_path / "lab_dots-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-dots\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[wsiscore.generators]\ndots = lab_dots\n")
    paths = [str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(environment, *arguments):
    result = subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_an_installed_family_is_found_listed_and_loaded(installed, tmp_path):
    program = f"""
import sys
from dataclasses import asdict
from pathlib import Path
import numpy as np
from wsiscore.models import registry
from wsiscore.models.card import Card
from wsiscore.models.store import load_model, write_model
assert "dots" in registry.names()
assert "lab_dots" not in sys.modules, "asking for names imports no family"
dots = registry.family("dots")
card = Card("mine", "dots", "1", "A test.", "none", "nothing", dots.spec, asdict(dots.config()))
write_model(Path({str(tmp_path / "mine")!r}), card, {{"strength": np.array([0.25], np.float32)}})
maps = load_model({str(tmp_path / "mine")!r})(np.zeros((1, 3, 16, 16), np.uint8))
assert maps.shape == (1, 3, 16, 16) and (maps[:, 0] == 0.25).all()
assert "torch" not in sys.modules
from click.testing import CliRunner
from wsiscore.cli.models import models
print(CliRunner().invoke(models, ["list"]).stdout)
print(CliRunner().invoke(models, ["import", "--help"]).stdout)
"""
    listed = run(installed, "-c", program)
    assert "-\tdots\t" in listed
    assert "dots|" in listed


def test_an_installed_family_inherits_the_contract(installed):
    passed = run(installed, "-m", "pytest", "-p", "no:cacheprovider", "tests/test_contract.py", "-k", "dots")
    assert "passed" in passed
    assert "failed" not in passed


def test_without_the_package_the_family_is_unknown():
    run(
        {**os.environ, "PYTHONPATH": str(ROOT)},
        "-c",
        "from wsiscore.models.registry import names; assert 'dots' not in names()",
    )
