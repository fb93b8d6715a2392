"""The embedded dataset `shapes`: drawn on first use and written in all three formats, to be read like any other.

Below `<datasets root>/shapes/v<VERSION>`: `images/<split>`, `panoptic_<split>`, `semantic_<split>`, `annotations` and
`label_map.json`. Each picture depends on its split and number alone.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from m2f.data.datasets.label_map import CategoryRow, packaged_table
from m2f.data.datasets.shapes_scene import SIZE, Scene, draw_scene

VERSION = 1  # of the drawing; a new one is drawn beside the old
FOLDER = f"shapes/v{VERSION}"
COUNTS = {"train": 900, "val": 120}
_SEED = 20211202


def scene(split: str, index: int) -> Scene:
    """Picture number `index` of "train" or "val", always the same."""
    return draw_scene(np.random.default_rng([_SEED, list(COUNTS).index(split), index]))


def prepare_shapes(root: Path) -> None:
    """Draw the dataset below `root` unless it is there.

    The folder appears whole or not at all; of two processes that draw at once one wins, and both can read.
    """
    target = root / FOLDER
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".drawing-", dir=target.parent))
    try:
        write_shapes(folder, COUNTS)
        os.chmod(folder, 0o755)
        os.rename(folder, target)
    except OSError:
        if not target.is_dir():
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_shapes(folder: Path, counts: dict[str, int]) -> None:
    """Write the first `counts[split]` pictures of each split into `folder`, with a progress bar on a terminal."""
    table = packaged_table("shapes")
    (folder / "annotations").mkdir(parents=True)
    _write_json(folder / "label_map.json", [_category(row) for row in table])
    with tqdm(total=sum(counts.values()), desc="drawing shapes", unit="image", disable=None) as bar:
        for split, count in counts.items():
            writer = _SplitWriter(folder, split, table)
            for index in range(count):
                writer.add(index, scene(split, index))
                bar.update()
            writer.finish()


class _SplitWriter:
    """The files of one split, in three formats at once."""

    def __init__(self, folder: Path, split: str, table: list[CategoryRow]) -> None:
        self.folder, self.split, self.table = folder, split, table
        self.things = {row.id: row for row in table if row.is_thing}
        self.images: list[dict[str, Any]] = []
        self.panoptic: list[dict[str, Any]] = []
        self.instances: list[dict[str, Any]] = []
        self.pairs: list[dict[str, str]] = []
        for name in (f"images/{split}", f"panoptic_{split}", f"semantic_{split}"):
            (folder / name).mkdir(parents=True)

    def add(self, index: int, scene: Scene) -> None:
        """Write one picture's PNGs and remember its rows."""
        name = f"{index:06d}.png"
        lookup = np.zeros(max(scene.categories) + 1, np.uint8)
        lookup[list(scene.categories)] = list(scene.categories.values())
        ids = np.stack([scene.ids, scene.ids * 0, scene.ids * 0], axis=2).astype(
            np.uint8
        )  # ids stay below 256: R alone
        image, segm = f"images/{self.split}/{name}", f"semantic_{self.split}/{name}"
        _write_png(self.folder / image, scene.image)
        _write_png(self.folder / f"panoptic_{self.split}" / name, ids)
        _write_png(self.folder / segm, lookup[scene.ids])
        image_id = index + 1
        self.images.append({"id": image_id, "file_name": name, "height": SIZE, "width": SIZE})
        rows = _segments(scene)
        self.panoptic.append({"image_id": image_id, "file_name": name, "segments_info": rows})
        for row in rows:
            if row["category_id"] in self.things:
                self.instances.append(self._instance(row, image_id, scene.ids == row["id"]))
        self.pairs.append({"img": image, "segm": segm})

    def _instance(self, row: dict[str, Any], image_id: int, mask: NDArray[np.bool_]) -> dict[str, Any]:
        rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
        return {**row, "id": len(self.instances) + 1, "image_id": image_id, "segmentation": segmentation}

    def finish(self) -> None:
        """Write the annotation files."""
        annotations, things = self.folder / "annotations", list(self.things.values())
        for kind, rows, named in (("panoptic", self.panoptic, self.table), ("instances", self.instances, things)):
            content = {"images": self.images, "annotations": rows, "categories": [_category(row) for row in named]}
            _write_json(annotations / f"{kind}_{self.split}.json", content)
        lines = "".join(json.dumps(pair) + "\n" for pair in self.pairs)
        (annotations / f"semantic_{self.split}.jsonl").write_text(lines, encoding="utf-8")


def _segments(scene: Scene) -> list[dict[str, Any]]:
    rows = []
    for segment, category in scene.categories.items():
        ys, xs = np.nonzero(scene.ids == segment)
        left, top = int(xs.min()), int(ys.min())
        bbox = [left, top, int(xs.max()) - left + 1, int(ys.max()) - top + 1]
        rows.append({"id": segment, "category_id": category, "iscrowd": 0, "area": len(xs), "bbox": bbox})
    return rows


def _category(row: CategoryRow) -> dict[str, Any]:
    return {"id": row.id, "name": row.name, "isthing": int(row.is_thing is not False), "color": row.color}


def _write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    Image.fromarray(pixels).save(path, compress_level=1)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
