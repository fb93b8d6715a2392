"""The whole runtime on small ONNX files: pictures to answers, and what is said of wrong files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from m2f.encryption import write_encrypted
from m2f.export.info import INPUT_NAME
from m2f.export.runtime import GraphModel, OnnxModel
from m2f.layers.mask_prediction import MaskPrediction
from m2f.modeling import postprocess
from m2f.structures.sample import TASKS

RNG = np.random.default_rng(0)


def pixels_of(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def torch_answer(model: OnnxModel, tensor: np.ndarray, row: int, frame: postprocess.Frame):
    """What modeling/postprocess makes of the graph's outputs."""
    masks, classes = map(torch.from_numpy, model.session.run(["mask_logits", "class_logits"], {INPUT_NAME: tensor}))
    prediction = MaskPrediction(classes, torch.eye(masks.shape[1]).expand(len(masks), -1, -1), masks)
    info = model.info
    rule = postprocess.DecisionRule(info.object_mask_threshold, info.overlap_threshold, info.top_k)
    return postprocess.answer(prediction, row, frame, info.metadata, rule, TASKS)


def assert_same(found, expected) -> None:
    np.testing.assert_allclose(found.semantic, expected["semantic"].numpy(), atol=1e-4)
    assert [s[:3] for s in found.panoptic.segments] == [s[:3] for s in expected["panoptic"].segments]
    assert (found.panoptic.ids != expected["panoptic"].ids.numpy()).mean() < 1e-3
    np.testing.assert_allclose(found.instance.scores, expected["instance"].scores.numpy(), atol=1e-4)


