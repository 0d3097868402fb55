"""The house stands: a module imports only from floors below, so no circle can form, and a few heavy guests stay out."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "wsiscore"

FLOORS = [
    ["errors"],
    ["regions", "stain", "writing", "nets"],
    ["outlines", "generators"],
    ["running"],
    ["pix2pix", "hasten", "published", "vit", "expression", "sources", "slide", "annotations", "card"],
    ["tissue", "tiles", "models"],
    ["mosaic"],
    ["inference", "components", "rois", "ome_tiff"],
    ["cells"],
    ["score", "rendering", "synthetic"],
    ["report", "training", "evaluation"],
    ["provenance"],
    ["pipeline"],
    ["cohort"],
    ["cli"],
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
SAME_FLOOR = {("slide", "sources"), ("synthetic", "rendering")}  # two halves of one idea


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """Return the first name below the package: a module's, or a subpackage's."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Return the rooms a file imports from, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "wsiscore":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names} & set(FLOOR)
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("wsiscore.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = room(path)
    if own == "__init__":
        return
    is_family = path.parent.name == "generators" and path.name != "__init__.py"
    floor = FLOOR["pix2pix"] + 1 if is_family else FLOOR[own]
    for other in imports(path) - {own}:
        assert FLOOR[other] < floor or (own, other) in SAME_FLOOR, f"{own} imports {other}, which is not below it"


def test_every_room_has_a_floor() -> None:
    assert {room(path) for path in modules()} - {"__init__"} <= set(FLOOR)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_family_is_named_outside_its_module(path: Path) -> None:
    families = {file.stem for file in (PACKAGE / "generators").glob("*.py")} - {"__init__"}
    if path.stem in families:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant):
            assert node.value not in families, f"line {node.lineno} names the family {node.value!r}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_stay_small(path: Path) -> None:
    tree = ast.parse(source := path.read_text(encoding="utf-8"))
    assert len(source.splitlines()) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            start = node.body[0].lineno  # decorators and signature are the command line's options
            assert node.end_lineno - start < 75, f"{node.name} is too long"


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["score", "--help"],
        ["tile", "--help"],
        ["infer", "--help"],
        ["info", "--help"],
        ["models", "--help"],
        ["models", "list"],
        ["info", "sample_slides/low.svs"],
        ["tile", "sample_slides/low.svs", "-o", "{out}"],
    ],
    ids=" ".join,
)
def test_these_commands_do_without_torch(command: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\nfrom wsiscore.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "loaded = {'torch', 'distributed'} & set(sys.modules)\nassert not loaded, loaded\n"
    )
    command = [word.format(out=tmp_path) for word in command]
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_rescore_does_without_torch(tmp_path: Path) -> None:
    """A finished mosaic of whatever model is scored again by what is on disk."""
    code = (
        "import sys\nfrom wsiscore.cli import main\n"
        "for words in (['infer', 'sample_slides/low.svs', '--model', 'hdab', '-o', sys.argv[1]],\n"
        "              ['score', sys.argv[1] + '/low/mosaic.ome.zarr']):\n"
        "    try:\n        main(words)\n    except SystemExit as end:\n        assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
