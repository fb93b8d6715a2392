"""Tiles of real data: the truth comes back, and nuclei whose borders are unsteady are joined."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from m2f.data.build import load_dataset
from m2f.data.catalog import DatasetEntry
from m2f.data.mappers import EvalMapper
from m2f.data.transforms.policies import OwnSize
from m2f.merging.grid import tile_grid
from m2f.merging.tiles import TiledPredictor
from m2f.structures.metadata import Category, Metadata
from m2f.structures.panoptic import PanopticMap, Segment
from m2f.structures.sample import ModelOutput

pytestmark = pytest.mark.realdata
TILE = (101, 137)  # divides nothing


def tiled(predict, metadata: Metadata, size: tuple[int, int], tasks, scenes: ModuleType, tile=TILE) -> ModelOutput:
    return TiledPredictor(predict, metadata, tasks, tile)([scenes.coded(*size)])[0]


def truths(root: Path, name: str, count: int) -> tuple[Metadata, list[PanopticMap]]:
    root = root / name
    annotations = next(root.glob("annotations/panoptic_val*.json"))
    folders = {"image_dir": str(next(root.glob("images/val*"))), "panoptic_dir": str(next(root.glob("panoptic_val*")))}
    entry = DatasetEntry(name, "coco_panoptic", str(annotations), **folders, max_images=count)
    metadata, records = load_dataset(entry)
    mapper = EvalMapper(metadata, OwnSize(), ("panoptic",))
    return metadata, [mapper(record, np.random.default_rng(0))["panoptic"] for record in records]


@pytest.mark.parametrize(("name", "count"), [("coco_panoptic_200", 4), ("dsb2018_256", 5)])
def test_the_truth_of_tiles_is_the_truth(scenes: ModuleType, real_data: Path, name: str, count: int) -> None:
    """But for things whose visible parts no two tiles have in common: those stay as many as they are."""
    metadata, maps = truths(real_data, name, count)
    for truth in maps:
        size = tuple(truth.ids.shape)
        tiles = tile_grid(size, TILE, 0.25)
        parts = [scenes.pieces(truth.ids == s.id, tiles) if s.is_thing else 1 for s in truth.segments]
        output = tiled(scenes.Oracle(truth, metadata), metadata, size, ("panoptic", "instance"), scenes)
        _, iou = scenes.overlaps(truth, output["panoptic"])
        assert (iou.amax(1)[torch.tensor(parts) == 1] == 1).all()
        assert len(output["panoptic"].segments) == sum(parts)
        assert len(output["instance"]) == sum(n for n, s in zip(parts, truth.segments, strict=True) if s.is_thing)


def test_nuclei_with_unsteady_borders_are_joined(scenes: ModuleType, real_data: Path) -> None:
    metadata, maps = truths(real_data, "dsb2018_256", 8)
    once, all_of = 0, 0
    for seed, truth in enumerate(maps):
        things = [row for row, segment in enumerate(truth.segments) if segment.is_thing]
        oracle = scenes.Oracle(truth, metadata, scenes.Unsteady(truth, seed))
        output = tiled(oracle, metadata, tuple(truth.ids.shape), ("panoptic",), scenes, (104, 104))
        common, _ = scenes.overlaps(truth, output["panoptic"])
        owner = common.argmax(0).bincount(minlength=len(common))
        once, all_of = once + int((owner[things] == 1).sum()), all_of + len(things)
    assert once >= 0.95 * all_of > 150


def test_camvid_labels_come_back(scenes: ModuleType, real_data: Path) -> None:
    metadata = Metadata("camvid", tuple(Category(i + 1, str(i), False) for i in range(11)))
    for path in sorted((real_data / "camvid" / "masks" / "val").glob("*.png"))[:2]:
        labels = torch.from_numpy(np.array(Image.open(path))).long()
        rows = [Segment(v + 1, v, False) for v in labels.unique().tolist() if v < 11]
        truth = PanopticMap(torch.where(labels < 11, labels + 1, 0), rows)
        oracle = scenes.Oracle(truth, metadata)
        output = tiled(oracle, metadata, tuple(labels.shape), ("semantic", "panoptic"), scenes)
        known = truth.ids > 0
        assert torch.equal(output["semantic"][known], labels[known])
        assert len(output["panoptic"].segments) == len(rows)
        assert torch.equal(scenes.overlaps(truth, output["panoptic"])[1].amax(1), torch.ones(len(rows)))
