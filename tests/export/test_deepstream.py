from __future__ import annotations

import configparser
import shlex
from pathlib import Path

import pytest

from m2f.export.deepstream import deepstream_files, trtexec_command

ONNX, ENGINE = Path("out/model.onnx"), Path("out/model.engine")
INSTANCE = {"mode": "instance", "outputs": "tao", "batch_size": 4, "height": 544, "width": 544}


def read(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(delimiters="=", comment_prefixes="#", interpolation=None)
    parser.read_string(text)
    return parser


def test_the_configuration_has_taos_values(make_info) -> None:
    files = deepstream_files(make_info(**INSTANCE), ONNX)
    assert list(files) == ["model_nvinfer.txt", "model_labels.txt"]
    assert files["model_labels.txt"].splitlines() == [f"class {i}" for i in range(5)]
    config = read(files["model_nvinfer.txt"])
    found = dict(config["property"])
    expected = {
        "net-scale-factor": "0.017507",
        "offsets": "123.675;116.28;103.53",
        "model-color-format": "0",
        "network-type": "3",
        "network-mode": "0",
        "infer-dims": "3;544;544",
        "batch-size": "4",
        "num-detected-classes": "5",
        "cluster-mode": "4",
        "output-instance-mask": "1",
        "output-blob-names": "pred_masks;pred_scores;pred_classes",
        "parse-bbox-instance-mask-func-name": "NvDsInferParseCustomMask2Former",
        "onnx-file": "model.onnx",
        "model-engine-file": "model.engine",
        "labelfile-path": "model_labels.txt",
    }
    assert {key: found[key] for key in expected} == expected
    assert config["class-attrs-all"]["pre-cluster-threshold"] == "0.6"


def test_half_precision_and_oblong_inputs_are_said(make_info) -> None:
    square = deepstream_files(make_info(**INSTANCE), ONNX)["model_nvinfer.txt"]
    text = deepstream_files(make_info(**{**INSTANCE, "width": 960, "fp16": True}), ONNX)["model_nvinfer.txt"]
    assert read(text)["property"]["network-mode"] == "2"
    assert read(text)["property"]["infer-dims"] == "3;544;960"
    assert "right for square inputs only" in text
    assert "square" not in square


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"mode": "panoptic"}, "model.mode: instance"),
        ({"outputs": "mask_logits"}, "export.outputs: tao"),
        ({"normalize_in_graph": True}, "export.normalize_in_graph: False"),
        ({"height": -1, "width": -1}, "export.dynamic_size: False"),
    ],
)
def test_other_graphs_are_refused(make_info, changes, needed) -> None:
    with pytest.raises(ValueError, match=f"DeepStream's parser needs a graph of {needed}"):
        deepstream_files(make_info(**{**INSTANCE, **changes}), ONNX)


def test_a_fixed_graph_needs_no_shapes(make_info) -> None:
    assert trtexec_command(make_info(**INSTANCE), ONNX, ENGINE) == (
        "trtexec --onnx=out/model.onnx --saveEngine=out/model.engine"
    )
    assert "--stronglyTyped" in trtexec_command(make_info(**INSTANCE, fp16=True), ONNX, ENGINE)
    command = trtexec_command(make_info(**INSTANCE), Path("my models/a.onnx"), ENGINE)
    assert shlex.split(command)[1] == "--onnx=my models/a.onnx"


def test_free_batch_and_sizes_get_bounds(make_info) -> None:
    info = make_info(**{**INSTANCE, "batch_size": -1})
    assert trtexec_command(info, ONNX, ENGINE, max_batch=16).split()[3:] == [
        "--minShapes=inputs:1x3x544x544",
        "--optShapes=inputs:16x3x544x544",
        "--maxShapes=inputs:16x3x544x544",
    ]
    info = make_info(batch_size=2, min_size=800, max_size=1333)
    assert trtexec_command(info, ONNX, ENGINE).split()[3:] == [
        "--minShapes=inputs:2x3x416x416",
        "--optShapes=inputs:2x3x800x1088",
        "--maxShapes=inputs:2x3x1344x1344",
    ]
