from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from PIL import Image

from m2f.data.build import load_dataset
from m2f.data.catalog import DatasetEntry
from m2f.data.images import Picture, orient, read_image
from m2f.data.outlines import run_lengths
from m2f.data.transforms import Geometry
from m2f.data.truth import check_ignore_label, read_truth
from m2f.structures.metadata import Category, Metadata

SIZE = (40, 60)
METADATA = Metadata("tiny", (Category(7, "cat"), Category(2, "dog"), Category(9, "sky", is_thing=False)))
LEFT_HALF = Geometry.identity(SIZE).cropped(0, 0, (40, 30))


def _picture(size=SIZE, orientation: int = 1) -> Picture:
    return Picture(np.zeros((*(size[::-1] if orientation > 4 else size), 3), np.uint8), size, orientation)


def _save(array: np.ndarray, path: Path) -> str:
    Image.fromarray(array).save(path)
    return str(path)


def _panoptic(tmp_path: Path, picture: Picture | None = None, ids: np.ndarray | None = None):
    """Left: cat 70000 over sky 300; right: dog 5 and a crowd of cats 6; the lowest rows are void."""
    if ids is None:
        ids = np.full(SIZE, 300)
        ids[:, 30:] = 5
        ids[5:15, 5:25] = 70000
        ids[20:30, 40:50] = 6
        ids[35:] = 0
    png = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
    record = {
        "file_name": "a.jpg",
        "pan_seg_file_name": _save(png, tmp_path / "a.png"),
        "segments_info": [
            {"id": 70000, "category_id": 7, "area": 200},
            {"id": 300, "category_id": 9},
            {"id": 5, "category_id": 2},
            {"id": 6, "category_id": 7, "iscrowd": 1},
        ],
    }
    return read_truth(record, METADATA, picture or _picture()), ids


def _instances(annotations: list, picture: Picture | None = None, frame=SIZE):
    record = {"file_name": "a.jpg", "height": frame[0], "width": frame[1], "annotations": annotations}
    return read_truth(record, METADATA, picture or _picture())


def _triangle(x: float, y: float, edge: float) -> list[float]:
    return [x, y, x + edge, y, x, y + edge]


def test_panoptic_targets_leave_out_crowd_and_void(tmp_path: Path) -> None:
    truth, ids = _panoptic(tmp_path)
    instances, valid = truth.targets(Geometry.identity(SIZE))
    assert instances.labels.tolist() == [0, 2, 1]
    for mask, segment in zip(instances.masks.numpy(), (70000, 300, 5), strict=True):
        assert (mask == (ids == segment)).all()
    assert (valid.numpy() == ~np.isin(ids, (0, 6))).all()


def test_a_segment_that_the_crop_misses_is_no_target(tmp_path: Path) -> None:
    truth, _ = _panoptic(tmp_path)
    instances, _ = truth.targets(LEFT_HALF)
    assert instances.labels.tolist() == [0, 2]
    assert instances.masks.dtype == torch.bool and instances.masks.shape == (2, 40, 30)
    instances, valid = truth.targets(Geometry.identity(SIZE).cropped(0, 0, (30, 30)))
    assert valid is None and len(instances) == 2
    instances, valid = truth.targets(Geometry.identity(SIZE).cropped(36, 0, (4, 30)))
    assert instances.masks.shape == (0, 4, 30) and not valid.any()


def test_panoptic_truth_answers_all_three_tasks(tmp_path: Path) -> None:
    truth, ids = _panoptic(tmp_path)
    panoptic = truth.answer("panoptic")
    assert panoptic.ids.dtype == torch.int64 and (panoptic.ids.numpy() == ids).all()
    assert [(s.id, s.label, s.is_thing, s.is_crowd) for s in panoptic.segments] == [
        (70000, 0, True, False),
        (300, 2, False, False),
        (5, 1, True, False),
        (6, 0, True, True),
    ]
    semantic = truth.answer("semantic").numpy()
    expected = np.select([np.isin(ids, (70000, 6)), ids == 5, ids == 300], [0, 1, 2], 255)
    assert semantic.dtype == np.int64 and (semantic == expected).all()
    instance = truth.answer("instance")
    assert instance.ids.tolist() == [70000, 5, 6] and instance.labels.tolist() == [0, 1, 0]
    assert instance.is_crowd.tolist() == [False, False, True]
    assert instance.areas.tolist() == [200, (ids == 5).sum(), 100]
    for code, segment in zip(instance.masks, (70000, 5, 6), strict=True):
        assert (coco_mask.decode(code) == (ids == segment)).all()


