"""Write what small OpenMMLab models answer, for test_mmdetection.py: `python make_mmdetection.py mmdetection_3`.

Needs mmdet 3.3.0, mmengine and mmcv-lite 2.1.0 (mmdetection_3), mmsegmentation 1.2.2 with these (mmsegmentation_1), or
mmdet 2.28.2 and mmcv 1.7.2 (mmdetection_2), on the CPU; mmcv's compiled operators are not needed. The weights and the
image are not stored: the test draws them again.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "schemes"))

CONFIGS = {
    "mmdetection_2": "mask2former_r50_lsj_8x2_50e_coco-panoptic.py",
    "mmdetection_3": "mask2former_r50_8xb2-lsj-50e_coco-panoptic.py",
    "mmsegmentation_1": "mask2former_r50_8xb2-160k_ade20k-512x512.py",
}
BACKBONES: dict[str, dict[str, Any]] = {
    "resnet": {"type": "ResNet", "depth": 18, "base_channels": 8, "stem_channels": 8, "norm_eval": True},
    "swin": {"type": "SwinTransformer", "embed_dims": 8, "depths": [2, 2, 2, 1], "num_heads": [2, 2, 4, 4]},
}
BACKBONES["swin"] |= {"window_size": 3, "out_indices": (0, 1, 2, 3), "patch_norm": True}
WHEREVER = {"embed_dims": 32, "num_heads": 4, "num_feats": 16, "feat_channels": 32, "out_channels": 32}
WHEREVER |= {"num_things_classes": 4, "num_stuff_classes": 2, "num_classes": 6, "class_weight": [1.0] * 6 + [0.1]}
WHEREVER |= {"in_channels": [8, 16, 32, 64], "num_queries": 5, "pretrained": None}


class NoOperators(ModuleType):
    """Stands for mmcv's compiled operators, none of which is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_: None


def shrink(node: dict[str, Any], sizes: dict[str, Any]) -> None:
    for key, value in node.items():
        if key in sizes:
            node[key] = sizes[key]
        elif isinstance(value, dict):
            shrink(value, sizes)


def build(home: str, backbone: str) -> torch.nn.Module:
    package = "mmseg" if home == "mmsegmentation_1" else "mmdet"
    models = importlib.import_module(f"{package}.models")
    folder = Path(models.__file__).parents[1] / ".mim" / "configs" / "mask2former"
    config = importlib.import_module("mmcv" if home == "mmdetection_2" else "mmengine").Config
    cfg = config.fromfile(str(folder / CONFIGS[home])).model
    cfg.pop("backbone")
    head = cfg.decode_head if package == "mmseg" else cfg.panoptic_head
    shrink(cfg, WHEREVER)
    shrink(head.pixel_decoder, {"num_layers": 2, "feedforward_channels": 48})
    shrink(head.transformer_decoder, {"num_layers": 4, "feedforward_channels": 40})
    cfg.backbone = dict(BACKBONES[backbone])
    if home == "mmdetection_2":
        return models.build_detector(cfg)
    importlib.import_module("mmengine.registry").init_default_scope(package)
    return importlib.import_module(f"{package}.registry").MODELS.build(cfg)


@torch.no_grad()
def main(home: str) -> None:
    from test_mmdetection import drawn, drawn_image

    sys.modules["mmcv._ext"] = NoOperators("mmcv._ext")
    arrays: dict[str, Any] = {}
    for backbone in BACKBONES:
        model = build(home, backbone).eval()
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        model.load_state_dict(drawn(shapes), strict=False)
        head = model.decode_head if home == "mmsegmentation_1" else model.panoptic_head
        classes, masks = head(model.backbone(drawn_image()), [{}])
        arrays[f"{backbone}/names"] = json.dumps(shapes)
        arrays[f"{backbone}/class_logits"] = torch.stack(classes).numpy()
        arrays[f"{backbone}/mask_logits"] = masks[-1].numpy()
    np.savez_compressed(HERE / f"{home}.npz", **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
