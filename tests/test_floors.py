"""The layers of the package: a folder imports only from folders below it, no circle forms, and torch loads late."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "wsiscore"

LAYERS = [
    ["errors"],
    ["coverage", "files", "messages", "regions", "stain", "threads"],
    ["slide"],
    ["roi", "tiles"],
    ["quality"],
    ["attributes", "pyramid", "map_codes"],
    ["ome_zarr"],
    ["shards"],
    ["mosaic"],
    ["cells"],
    ["analysis"],
    ["engines"],
    ["models"],
    ["tile_pass", "score", "networks", "synthetic"],
    ["inference"],
    ["generators"],
    ["report", "evaluation"],
    ["training", "export"],
    ["pipeline"],
    ["cli"],
    ["__main__"],
]
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def top_level(path: Path) -> str:
    """Return the first name below the package: a folder's, or a module's at the root."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, wherever in the file, as dotted names below the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "wsiscore":
            module = node.module.removeprefix("wsiscore").lstrip(".")
            names = [f"{module}.{alias.name}".lstrip(".") for alias in node.names]
            found |= {name if exists(name) else module for name in names}
        if isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("wsiscore.") for alias in node.names if alias.name.startswith("wsiscore.")
            }
    return found - {""}


def exists(module: str) -> bool:
    path = PACKAGE / module.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = top_level(path)
    if own == "__init__":
        return
    for module in imports(path):
        other = module.split(".")[0]
        assert other == own or LAYER[other] < LAYER[own], f"{own} imports {module}, which is not below it"


def test_every_folder_has_a_layer() -> None:
    assert {top_level(path) for path in modules()} - {"__init__"} == set(LAYER)


def test_no_circle_forms_within_a_folder() -> None:
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in modules()}
    below = {names[path]: imports(path) for path in modules()}
    done: set[str] = set()

    def visit(module: str, on_the_way: tuple[str, ...]) -> None:
        assert module not in on_the_way, " imports ".join((*on_the_way, module))
        if module not in done:
            for other in below.get(module, ()):
                visit(other, (*on_the_way, module))
            done.add(module)

    for module in below:
        visit(module, ())


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_family_is_named_outside_its_module(path: Path) -> None:
    modules = [file for file in (PACKAGE / "generators").iterdir() if not file.name.startswith("_")]
    families = {module.stem for module in modules}
    if any(module in (path, *path.parents) for module in modules):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant):
            assert node.value not in families, f"line {node.lineno} names the family {node.value!r}"


@pytest.mark.parametrize(
    "path", [*modules(), *sorted((ROOT / "tests").glob("*.py"))], ids=lambda path: str(path.relative_to(ROOT))
)
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
