"""The package as it is installed: what is in the wheel, its extras, and the files that describe it elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from wsiscore import __version__

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RECIPE = yaml.safe_load((ROOT / "packaging" / "conda" / "recipe.yaml").read_text(encoding="utf-8"))
CONDA = {
    "torch": "pytorch",
    "dask": "dask-core",
    "opencv-python-headless": "py-opencv",
    "openslide-bin": "openslide",
}
"""Names of packages that conda-forge has under another."""


def parted(requirement: str) -> tuple[str, str]:
    name, bound = re.fullmatch(r"([\w-]+) ?(?:>=([\d.]+))?", requirement).groups()
    return name, bound or ""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel's files alone, as an empty environment would have them."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def test_the_wheel_holds_the_package_and_its_models(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {str(path.relative_to(folder)) for path in found}

    models = {f"_models/{name}" for name in files(ROOT / "models")}
    assert files(installed / "wsiscore") == files(ROOT / "wsiscore") | models


def test_the_wheel_scores_from_another_folder(
    installed: Path, scored: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    mosaic = scored[0] / "rendered" / "mosaic.ome.zarr"
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        f"import wsiscore; assert wsiscore.__file__.startswith({str(installed)!r}), wsiscore.__file__\n"
        "from wsiscore.__main__ import run; run()\n"
    )
    for words in (["models", "info", "ihcscoregan"], ["score", str(mosaic), "-o", "out"]):
        done = subprocess.run(
            [sys.executable, "-I", "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "rendered" / "report.html").is_file()


def test_what_only_some_need_is_an_extra() -> None:
    needed = {parted(each)[0] for each in PROJECT["dependencies"]}
    optional = {parted(each)[0] for extra in PROJECT["optional-dependencies"].values() for each in extra}
    assert not needed & optional


def test_the_conda_recipe_wants_what_the_package_wants() -> None:
    wanted = {(CONDA.get(name, name), bound) for name, bound in map(parted, PROJECT["dependencies"])}
    run = {parted(each) for each in RECIPE["requirements"]["run"] if not each.startswith("python ")}
    assert {name for name, _ in run} == {name for name, _ in wanted}
    assert run - wanted == {("openslide", "4.0.0")}  # the library itself has no number for its build
    assert PROJECT["requires-python"] == f">={RECIPE['context']['python_min']}"


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == RECIPE["context"]["version"] == __version__
    assert citation["license"] == RECIPE["about"]["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