def test_panoptic_file_contradictions_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.png.*\[8\].*segments_info"):
        _panoptic(tmp_path, ids=np.full(SIZE, 8))
    with pytest.raises(ValueError, match=r"a\.png.*\(40, 60\).*\(10, 10\)"):
        _panoptic(tmp_path, _picture((10, 10)))


def _semantic(tmp_path: Path, values: np.ndarray, metadata: Metadata, picture: Picture | None = None):
    record = {"file_name": "a.jpg", "sem_seg_file_name": _save(values, tmp_path / "m.png")}
    return read_truth(record, metadata, picture or _picture(values.shape))


def test_semantic_values_become_labels(tmp_path: Path) -> None:
    values = np.array([[7, 7, 2, 0], [9, 9, 255, 2]], dtype=np.uint8)
    truth = _semantic(tmp_path, values, METADATA)
    assert truth.answer("semantic").tolist() == [[0, 0, 1, 255], [2, 2, 255, 1]]
    instances, valid = truth.targets(Geometry.identity((2, 4)))
    assert instances.labels.tolist() == [0, 1, 2]
    assert instances.masks[1].tolist() == [[False, False, True, False], [False, False, False, True]]
    assert valid.tolist() == [[True, True, True, False], [True, True, False, True]]
    assert truth.targets(Geometry.identity((2, 4)).cropped(0, 0, (2, 2))).valid is None
    with pytest.raises(ValueError, match=r"a\.jpg.*'panoptic'.*semantic"):
        truth.answer("panoptic")


def test_zero_is_a_class_where_a_category_says_so(tmp_path: Path) -> None:
    metadata = Metadata("zero", (Category(0, "sky"), Category(1, "road")))
    truth = _semantic(tmp_path, np.array([[0, 1, 255]], dtype=np.uint8), metadata)
    assert truth.answer("semantic").tolist() == [[0, 1, 255]]


def test_strange_values_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"m\.png.*\[3, 200\]"):
        _semantic(tmp_path, np.array([[3, 200, 7]], dtype=np.uint8), METADATA)


def test_many_classes_in_sixteen_bits(tmp_path: Path) -> None:
    metadata = Metadata("many", tuple(Category(i + 1, str(i)) for i in range(847)), ignore_label=65535)
    check_ignore_label(metadata)
    values = np.array([[1, 255, 256, 847, 65535, 0]], dtype=np.uint16)
    truth = _semantic(tmp_path, values, metadata)
    assert truth.answer("semantic").tolist() == [[0, 254, 255, 846, 65535, 65535]]
    assert truth.targets(Geometry.identity((1, 6))).instances.labels.tolist() == [0, 254, 255, 846]


def test_an_ignore_label_that_is_a_class_is_refused() -> None:
    check_ignore_label(METADATA)
    check_ignore_label(Metadata("sparse", (Category(255, "an id of a COCO file, which no mask holds"),)))
    for first, count in ((1, 300), (0, 256)):
        with pytest.raises(ValueError, match=r"ignore_label 255.*65535"):
            check_ignore_label(Metadata("many", tuple(Category(i + first, str(i)) for i in range(count))))


def test_polygons_are_drawn_as_pycocotools_draws_them() -> None:
    rng = np.random.default_rng(0)
    polygons = [[rng.uniform(0, 40, 12).round(2).tolist(), _triangle(30, 10, 20)], [_triangle(2.5, 3.5, 30.0)]]
    truth = _instances([{"id": i, "category_id": 7, "segmentation": part} for i, part in enumerate(polygons)])
    instances, valid = truth.targets(Geometry.identity(SIZE))
    assert valid is None
    for mask, part in zip(instances.masks.numpy(), polygons, strict=True):
        assert (mask == coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(part, *SIZE)))).all()
    # A cut at whole pixels shows a part of the same mask, though corners lie outside it.
    cut = truth.targets(Geometry.identity(SIZE).cropped(8, 12, (25, 40))).instances.masks.numpy()
    assert (cut == instances.masks.numpy()[:, 8:33, 12:52]).all()


