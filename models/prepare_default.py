"""Turn public data sets into folders that ``wsiscore train ihcscoregan --truth`` reads, for the default model.

    python models/prepare_default.py OUT --dsb2018 FOLDER --endonuke FOLDER --he-nucls FOLDER

* ``dsb2018``: stage 1 of the Data Science Bowl 2018, BBBC038 (CC0), its purple-stained tissue: ``images/<id>.png``,
  numbered ``labels/<id>.png`` and ``index.csv`` with id, group and nuclei. They have no resolution.
* ``endonuke``: EndoNuke (CC BY 4.0): ``tiles/``, ``points/<name>.csv`` with class, x, y, and ``index.csv`` with
  name, source and est_um_per_px. ``--endonuke-held-out FOLDER`` gives the tiles that are kept for testing.
* ``he-nucls``: NuCLS crops (CC0) at 0.25 µm/px: ``images/<name>.png`` and ``labels/<name>.npy`` with inst_map and
  type_map, 2 for tumour.

Nothing is changed in the pictures: the training gives them new dyes. The weights of the pictures are in ``index.csv``.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

# Fractions of the annotated steps; the rest of the training is on rendered fields.
WEIGHTS = {"dsb2018": 0.38, "endonuke": 0.22, "he-nucls": 0.04}
LEAST_NUCLEI = 3
HELD_OUT = ("3fd48eb6", "302d4d04")  # sources of endonuke that are kept for testing
HELD_OUT_TILES = ("side_c12ea4f9_04",)  # and the double of one of their tiles
INCOMPLETE = ("52faf71a", "e1f2c6ac", "df72bb75")  # sources in whose glands nuclei are not marked
KINDS = {"epithelium": "tumour", "stroma": "stroma", "other": "other"}
COLUMNS = ("name", "mpp", "unmarked", "recolour", "group", "weight")

Row = dict[str, object]


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the lines of a table."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def begin(folder: Path) -> Path:
    """Make an empty folder of annotated pictures and return it."""
    if folder.exists():
        raise SystemExit(f"{folder} is there already; delete it or give another OUT")
    (folder / "truth").mkdir(parents=True)
    return folder


def finish(folder: Path, rows: Iterable[Row]) -> None:
    """Write ``index.csv``, with weights that add up to that of the data set."""
    rows = list(rows)
    total = sum(float(str(row["weight"])) for row in rows)
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        for row in rows:
            weight = WEIGHTS.get(folder.name, 1.0) * float(str(row["weight"])) / total
            table.writerow({**dict.fromkeys(COLUMNS, ""), **row, "weight": f"{weight:.8g}"})
    sys.stdout.write(f"{folder}: {len(rows)} pictures\n")


def prepare_dsb(source: Path, out: Path) -> None:
    """Outlined tissue of unknown resolution; half of the weight goes to each group alike, half to each picture."""
    folder = begin(out / "dsb2018")
    rows = [row for row in rows_of(source / "index.csv") if int(row["nuclei"]) >= LEAST_NUCLEI]
    sizes = Counter(row["group"] for row in rows)
    for row in rows:
        shutil.copyfile(source / "images" / f"{row['id']}.png", folder / f"{row['id']}.png")
        shutil.copyfile(source / "labels" / f"{row['id']}.png", folder / "truth" / f"{row['id']}.png")
    finish(
        folder,
        (
            {
                "name": row["id"],
                "recolour": 1,
                "weight": 0.5 / (len(sizes) * sizes[row["group"]]) + 0.5 / len(rows),
            }
            for row in rows
        ),
    )


def prepare_endonuke(source: Path, out: Path) -> None:
    """Points in real H-DAB; every source picture has the same weight."""
    folder = begin(out / "endonuke")
    rows: list[Row] = []
    for row in rows_of(source / "index.csv"):
        name, stem = row["name"], row["source"].split("_")[0]
        path = source / "points" / f"{name}.csv"
        if stem in HELD_OUT or name in HELD_OUT_TILES or not path.exists():
            continue
        points = rows_of(path)
        if len(points) < LEAST_NUCLEI:
            continue
        picture = next((source / "tiles").glob(f"{name}.*"))
        shutil.copyfile(picture, folder / picture.name)
        write_points(folder / "truth" / f"{name}.csv", points)
        unmarked = "unknown" if stem in INCOMPLETE else "ground"
        rows.append({"name": name, "mpp": row["est_um_per_px"], "unmarked": unmarked, "recolour": 0, "group": stem})
    sizes = Counter(row["group"] for row in rows)
    finish(folder, ({**row, "weight": 1 / sizes[row["group"]]} for row in rows))


def prepare_held_out(source: Path, out: Path) -> None:
    """Tiles of the sources that are kept for testing; all their nuclei count."""
    folder = begin(out / "endonuke-held-out")
    rows: list[Row] = []
    for row in rows_of(source / "index.csv"):
        path = source / "points" / f"{row['name']}.csv"
        if row["source"].split("_")[0] not in HELD_OUT or not path.exists():
            continue
        picture = next((source / "tiles").glob(f"{row['name']}.*"))
        shutil.copyfile(picture, folder / picture.name)
        with (folder / "truth" / path.name).open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerows([("x", "y", "class"), *((point["x"], point["y"], "") for point in rows_of(path))])
        rows.append({"name": row["name"], "mpp": row["est_um_per_px"], "weight": 1})
    finish(folder, rows)


def write_points(path: Path, points: Iterable[Mapping[str, str]]) -> None:
    """Write points without a class, which is that of the DAB at each, and with the kind of tissue."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("x", "y", "class", "kind"))
        table.writerows((point["x"], point["y"], "", KINDS.get(point["class"], "unknown")) for point in points)


def prepare_nucls(source: Path, out: Path) -> None:
    """Outlines of some of the nuclei, with their kind; train with ``--types 2=unknown``."""
    folder = begin(out / "he-nucls")
    rows: list[Row] = []
    for path in sorted((source / "labels").glob("*.npy")):
        shutil.copyfile(source / "images" / f"{path.stem}.png", folder / f"{path.stem}.png")
        shutil.copyfile(path, folder / "truth" / path.name)
        rows.append({"name": path.stem, "mpp": 0.25, "unmarked": "unknown", "recolour": 1, "weight": 1})
    finish(folder, rows)


def main() -> None:
    """Prepare the data sets that are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    kinds = {"dsb2018": prepare_dsb, "endonuke": prepare_endonuke, "he-nucls": prepare_nucls}
    kinds["endonuke-held-out"] = prepare_held_out
    for name in kinds:
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER")
    given = vars(parser.parse_args())
    for name, prepare in kinds.items():
        if (source := given[name.replace("-", "_")]) is not None:
            prepare(source, given["out"])


if __name__ == "__main__":
    main()
