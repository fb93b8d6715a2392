"""Predictions of other tools, told by content; what is wrong with them is said by file and place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from m2f.data.predictions import PredictionWriter, SavedPredictions
from m2f.data.predictions import rows as rows_module
from m2f.data.predictions.rows import RowsByImage, stream_rows
from m2f.structures.metadata import Category, contiguous_metadata

SIZE = (6, 8)
TOY = contiguous_metadata("toy_val", [Category(3, "disc"), Category(7, "box"), Category(90, "sky", is_thing=False)])
IDS = np.where(np.arange(48).reshape(SIZE) < 20, 300, 2)
COUNTS = [10, 4, 34]  # down the columns
MASK = np.zeros(48, bool)
MASK[10:14] = True
MASK = MASK.reshape(SIZE[::-1]).T
POLYGON = [[1, 1, 5, 1, 5, 4, 1, 4]]


def sample(image_id=139, file_name="/coco/val2017/000000000139.jpg"):
    return {"image_id": image_id, "file_name": file_name, "height": SIZE[0], "width": SIZE[1]}


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def result(**changes):
    code = {"size": list(SIZE), "counts": COUNTS}
    row = {"image_id": 139, "category_id": 7, "segmentation": code, "score": 0.5} | changes
    return {key: value for key, value in row.items() if value is not None}


def write_panoptic(path: Path, pngs: Path, content=None, ids=IDS, name="000000000139.png") -> Path:
    pngs.mkdir(parents=True, exist_ok=True)
    pixels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(pngs / name)
    return write_json(path, {"annotations": [annotation()]} if content is None else content)


def annotation(**changes):
    segments = [{"id": 300, "category_id": 7}, {"id": 2, "category_id": 90}]
    return {"image_id": 139, "file_name": "000000000139.png", "segments_info": segments} | changes


def write_mask(path: Path, values=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.where(IDS == 2, 90, 7).astype(np.uint8) if values is None else values).save(path)
    return path


def answer(path, task: str, one=None, metadata=TOY):
    return SavedPredictions([str(path)], metadata, [task])([one or sample()])[0][task]


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [
        ({"size": list(SIZE), "counts": COUNTS}, MASK),
        (coco_mask.frPyObjects({"size": SIZE, "counts": COUNTS}, *SIZE), MASK),
        (POLYGON, coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(POLYGON, *SIZE))).astype(bool)),
        ([], np.zeros(SIZE, bool)),
    ],
    ids=["run lengths", "text", "polygon", "nothing"],
)
def test_masks_come_in_every_form(tmp_path: Path, segmentation, expected) -> None:
    if isinstance(segmentation, dict):
        segmentation["counts"] = getattr(segmentation["counts"], "decode", lambda: COUNTS)()
    path = write_json(tmp_path / "r.json", [result(segmentation=segmentation), result(image_id=5)])
    found = answer(path, "instance")
    assert (coco_mask.decode(found.masks[0]).astype(bool) == expected).all()
    assert found.labels.tolist() == [1]
    rows, columns = expected.nonzero()
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
    assert found.boxes.tolist() == [box]


def test_rows_keep_their_order_and_scores_their_digits(tmp_path: Path) -> None:
    scores = [0.1, 0.3, 0.2, 0.1 + 1e-12, 1]
    rows = [result(score=score, image_id=number % 2) for number, score in enumerate(scores)]
    path = write_json(tmp_path / "r.json", rows)
    assert answer(path, "instance", sample(0)).scores.tolist() == [0.1, 0.2, 1.0]
    assert answer(path, "instance", sample("1")).scores.tolist() == [0.3, 0.1 + 1e-12]
    nothing = answer(path, "instance", sample(2))
    assert (len(nothing), nothing.masks, nothing.boxes.shape) == (0, [], (0, 4))


@pytest.mark.parametrize("folder", ["preds", "panoptic", "."])
def test_panoptic_pngs_lie_in_one_of_three_folders(tmp_path: Path, folder: str) -> None:
    path = write_panoptic(tmp_path / "preds.json", tmp_path / folder)
    found = answer(path, "panoptic")
    assert (found.ids.numpy() == IDS).all()
    assert [(s.id, s.label, s.is_thing, s.score) for s in found.segments] == [(300, 1, True, 1.0), (2, 2, False, 1.0)]


def test_a_list_of_annotations_is_panoptic_too(tmp_path: Path) -> None:
    path = write_panoptic(tmp_path / "p.json", tmp_path / "p", [annotation()])
    assert (answer(path, "panoptic").ids.numpy() == IDS).all()


@pytest.mark.parametrize(
    ("mask", "one"),
    [
        ("000000000139", sample()),
        ("val2017/000000000139", sample()),
        ("139", sample()),
        ("sub/x", sample("sub/x", "data/sub/x.png")),
        ("sub/x", sample(5, "data/sub/x.png")),
    ],
)
def test_masks_are_found_by_name(tmp_path: Path, mask: str, one) -> None:
    write_mask(tmp_path / "masks" / f"{mask}.png")
    assert (answer(tmp_path / "masks", "semantic", one).numpy() == np.where(IDS == 2, 2, 1)).all()


def test_no_answer_is_the_ignore_label_or_a_0_that_is_no_category(tmp_path: Path) -> None:
    write_mask(tmp_path / "139.png", np.tile(np.array([0, 255, 3, 7], np.uint8), (6, 2)))
    assert answer(tmp_path, "semantic")[0].tolist() == [255, 255, 0, 1] * 2


def test_folders_of_detectron2_and_of_several_datasets(tmp_path: Path) -> None:
    for dataset, score in (("", 0.25), ("toy_val", 0.5), ("toy_test", 0.75)):
        write_json(tmp_path / dataset / "coco_instances_results.json", [result(score=score)])
        write_panoptic(tmp_path / dataset / "predictions.json", tmp_path / dataset / "predictions")
        write_json(tmp_path / dataset / "sem_seg_predictions.json", [])
    tasks = ["instance", "panoptic"]
    for saved, score in (
        (SavedPredictions([str(tmp_path)], TOY, tasks), 0.5),
        (SavedPredictions([str(tmp_path)], TOY, tasks, "toy_test"), 0.75),
        (SavedPredictions([str(tmp_path)], TOY, tasks, "../outside"), 0.25),
        (SavedPredictions([str(tmp_path / "toy_test/")], TOY, tasks), 0.75),
    ):
        assert saved([sample()])[0]["instance"].scores.tolist() == [score]


def test_each_task_from_a_path_of_its_own(tmp_path: Path) -> None:
    paths = [
        write_json(tmp_path / "r.json", [result()]),
        write_panoptic(tmp_path / "p.json", tmp_path / "p"),
        write_mask(tmp_path / "m/139.png").parent,
    ]
    outputs = SavedPredictions([str(path) for path in paths], TOY, ["semantic", "panoptic", "instance"])([sample()])
    assert set(outputs[0]) == {"semantic", "panoptic", "instance"}
    with pytest.raises(ValueError, match=r"two predictions for instance: .*r\.json and .*r\.json"):
        SavedPredictions([str(paths[0])] * 2, TOY, ["instance"])


def test_what_is_missing_is_named(tmp_path: Path, scenes) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file or folder of predictions: .*nowhere"):
        SavedPredictions([str(tmp_path / "nowhere")], TOY, ["instance"])
    path = write_json(tmp_path / "r.json", [result()])
    with pytest.raises(FileNotFoundError, match=r"no saved semantic predictions in .*found instance \(.*r\.json\)$"):
        SavedPredictions([str(path)], TOY, ["semantic"])
    PredictionWriter(tmp_path / "unfinished", TOY, ["instance"])
    with pytest.raises(FileNotFoundError, match=r"found none; is .*predictions\.jsonl of a run that has not finished"):
        SavedPredictions([str(tmp_path / "unfinished")], TOY, ["instance"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"annotations": [{"segmentation": []}], "images": []}, "neither a JSON list of COCO results nor"),
        ("text", "neither a JSON list"),
        ([{**result(), "score": None}], r"row 0: score is None.*annotation file"),
        ([result(score=float("nan"))], "row 0: score is nan"),
        ([result(), result(category_id=91)], r"row 1: category_id 91 is none of dataset 'toy_val'"),
        ([result(category_id=None)], "row 0: category_id None"),
        ([result(image_id=None)], "row 0 has no image_id"),
        ([result(segmentation=None)], "row 0: segmentation must be run lengths or polygons"),
        ([result(segmentation={"size": [6, 8]})], "row 0: segmentation must be"),
        ([result(segmentation=[1, 2, 3, 4, 5, 6])], "row 0: segmentation must be"),
        ([result(), 5], "row 1: expected an object, got 5"),
    ],
)
def test_faulty_results_are_refused_when_they_are_opened(tmp_path: Path, content, message: str) -> None:
    path = write_json(tmp_path / "r.json", content)
    with pytest.raises(ValueError, match=message) as caught:
        SavedPredictions([str(path)], TOY, ["instance"])
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [8, 6], "counts": COUNTS}, r"r\.json: image_id 139.*drawn for \(8, 6\).*has \(6, 8\)"),
        ({"size": list(SIZE), "counts": [10, 4]}, "run lengths of 14 pixels do not fill 6 x 8"),
        ({"size": list(SIZE), "counts": "06Z1zzz"}, "do not fill"),
    ],
)
def test_masks_that_do_not_fit_are_refused(tmp_path: Path, segmentation, message: str) -> None:
    path = write_json(tmp_path / "r.json", [result(segmentation=segmentation)])
    with pytest.raises(ValueError, match=message):
        answer(path, "instance")


SEGMENT = {"id": 300, "category_id": 7}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"file_name": "../000000000139.png"}, "leaves its folder"),
        ({"file_name": "/etc/000000000139.png"}, "leaves its folder"),
        ({"file_name": None}, "has no file_name"),
        ({"image_id": None}, r"annotations\[0\] has no image_id"),
        ({"segments_info": 7}, "has no list segments_info"),
        ({"segments_info": [{"id": 0, "category_id": 7}]}, "needs an id from 1 to 16777215"),
        ({"segments_info": [SEGMENT, SEGMENT]}, "two segments have one id"),
        ({"segments_info": [{"id": 300, "category_id": 8}]}, "segment 300: category_id 8 is none of"),
        ({"segments_info": [{**SEGMENT, "score": "high"}]}, "segment 300: score is 'high'"),
    ],
)
def test_faulty_panoptic_files_are_refused(tmp_path: Path, changes, message: str) -> None:
    path = write_panoptic(tmp_path / "p.json", tmp_path / "p", {"annotations": [annotation(**changes)]})
    with pytest.raises(ValueError, match=message):
        SavedPredictions([str(path)], TOY, ["panoptic"])


def test_panoptic_pngs_must_agree_with_their_file(tmp_path: Path) -> None:
    path = write_panoptic(tmp_path / "p.json", tmp_path / "p", ids=np.where(IDS == 2, 5, 300))
    with pytest.raises(ValueError, match=r"139\.png: pixels have the segment ids \[5\], which segments_info does not"):
        answer(path, "panoptic")
    write_panoptic(path, tmp_path / "p", ids=IDS.T)
    with pytest.raises(ValueError, match=r"139\.png: the mask has \(8, 6\) pixels .*has \(6, 8\)"):
        answer(path, "panoptic")
    twice = {"annotations": [annotation(), annotation()]}
    with pytest.raises(ValueError, match=r"annotations\[1\]: another annotation has image_id 139"):
        SavedPredictions([str(write_panoptic(path, tmp_path / "p", twice))], TOY, ["panoptic"])
    far = write_json(tmp_path / "far/q.json", {"annotations": [annotation()]})
    with pytest.raises(
        FileNotFoundError, match=r"its PNGs \(000000000139\.png\) are in none of .*far/q, .*far/panoptic"
    ):
        SavedPredictions([str(far)], TOY, ["panoptic"])


def test_masks_must_hold_categories_at_the_images_size(tmp_path: Path) -> None:
    write_mask(tmp_path / "139.png", np.full(SIZE, 8, np.uint8))
    with pytest.raises(ValueError, match=r"139\.png: mask values \[8\] are no category of dataset 'toy_val'"):
        answer(tmp_path, "semantic")
    write_mask(tmp_path / "139.png", np.full(SIZE[::-1], 7, np.uint8))
    with pytest.raises(ValueError, match=r"139\.png: the mask has \(8, 6\)"):
        answer(tmp_path, "semantic")
    write_mask(tmp_path / "139.bmp")
    with pytest.raises(ValueError, match=r"139\.(bmp|png) and 139\.(bmp|png) are masks of one image"):
        answer(tmp_path, "semantic")


def test_images_without_a_prediction_are_counted_and_named(tmp_path: Path) -> None:
    records = [sample(), *(sample(n, f"/coco/{n}.jpg") for n in range(5))]
    write_mask(tmp_path / "m/139.png")
    panoptic = write_panoptic(tmp_path / "p.json", tmp_path / "p")
    for path, task in ((tmp_path / "m", "semantic"), (panoptic, "panoptic")):
        saved = SavedPredictions([str(path)], TOY, [task])
        saved.check(records[:1])
        named = r"5 of the 6 images of dataset 'toy_val': /coco/0\.jpg, /coco/1\.jpg, /coco/2\.jpg and 2 more"
        with pytest.raises(ValueError, match=f"no {task} prediction for {named}"):
            saved.check(records)
        with pytest.raises(ValueError, match=rf"no {task} prediction for /coco/0\.jpg"):
            saved(records[1:2])
    SavedPredictions([str(write_json(tmp_path / "r.json", [result()]))], TOY, ["instance"]).check(records)


def test_predictions_for_other_images_warn_and_for_others_only_are_refused(tmp_path: Path, caplog) -> None:
    path = write_json(tmp_path / "r.json", [result(), result(image_id=7), result(image_id=8)])
    saved = SavedPredictions([str(path)], TOY, ["instance"])
    saved.check([sample()])
    assert "passed over, as dataset 'toy_val' lacks the image: 7, 8" in caplog.text
    with pytest.raises(ValueError, match="predictions for 139, 7, 8, none of which is among the 1 images"):
        saved.check([sample(5)])
    SavedPredictions([str(write_json(path, []))], TOY, ["instance"]).check([sample()])


def test_one_mask_answers_for_one_image(tmp_path: Path) -> None:
    write_mask(tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"'x' is the semantic prediction of two images: /b/x\.jpg"):
        SavedPredictions([str(tmp_path)], TOY, ["semantic"]).check([sample(1, "/a/x.jpg"), sample(2, "/b/x.jpg")])


@pytest.mark.parametrize("chunk", [3, 7, 2**20])
def test_rows_are_streamed_as_json_reads_them(tmp_path: Path, monkeypatch, chunk: int) -> None:
    monkeypatch.setattr(rows_module, "_CHUNK", chunk)
    content = [{"a": [1, {"b": "]}, {"}]}, {}, {"ä": "ü\n", "n": -1.5e-7}]
    for text in (json.dumps(content), json.dumps(content, indent=2, ensure_ascii=False), " \n[ ] "):
        path = tmp_path / "rows.json"
        path.write_text(text, encoding="utf-8")
        assert list(stream_rows(str(path))) == json.loads(text)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'[{"a": 1}, {"b": ', "row 1: not valid JSON, or cut short"),
        (b'[{"a": 1}', "row 1: not valid JSON, or cut short"),
        (b'[{"a": nope}]', "row 0: not valid JSON"),
        (b'{"a": 1}', "expected a JSON list"),
        (b"[" + b"\xff" * 8, "not UTF-8 text"),
        (b"[" + b'{"a":' * 100000, "row 0: nested too deeply"),
    ],
)
def test_damaged_lists_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(stream_rows(str(path)))


def test_rows_by_image() -> None:
    packed = RowsByImage([("b", 1), ("a", {"x": 2}), ("b", [3])])
    assert packed.keys == {"a", "b"}
    assert (packed.of("b"), packed.of("a"), packed.of("c")) == ([1, [3]], [{"x": 2}], [])
    assert RowsByImage([]).of("a") == []