def test_polygons_and_their_codes_see_the_same_crop() -> None:
    polygon = [_triangle(10, 5, 30)]
    code = coco_mask.merge(coco_mask.frPyObjects(polygon, *SIZE))
    uncompressed = {"size": list(SIZE), "counts": _run_lengths(coco_mask.decode(code))}
    text = {"size": list(SIZE), "counts": code["counts"].decode()}
    truth = _instances(
        [{"id": i, "category_id": 7, "segmentation": s} for i, s in enumerate((polygon, code, uncompressed, text))]
    )
    geometry = Geometry.identity(SIZE).resized((80, 100)).flipped(horizontal=True).cropped(5, 20, (50, 60))
    drawn, *looked_up = truth.targets(geometry).instances.masks.numpy()
    for mask in looked_up:
        assert (mask == geometry.apply_ids(coco_mask.decode(code))).all()
        assert (mask & drawn).sum() / (mask | drawn).sum() > 0.95


@pytest.mark.parametrize("counts", [[100, 30], [100, 3000], [], [100, 2300, 100, -100], "T3n0", "", "no code"])
def test_run_lengths_that_do_not_fill_their_size_are_refused(counts: list[int] | str) -> None:
    """pycocotools would take what is missing from whatever the memory holds."""
    with pytest.raises(ValueError, match=r"a\.jpg: annotation 3: run lengths of .* do not fill 40 x 60"):
        _instances([{"id": 3, "category_id": 7, "segmentation": {"size": list(SIZE), "counts": counts}}])


@pytest.mark.parametrize("x", [float("nan"), float("inf"), -1e9])
def test_polygons_from_nowhere_are_refused(x: float) -> None:
    """pycocotools would end the process."""
    polygon = [[1, 1, 20, 1, 20, 20], [x, 4, 30, 5, 8, 9]]
    with pytest.raises(ValueError, match=r"a\.jpg: annotation 3: a polygon has a corner"):
        _instances([{"id": 3, "category_id": 7, "segmentation": polygon}])


def test_run_lengths_are_read_from_text_as_pycocotools_wrote_them() -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        mask = np.kron(rng.random((7, 9)) < share, np.ones((41, 53))).astype(np.uint8)
        runs = run_lengths(coco_mask.encode(np.asfortranarray(mask))["counts"])
        assert (np.repeat(np.arange(len(runs)) % 2, runs) == mask.T.ravel()).all()


def _run_lengths(mask: np.ndarray) -> list[int]:
    flat = np.concatenate([[0], mask.T.ravel(), [2]])
    changes = np.flatnonzero(np.diff(flat)).tolist()
    return np.diff([0, *changes]).tolist() if changes[0] else np.diff(changes, prepend=0).tolist()


def test_crowds_and_unseen_objects_are_no_targets() -> None:
    crowd = np.zeros(SIZE, np.uint8)
    crowd[:, 10:] = 1
    annotations = [
        {"id": 4, "category_id": 7, "segmentation": [[2, 2, 20, 2, 20, 20, 2, 20]], "area": 324.5, "iscrowd": 0},
        {"id": 5, "category_id": 2, "segmentation": [[40, 2, 50, 2, 50, 20, 40, 20]], "iscrowd": 0},
        {"id": 6, "category_id": 7, "segmentation": coco_mask.encode(np.asfortranarray(crowd)), "iscrowd": 1},
        {"id": 7, "category_id": 2, "segmentation": []},
    ]
    truth = _instances(annotations)
    instances, valid = truth.targets(LEFT_HALF)
    assert instances.labels.tolist() == [0]
    expected = np.zeros((40, 30), bool)
    expected[:, 10:] = True
    expected[2:20, 2:20] = False  # a target inside the crowd is known
    assert (~valid.numpy() == expected).all()
    answer = truth.answer("instance")
    assert answer.ids.tolist() == [4, 5, 6, 7] and answer.is_crowd.tolist() == [False, False, True, False]
    assert answer.areas.tolist() == [324.5, 180.0, 2000.0, 0.0] and answer.labels.tolist() == [0, 1, 0, 1]
    semantic = truth.answer("semantic")
    assert semantic[10, 45] == 1 and semantic[10, 15] == 0 and semantic[30, 30] == 0 and semantic[0, 0] == 255
    with pytest.raises(ValueError, match="'panoptic'"):
        truth.answer("panoptic")