def test_answers_have_the_pictures_own_size_and_the_tasks_asked_for(make_info, write_graph, tmp_path: Path) -> None:
    model = OnnxModel(write_graph(make_info()))
    assert model.tasks == ("panoptic", "semantic", "instance")
    assert model.metadata == make_info().metadata
    pixels = pixels_of(75, 101)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    pictures = [pixels, Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png")]
    for found in model.predict(pictures, TASKS):
        assert found.semantic.shape == (5, 75, 101)
        assert found.panoptic.ids.shape == (75, 101)
        assert found.instance.masks.shape[1:] == (75, 101)
        assert (found.semantic == model.predict([pixels], ["semantic"])[0].semantic).all()
    assert model.predict([pixels])[0].semantic is None
    assert model.predict([pixels])[0].panoptic is not None
    assert model.predict([]) == model.answer([], []) == []


def test_a_batch_of_any_size_is_one_frame(make_info, write_graph) -> None:
    model = OnnxModel(write_graph(make_info()), threads=1)
    images = [pixels_of(64, 90).transpose(2, 0, 1), pixels_of(96, 64).transpose(2, 0, 1)]
    sizes = [(70, 100), (33, 20)]
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (model.info.pixel_mean, model.info.pixel_std))
    tensor = np.zeros((2, 3, 96, 96), np.float32)
    for slot, image in zip(tensor, images, strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = (image.astype(np.float32) / 255 - mean) / std
    for row, found in enumerate(model.answer(images, sizes, TASKS)):
        frame = postprocess.Frame((96, 96), images[row].shape[1:], sizes[row])
        assert_same(found, torch_answer(model, tensor, row, frame))


@pytest.mark.parametrize("normalize_in_graph", [True, False])
def test_a_fixed_frame_takes_chunks_of_its_batch_size(make_info, write_graph, normalize_in_graph: bool) -> None:
    changes = {"batch_size": 2, "height": 64, "width": 64, "normalize_in_graph": normalize_in_graph}
    model = OnnxModel(write_graph(make_info(**changes)))
    pictures = [pixels_of(64, 100), pixels_of(30, 30), pixels_of(400, 64)]
    found = model.predict(pictures, ["semantic"])
    assert [a.semantic.shape[1:] for a in found] == [(64, 100), (30, 30), (400, 64)]
    for picture, answer in zip(pictures, found, strict=True):  # no picture depends on its neighbours
        assert np.allclose(model.predict([picture], ["semantic"])[0].semantic, answer.semantic, atol=1e-5)


def test_anything_that_runs_names_on_a_feed_takes_the_place_of_onnx_runtime(make_info) -> None:
    seen = []

    class Halves:
        """Left half one query, right half the other."""

        def run(self, output_names, input_feed):
            seen.append((list(output_names), {name: values.shape for name, values in input_feed.items()}))
            masks = np.zeros((1, 2, 64, 64), np.float32)
            masks[:, 0, :, :32], masks[:, 1, :, 32:] = 1, 1
            outputs = {
                "pred_masks": masks,
                "pred_scores": np.array([[0.9, 0.8]], np.float32),
                "pred_classes": np.array([[0, 1]]),
            }
            return [outputs[name] for name in output_names]

    model = GraphModel(Halves(), make_info(mode="panoptic", outputs="tao", batch_size=1, height=64, width=64))
    (found,) = model.predict([pixels_of(100, 100)])
    assert seen == [(["pred_masks", "pred_scores", "pred_classes"], {"inputs": (1, 3, 64, 64)})]
    assert [s[:3] for s in found.panoptic.segments] == [(1, 0, True), (2, 1, False)]
    assert found.panoptic.ids[0, [0, 49, 50, 99]].tolist() == [1, 1, 2, 2]


def test_a_task_the_graph_does_not_answer_is_refused(make_info) -> None:
    model = GraphModel(None, make_info(mode="semantic", outputs="tao"))
    with pytest.raises(ValueError, match=r"answers semantic and not panoptic; a graph of export\.outputs: mask_logits"):
        model.answer([], [], ["panoptic"])


def test_encrypted_files_need_their_key(make_info, write_graph, tmp_path: Path) -> None:
    plain = write_graph(make_info())
    write_encrypted(tmp_path / "small.etlt", plain.read_bytes(), "open sesame")
    pixels = pixels_of(40, 50)
    (found,) = OnnxModel(tmp_path / "small.etlt", "open sesame").predict([pixels], ["semantic"])
    assert (found.semantic == OnnxModel(plain).predict([pixels], ["semantic"])[0].semantic).all()
    with pytest.raises(ValueError, match=r"small\.etlt is encrypted; set encryption_key"):
        OnnxModel(tmp_path / "small.etlt")
    with pytest.raises(ValueError, match=r"small\.etlt: wrong encryption_key"):
        OnnxModel(tmp_path / "small.etlt", "open barley")


def test_wrong_files_are_named_with_what_is_wrong(make_info, write_graph, tmp_path: Path) -> None:
    import onnx

    with pytest.raises(FileNotFoundError, match=r"no such model: .*gone\.onnx"):
        OnnxModel(tmp_path / "gone.onnx")
    for name, content in (("text.onnx", b"not an ONNX file"), ("empty.onnx", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is not an ONNX file that ONNX Runtime can run"):
            OnnxModel(tmp_path / name)
    proto = onnx.load(write_graph(make_info()))
    cut = proto.SerializeToString()[:-500]
    (tmp_path / "cut.onnx").write_bytes(cut)
    with pytest.raises(ValueError, match=r"cut\.onnx is not an ONNX file that ONNX Runtime can run"):
        OnnxModel(tmp_path / "cut.onnx")
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match=r"foreign\.onnx does not say how to use it: it was not exported by m2f"):
        OnnxModel(tmp_path / "foreign.onnx")


@pytest.mark.parametrize("domain", ["", "trt.plugins"])
def test_a_graph_of_tensorrts_plugin_is_sent_there(make_info, write_graph, domain: str) -> None:
    import onnx
    from onnx import helper

    path = write_graph(make_info(on_cpu=False))
    proto = onnx.load(path)
    proto.graph.node[2].op_type, proto.graph.node[2].domain = "MultiscaleDeformableAttnPlugin_TRT", domain
    if domain:
        proto.opset_import.append(helper.make_opsetid(domain, 1))
    onnx.save(proto, path)
    with pytest.raises(ValueError, match=r"MultiscaleDeformableAttnPlugin_TRT nodes, which only TensorRT runs"):
        OnnxModel(path)


BARE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ImportError(f"{{name}} is not installed here")
sys.meta_path.insert(0, Refuse())
import m2f.export.deepstream, m2f.export.agreement
from m2f.export.runtime import OnnxModel
found, = OnnxModel({model!r}, {key!r}).predict([{picture!r}], ["semantic", "panoptic", "instance"])
print(found.semantic.shape, found.panoptic.ids.shape, found.instance.masks.shape[1:])
ours = {{name for name in sys.modules if name.startswith("m2f.")}}
print(sorted({{name.split(".")[1] for name in ours}}))
"""
REFUSED = ("torch", "torchvision", "scipy", "pycocotools", "fvcore", "iopath", "yacs", "yaml", "onnx", "cv2", "tqdm")


@pytest.mark.parametrize("key", ["", "open sesame"])
def test_nothing_is_needed_but_numpy_pillow_and_onnxruntime(make_info, write_graph, tmp_path: Path, key: str) -> None:
    model, picture = write_graph(make_info()), tmp_path / "picture.png"
    Image.fromarray(pixels_of(75, 101)).save(picture)
    refused = REFUSED
    if key:
        write_encrypted(tmp_path / "small.etlt", model.read_bytes(), key)
        model = tmp_path / "small.etlt"
    else:
        refused += ("cryptography",)
    script = BARE.format(refused=refused, model=str(model), picture=str(picture), key=key)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "(5, 75, 101) (75, 101) (75, 101)",
        "['encryption', 'export', 'structures']",
    ]


def test_without_onnxruntime_it_says_what_to_install(make_info, write_graph) -> None:
    script = BARE.format(refused=(*REFUSED, "onnxruntime"), model=str(write_graph(make_info())), picture="", key="")
    script = script.replace("raise ImportError", "raise ModuleNotFoundError")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs onnxruntime to run: pip install 'm2f[export]' (or onnxruntime)" in done.stderr
