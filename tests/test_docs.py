"""Every command and program that the README, the docs and the help show does run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import click
import cv2
import numpy as np
import pytest
import tifffile
import torch
from contract import small

from wsiscore.cli import main
from wsiscore.generators import ihcscoregan
from wsiscore.generators.ihcscoregan.published import published_names
from wsiscore.models.card import Card
from wsiscore.models.registry import family, names
from wsiscore.models.store import write_model
from wsiscore.synthetic.pairs import render_pair
from wsiscore.synthetic.slides import render_slide

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^ {4,}((?:wsiscore|ls) .+)$", re.MULTILINE)


def shown_in_pages() -> list[str]:
    return [command for page in PAGES for command in COMMAND.findall(page.read_text(encoding="utf-8"))]


def shown_in_help() -> list[str]:
    """Walk the commands, in the order the overview lists them."""
    found, waiting = [], [main]
    while waiting:
        command = waiting.pop(0)
        found += re.findall(r"Example: (.+)", command.epilog or "")
        if isinstance(command, click.Group):
            context = click.Context(command)
            waiting += [sub for name in command.list_commands(context) if (sub := command.get_command(context, name))]
    return found


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with all that the commands speak of; they run in it one after the other."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "clinical.csv").write_text("slide,ki67\nlow,10\n")
    (folder / "slides.csv").write_text("path,case,specimen\nslides/low.svs,A,biopsy\n")
    render_slide(folder / "slides", "low", index=6, width_px=1200, height_px=1200)
    for name in ("ihc", "virtual", "masks", "found-masks"):  # one field each, as a stain and as a mask of classes
        (folder / name).mkdir()
        field = np.full((96, 96, 3), 0 if "masks" in name else 235, np.uint8)
        cv2.circle(field, (30, 40), 12, (0, 0, 255) if "masks" in name else (60, 90, 150), -1)
        cv2.imwrite(str(folder / name / "field.png"), field)
    net = ihcscoregan.build(ihcscoregan.Config(width=4), ihcscoregan.SPEC, None, "cpu").weights()
    state = {theirs: torch.from_numpy(net[ours]) for theirs, ours in published_names(4).items()}
    torch.save({"genA2B": state}, folder / "IHCScoreGAN_40000.pt")
    _put_he(folder)
    return folder


def _put_he(folder: Path) -> None:
    """Put an H&E slide there, and a small untrained model of the first family that generates virtual stains."""
    (folder / "he").mkdir()
    rgb = render_pair(np.random.default_rng(1), 512, 512, 0.5, ["he"]).pictures["he"]
    size = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    tifffile.imwrite(folder / "he" / "case.ome.tif", rgb, photometric="rgb", metadata=size)
    name, module = next((name, family(name)) for name in names() if family(name).spec.output == "image")
    config = small(module.config)
    weights = module.build(config, module.spec, None, "cpu").weights()
    card = Card("stainer", name, "1", "Untrained.", "none", "nothing", module.spec, asdict(config))
    write_model(folder / "stainer", card, weights)


def run(words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", words], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


SHOWN = list(dict.fromkeys([*shown_in_pages(), *shown_in_help()]))


@pytest.mark.parametrize("command", [each for each in SHOWN if not each.startswith("wsiscore view")])  # it serves on
def test_a_command_that_is_shown_runs(command: str, desk: Path) -> None:
    if command.endswith("column -t -s $'\\t'") and not shutil.which("column"):
        pytest.skip("column is not installed")
    done = run(command, desk)
    assert done.returncode == 0, done.stderr


def test_the_readme_program_prints_an_index(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.+?)```", PAGES[0].read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "sample_slides").symlink_to(ROOT / "sample_slides")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 20


def test_public_names_stay_what_they_are() -> None:
    """A module that is named like a function would hide it once it is loaded."""
    code = (
        "import wsiscore, wsiscore.pipeline.steps\nprint([type(getattr(wsiscore, name)) for name in wsiscore.__all__])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "module" not in done.stdout


def test_every_column_of_the_table_is_explained() -> None:
    from wsiscore.report.statistics import HEADER

    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in HEADER)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_flag_is_explained() -> None:
    from wsiscore.analysis.flags import FLAGS

    page = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    assert all(f"| `{word}` | {sentence} |" in page for word, sentence in FLAGS.items())