def test_no_objects_at_all(tmp_path: Path) -> None:
    truth = _instances([])
    instances, valid = truth.targets(LEFT_HALF)
    assert instances.masks.shape == (0, 40, 30) and instances.labels.shape == (0,) and valid is None
    assert len(truth.answer("instance")) == 0 and (truth.answer("semantic") == 255).all()
    assert read_truth({"file_name": "a.jpg"}, METADATA, _picture()) is None
    record = {
        "file_name": "a.jpg",
        "pan_seg_file_name": _save(np.zeros((*SIZE, 3), np.uint8), tmp_path / "empty.png"),
        "segments_info": [],
    }
    truth = read_truth(record, METADATA, _picture())
    assert len(truth.targets(LEFT_HALF).instances) == 0 and not truth.targets(LEFT_HALF).valid.any()
    assert truth.answer("panoptic").segments == [] and len(truth.answer("instance")) == 0


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_annotations_of_the_stored_pixels_turn_with_the_image(tmp_path: Path, orientation: int) -> None:
    picture = _picture(orientation=orientation)
    assert picture.size == (60, 40)
    truth, ids = _panoptic(tmp_path, picture)
    assert (truth.answer("panoptic").ids.numpy() == orient(ids, orientation)).all()
    polygon = [[3, 2, 25, 4, 20, 30]]
    stored = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygon, *SIZE)))
    annotations = [
        {"id": 1, "category_id": 7, "segmentation": polygon},
        {"id": 2, "category_id": 7, "segmentation": coco_mask.encode(np.asfortranarray(stored))},
    ]
    for mask in _instances(annotations, picture).targets(Geometry.identity(picture.size)).instances.masks.numpy():
        assert (mask == orient(stored, orientation)).all()
    turned = _instances([annotations[0]], picture, frame=(60, 40)).targets(Geometry.identity(picture.size))
    assert (
        turned.instances.masks[0].numpy() == coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygon, 60, 40)))
    ).all()
    with pytest.raises(ValueError, match=r"annotation 1 .*\(30, 30\)"):
        _instances(annotations, picture, frame=(30, 30))


@pytest.mark.realdata
def test_real_panoptic_truth_equals_the_files_derived_from_it(real_data: Path) -> None:
    root = real_data / "coco_panoptic_200"
    metadata, records = load_dataset(
        DatasetEntry(
            "coco",
            "coco_panoptic",
            annotations=str(root / "annotations/panoptic_val2017.json"),
            image_dir=str(root / "images/val2017"),
            panoptic_dir=str(root / "panoptic_val2017"),
        )
    )
    content = json.loads((root / "annotations/instances_val2017_from_panoptic.json").read_text())
    for record in records[:15]:
        truth = read_truth(record, metadata, read_image(record["file_name"]))
        name = Path(record["pan_seg_file_name"]).name
        with Image.open(root / "semantic_masks/val2017" / name) as image:
            assert (truth.answer("semantic").numpy() == np.asarray(image)).all(), name
        stated = [a for a in content["annotations"] if str(a["image_id"]) == str(record["image_id"])]
        answer = truth.answer("instance")
        assert sorted(a["category_id"] for a in stated) == sorted(
            metadata.categories[i].id for i in answer.labels.tolist()
        )
        assert sorted(a["area"] for a in stated) == sorted(answer.areas.tolist())
        codes = {_text(a["segmentation"]["counts"]) for a in stated if isinstance(a["segmentation"]["counts"], str)}
        if codes:
            assert codes == {_text(code["counts"]) for code in answer.masks}


def _text(counts: str | bytes) -> str:
    return counts if isinstance(counts, str) else counts.decode()


@pytest.mark.realdata
def test_real_instances_keep_their_area(real_data: Path) -> None:
    root = real_data / "coco_instances_160"
    annotations = str(root / "annotations/instances_val2017.json")
    metadata, records = load_dataset(
        DatasetEntry("coco", "coco", annotations=annotations, image_dir=str(root / "images/val2017"))
    )
    for record in records[:20]:
        picture = read_image(record["file_name"])
        truth = read_truth(record, metadata, picture)
        answer = truth.answer("instance")
        drawn = np.array([coco_mask.area(code) for code in answer.masks], dtype=float)
        assert np.abs(drawn - answer.areas.numpy()).sum() <= 0.05 * max(answer.areas.sum().item(), 1.0)
        targets = truth.targets(Geometry.identity(picture.size)).instances
        kept = ~answer.is_crowd.numpy() & (drawn > 0)
        assert (targets.masks.sum((1, 2)).numpy() == drawn[kept]).all()
