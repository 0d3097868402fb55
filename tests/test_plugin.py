"""Families of other packages: one module and one entry point; a broken one does not affect the others."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsiscore.errors import ModelError
from wsiscore.models import registry

ROOT = Path(__file__).resolve().parent.parent
FAMILY = (ROOT / "examples" / "plugin" / "lab_dots.py").read_text(encoding="utf-8")


def install(folder, name, code):
    """Write the files that installing a package with the module ``lab_<name>`` would write."""
    (folder / f"lab_{name}.py").write_text(code)
    about = folder / f"lab_{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lab-{name}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[wsiscore.generators]\n{name} = lab_{name}\n")


@pytest.fixture
def installed(tmp_path):
    """Return an environment in which the package is installed."""
    install(tmp_path, "dots", FAMILY)
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
    own = {**installed, "PYTHONPATH": f"{installed['PYTHONPATH']}{os.pathsep}{ROOT / 'tests'}"}
    passed = run(own, "-m", "pytest", "-p", "no:cacheprovider", "examples/plugin/test_lab_dots.py")
    assert "passed" in passed
    assert "failed" not in passed


def test_without_the_package_the_family_is_unknown():
    run(
        {**os.environ, "PYTHONPATH": str(ROOT)},
        "-c",
        "from wsiscore.models.registry import names; assert 'dots' not in names()",
    )


BROKEN = {
    "importerror": ("import no_such_package_anywhere", "ModuleNotFoundError"),
    "syntaxerror": ("def (", "SyntaxError"),
    "exits": ("raise SystemExit(3)", "SystemExit"),
    "nofamily": ("SPEC = 1", "no constant FAMILY"),
    "otherfamily": ("FAMILY = 'dots'", "no constant FAMILY"),
    "wrongname": (FAMILY, "calls its family 'dots', but is registered as 'wrongname'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_family_is_a_warning_in_lists_and_an_error_where_it_is_asked_for(name, tmp_path, monkeypatch, caplog):
    code, reason = BROKEN[name]
    before = set(registry.names())
    install(tmp_path, name, code)
    monkeypatch.syspath_prepend(tmp_path)
    assert set(registry.names()) == before | {name}
    with caplog.at_level("WARNING", logger="wsiscore"):
        assert set(registry.families()) == before
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "wsiscore"]
    with pytest.raises(ModelError) as error:
        registry.family(name)
    for text in (warning, str(error.value)):
        assert f"lab_{name}" in text
        assert reason in text
        assert "\n" not in text
    assert registry.family("hdab").name == "hdab"
