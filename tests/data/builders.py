"""Tiny hand-made datasets, written to a folder by tests that need files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (6, 8)  # height, width of every image


def write_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def instance_content() -> dict[str, Any]:
    """Three images: a polygon and a crowd RLE, one compressed RLE, none."""
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for n in (3, 1, 2)],
        "annotations": [
            _object(10, 3, 7, [[1, 1, 5, 1, 5, 4, 1, 4]]),
            _object(11, 3, 2, {"size": list(SIZE), "counts": [0, 6, 42]}, iscrowd=1),
            _object(12, 1, 7, {"size": list(SIZE), "counts": "06Z1"}),
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 2, "name": "dog", "color": [1, 2, 3]}],
    }


def _object(number: int, image_id: int, category_id: int, segmentation: Any, iscrowd: int = 0) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        "area": 6.0,
        "iscrowd": iscrowd,
        "bbox": [0, 0, 1, 6],
    }


def panoptic_content() -> dict[str, Any]:
    """Three images: two segments, one crowd segment without `iscrowd` elsewhere, and one without an annotation."""
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "height": SIZE[0], "width": SIZE[1]} for n in (3, 1, 2)],
        "annotations": [
            {
                "image_id": 1,
                "file_name": "1.png",
                "segments_info": [{"id": 300, "category_id": 7, "area": 24}, {"id": 2, "category_id": 2, "area": 24}],
            },
            {"image_id": 3, "file_name": "3.png", "segments_info": [{"id": 5, "category_id": 7, "iscrowd": 1}]},
        ],
        "categories": [{"id": 7, "name": "cat", "isthing": 1}, {"id": 2, "name": "grass", "isthing": 0}],
    }


def write_instances(root: Path, content: dict[str, Any] | None = None) -> Path:
    """`images/*.png` and `instances.json` below root; returns the JSON's path."""
    for number in (1, 2, 3):
        write_image(root / "images" / f"{number}.png", number)
    return write_json(root / "instances.json", instance_content() if content is None else content)


def write_panoptic(root: Path, content: dict[str, Any] | None = None) -> Path:
    """`images/*.png`, `panoptic/*.png` and `panoptic.json` below root; returns the JSON's path."""
    for number in (1, 2, 3):
        write_image(root / "images" / f"{number}.png", number)
    ids = np.full(SIZE, 2)
    ids[:3] = 300
    for name, value in (("1", ids), ("3", np.full(SIZE, 5))):
        path = root / "panoptic" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.stack([value % 256, value // 256 % 256, value // 65536], axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    return write_json(root / "panoptic.json", panoptic_content() if content is None else content)


def write_pairs(root: Path, mask: np.ndarray | None = None) -> Path:
    """`images/{a,sub/b}.png`, `masks/` alike, `pairs.jsonl` and `label_map.json`; returns the list's path."""
    values = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 4 if mask is None else mask
    lines = []
    for seed, stem in enumerate(("a", "sub/b")):
        write_image(root / "images" / f"{stem}.png", seed)
        path = root / "masks" / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.astype(np.uint8)).save(path)
        lines.append(json.dumps({"img": f"images/{stem}.png", "segm": f"masks/{stem}.png"}))
    write_json(root / "label_map.json", [{"id": n, "name": f"kind {n}", "color": [n, n, n]} for n in (1, 2, 3)])
    path = root / "pairs.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path
