"""Engines give what torch gives, whatever the number of threads, batches and precisions."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from contract import tissue
from making import whole

from wsiscore.cells.find import rules_of
from wsiscore.engines.choice import PRECISIONS, abilities, choose
from wsiscore.errors import ModelError, MosaicError
from wsiscore.inference import infer
from wsiscore.models.card import read_card
from wsiscore.models.compiled import CompiledGenerator
from wsiscore.models.registry import families
from wsiscore.models.store import default_model, find_model, load_model
from wsiscore.slide.slide import Slide

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"openvino": "openvino", "onnx": "onnxruntime"}
FIELD = whole(200, 200)
DESCRIBED = {name: own for name, own in families().items() if own.graph}


@pytest.fixture(params=PACKAGES)
def engine(request):
    pytest.importorskip("onnx")
    pytest.importorskip(PACKAGES[request.param])
    assert "fp32" in abilities(request.param)
    return request.param


@pytest.fixture(scope="module")
def model():
    return load_model(default_model(), "cpu", engine="torch")


def compiled(model, engine, precision="fp32", threads=2):
    own = families()[model.card.family]
    config = own.config(**model.card.config)
    return CompiledGenerator(model.spec, partial(own.graph, config), model.weights(), engine, precision, threads)


@pytest.mark.parametrize("norm", ["tile", "slide"])
@pytest.mark.parametrize("name", DESCRIBED)
def test_a_described_network_gives_the_maps_of_torch(engine, name, norm):
    """Also where it is deeper than the model that ships; a slide measured by the one fits the other."""
    own = DESCRIBED[name]
    config, spec = own.config(width=4, blocks=1), replace(own.spec, norm=norm)
    torch = own.build(config, spec, None, "cpu")
    other = CompiledGenerator(spec, partial(own.graph, config), torch.weights(), engine, threads=1)
    sample, weights = tissue(3, 64, 64), np.ones((3, 1, 64, 64), np.float32)
    weights[:, :, :, 48:] = 0
    torch, other = torch.for_slide(sample, weights), other.for_slide(sample, weights)
    tiles = tissue(2, 64, 96, seed=1)
    np.testing.assert_allclose(other(tiles), torch(tiles), rtol=0, atol=1e-5)
    assert other.settings.keys() == torch.settings.keys()
    again = other.with_settings(json.loads(json.dumps(torch.settings)))
    np.testing.assert_allclose(again(tiles), torch(tiles), rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_no_map_depends_on_threads_or_batches(engine, model, precision):
    if precision not in abilities(engine):
        pytest.skip(f"{engine} has no {precision} on this CPU")
    sample, tiles = tissue(2, 64, 64), tissue(5, 64, 64, seed=1)
    one, three = (compiled(model, engine, precision, threads).for_slide(sample) for threads in (1, 3))
    expected = one(tiles)
    np.testing.assert_array_equal(three(tiles), expected)
    np.testing.assert_array_equal(np.concatenate([three(tiles[:2]), three(tiles[2:])]), expected)
    again = compiled(model, engine, precision).with_settings(json.loads(json.dumps(one.settings)))
    np.testing.assert_array_equal(again(tiles), expected)
    assert np.abs(expected - model.generator.for_slide(sample)(tiles)).max() < {"fp32": 1e-5}.get(precision, 0.3)


def test_torch_computes_in_bf16_too(model):
    try:
        half = model.generator.in_precision("bf16")
    except ModelError:
        pytest.skip("this CPU has no bf16")
    sample, tiles = tissue(2, 64, 64), tissue(3, 64, 64, seed=1)
    half, exact = half.for_slide(sample), model.generator.for_slide(sample)
    np.testing.assert_array_equal(np.concatenate([half(tiles[:1]), half(tiles[1:])]), half(tiles))
    assert 0 < np.abs(half(tiles) - exact(tiles)).max() < 0.3
    assert (half.precision, exact.precision) == ("bf16", "fp32")


@pytest.fixture(scope="module")
def by_torch(model, tmp_path_factory):
    """Return the mosaic of a field by torch."""
    path = tmp_path_factory.mktemp("torch") / "mosaic.ome.zarr"
    with Slide(ROOT / "sample_slides" / "high.svs") as slide:
        return infer(slide, FIELD, model, path)


def test_cells_are_those_of_torch_and_a_mosaic_is_not_continued_by_another_engine(engine, by_torch, tmp_path):
    other = load_model(default_model(), "cpu", engine=engine)
    assert other.computed_by == {"engine": engine, "precision": "fp32"}
    with Slide(ROOT / "sample_slides" / "high.svs") as slide:
        found = infer(slide, FIELD, other, tmp_path / "other.ome.zarr")
        with pytest.raises(MosaicError, match="other settings"):
            infer(slide, FIELD, other, by_torch.path)
    (cells, _), (expected, _) = (rules_of(mosaic).find(mosaic) for mosaic in (found, by_torch))
    assert len(cells) == len(expected) > 20
    np.testing.assert_array_equal(cells.positive, expected.positive)
    np.testing.assert_array_equal(cells.x_um, expected.x_um)
    np.testing.assert_array_equal(cells.y_um, expected.y_um)


def test_weights_that_do_not_fit_are_refused(engine, model):
    weights = model.weights()
    own = families()[model.card.family]
    describe = partial(own.graph, own.config(**model.card.config))
    name = next(iter(weights))
    for wrong, said in (
        ({key: value for key, value in weights.items() if key != name}, "is missing"),
        ({**weights, "more.weight": weights[name]}, "'more.weight' is not one of them"),
        ({key: value[:, :-1] if value.ndim == 4 else value for key, value in weights.items()}, "channels"),
    ):
        with pytest.raises(ModelError, match=said):
            CompiledGenerator(model.spec, describe, wrong, engine)


def test_an_engine_runs_without_torch(engine):
    code = (
        "import sys, numpy as np\nfrom wsiscore.models.store import load_model\n"
        "maps = load_model(sys.argv[1], 'cpu', engine=sys.argv[2])(np.full((1, 3, 64, 64), 200, np.uint8))\n"
        "assert maps.shape[-2:] == (64, 64)\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, default_model(), engine], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_crash_of_an_engine_is_found_in_another_process_and_once_only(tmp_path):
    """A package that ends the process with SIGILL, as a compiler does on a CPU that it does not know."""
    for package in ("openvino", "onnx"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
        about = tmp_path / f"{package}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    code = "from wsiscore.engines.choice import choose\nprint(choose('openvino', 'fp32', described=True))\n"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for said in ("was tried and ended with status -4", "does not work on this CPU; torch is used"):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.stdout == "torch\n", done.stderr
        assert said in done.stderr
    assert "was tried" not in done.stderr


def test_what_cannot_be_had_is_said(caplog):
    folder = find_model(default_model())
    assert read_card(folder).weights is not None
    with pytest.raises(ModelError, match=r"torch has no int8 on this cpu"):
        load_model(folder, "cpu", engine="torch", precision="int8")
    with pytest.raises(ModelError, match="runs on the CPU, not on cuda"):
        load_model(folder, "cuda", engine="openvino")
    with pytest.raises(ModelError, match="hdab has no network"):
        load_model("hdab", precision="bf16")
    assert choose("openvino", "fp32", described=False) == "torch"
    assert "runs on torch only" in caplog.text
