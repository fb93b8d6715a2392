"""The table of datasets known by name; paths are relative to the datasets' root, see datasets/README.md."""

from __future__ import annotations

from m2f.data.catalog import DatasetCatalog, DatasetEntry
from m2f.data.datasets.shapes import COUNTS, FOLDER, prepare_shapes


def _coco(split: str) -> list[DatasetEntry]:
    annotations, images = "coco/annotations", f"coco/{split}2017"
    panoptic = DatasetEntry(
        name=f"coco_2017_{split}_panoptic",
        format="coco_panoptic",
        annotations=f"{annotations}/panoptic_{split}2017.json",
        image_dir=images,
        panoptic_dir=f"coco/panoptic_{split}2017",
        categories="coco_panoptic",
    )
    instance = DatasetEntry(
        name=f"coco_2017_{split}_instance",
        format="coco",
        annotations=f"{annotations}/instances_{split}2017.json",
        image_dir=images,
        categories="coco_instance",
    )
    return [panoptic, instance]


def _ade20k(split: str, folder: str) -> DatasetEntry:
    root = "ADEChallengeData2016"
    return DatasetEntry(
        name=f"ade20k_{split}",
        format="ade",
        image_dir=f"{root}/images/{folder}",
        mask_dir=f"{root}/annotations/{folder}",
        categories="ade20k",
    )


def _cityscapes(split: str) -> DatasetEntry:
    return DatasetEntry(
        name=f"cityscapes_{split}",
        format="ade",
        image_dir=f"cityscapes/leftImg8bit/{split}",
        mask_dir=f"cityscapes/gtFine/{split}",
        stem_endings=("_leftImg8bit", "_gtFine_labelTrainIds"),
        zero_is_ignore=False,
        categories="cityscapes",
    )


def _shapes(split: str) -> list[DatasetEntry]:
    annotations, images = f"{FOLDER}/annotations", f"{FOLDER}/images/{split}"
    panoptic = DatasetEntry(
        name=f"shapes_panoptic_{split}",
        format="coco_panoptic",
        annotations=f"{annotations}/panoptic_{split}.json",
        image_dir=images,
        panoptic_dir=f"{FOLDER}/panoptic_{split}",
        prepare=prepare_shapes,
    )
    instance = DatasetEntry(
        name=f"shapes_instance_{split}",
        format="coco",
        annotations=f"{annotations}/instances_{split}.json",
        image_dir=images,
        prepare=prepare_shapes,
    )
    semantic = DatasetEntry(
        name=f"shapes_semantic_{split}",
        format="ade",
        annotations=f"{annotations}/semantic_{split}.jsonl",
        root_dir=FOLDER,
        label_map=f"{FOLDER}/label_map.json",
        prepare=prepare_shapes,
    )
    return [panoptic, instance, semantic]


def _register_all() -> None:
    rows = [_ade20k("train", "training"), _ade20k("val", "validation"), _cityscapes("train"), _cityscapes("val")]
    for split in COUNTS:
        rows += [*_coco(split), *_shapes(split)]
    for row in rows:
        DatasetCatalog.register(row)


_register_all()
