"""What NVIDIA's tools need beside an ONNX file: trtexec's command line, and DeepStream's configuration. No torch."""

from __future__ import annotations

import shlex
from pathlib import Path

from m2f.export.info import INPUT_NAME, ExportInfo

_PARSER = "NvDsInferParseCustomMask2Former"  # of NVIDIA's deepstream_tao_apps
_PARSER_LIBRARY = "libnvds_infercustomparser_tao.so"
_SCORE_THRESHOLD = 0.6  # TAO's
_FLOAT32, _FLOAT16 = 0, 2  # Gst-nvinfer's network modes


def trtexec_command(info: ExportInfo, onnx: Path, engine: Path, max_batch: int = 8) -> str:
    """The line that builds a TensorRT engine of a graph.

    Args:
        info: what the graph is.
        onnx: its file.
        engine: file to make.
        max_batch: most images per run where the graph leaves that free; the engine is tuned for it.
    """
    words = ["trtexec", f"--onnx={onnx}", f"--saveEngine={engine}"]
    words += ["--stronglyTyped"] if info.fp16 else []  # as the graph says, which keeps some of it in float32
    if -1 in (info.batch_size, info.height, info.width):
        shapes = zip(("min", "opt", "max"), _shapes(info, max_batch), strict=True)
        words += [f"--{bound}Shapes={INPUT_NAME}:{shape}" for bound, shape in shapes]
    return shlex.join(words)


def _shapes(info: ExportInfo, max_batch: int) -> list[str]:
    """The smallest, the usual and the largest input, as BxCxHxW.

    Free sizes reach from half of the evaluation's shortest edge, for very long images, to its longest, either way up.
    """
    low, usual, high = info.min_size // 2, min(info.max_size, info.min_size * 4 // 3), info.max_size
    shapes = []
    for batch, *edges in ((1, low, low), (max_batch, info.min_size, usual), (max_batch, high, high)):
        padded = [-(-edge // info.divisibility) * info.divisibility for edge in edges]
        free, given = (batch, *padded), (info.batch_size, info.height, info.width)
        count, height, width = (f if g < 0 else g for f, g in zip(free, given, strict=True))
        shapes.append(f"{count}x3x{height}x{width}")
    return shapes


def deepstream_needs(info: ExportInfo) -> list[str]:
    """The settings that a graph lacks to be read by NVIDIA's parser; none where it suits."""
    wrong = {
        "model.mode: instance": info.mode != "instance",
        "export.outputs: tao": info.outputs != "tao",
        "export.normalize_in_graph: False (DeepStream normalises)": info.normalize_in_graph,
        "export.dynamic_size: False": -1 in (info.height, info.width),
    }
    return [setting for setting, is_wrong in wrong.items() if is_wrong]


def deepstream_files(info: ExportInfo, onnx: Path) -> dict[str, str]:
    """Gst-nvinfer's configuration and the labels file, by name; they belong beside the ONNX file.

    Args:
        info: what the graph is.
        onnx: its file.

    Raises:
        ValueError: it is not a graph that NVIDIA's parser reads.
    """
    if needed := deepstream_needs(info):
        raise ValueError(f"{onnx}: DeepStream's parser needs a graph of {', '.join(needed)}")
    labels = f"{onnx.stem}_labels.txt"
    return {
        f"{onnx.stem}_nvinfer.txt": _nvinfer_config(info, onnx, labels),
        labels: "".join(f"{name}\n" for name in info.metadata.names),
    }


def _nvinfer_config(info: ExportInfo, onnx: Path, labels: str) -> str:
    properties = {
        "gpu-id": 0,
        "onnx-file": onnx.name,
        "model-engine-file": onnx.with_suffix(".engine").name,
        "labelfile-path": labels,
        "batch-size": max(1, info.batch_size),
        "infer-dims": f"3;{info.height};{info.width}",
        "network-mode": _FLOAT16 if info.fp16 else _FLOAT32,
        "network-type": 3,  # instance segmentation
        "num-detected-classes": info.metadata.num_classes,
        "model-color-format": 0,  # RGB
        # One factor for all channels: TAO takes the one of green, whose deviation is the smallest.
        "net-scale-factor": f"{1 / (255 * info.pixel_std[1]):.6f}",
        "offsets": ";".join(f"{255 * mean:g}" for mean in info.pixel_mean),
        "maintain-aspect-ratio": 1,
        "symmetric-padding": 0,  # at the right and at the bottom
        "cluster-mode": 4,  # none: there are no duplicates to suppress
        "output-instance-mask": 1,
        "output-blob-names": ";".join(info.output_names),
        "parse-bbox-instance-mask-func-name": _PARSER,
        "custom-lib-path": _PARSER_LIBRARY,
    }
    lines = [
        f"# {onnx.name} in DeepStream; paths are relative to this file.",
        f"# {_PARSER_LIBRARY} is built in NVIDIA's deepstream_tao_apps. Versions that read pred_classes as 32-bit",
        "# integers need an engine that casts the 64-bit ones, as TensorRT before 10 does.",
    ]
    if info.height != info.width:
        lines.append(
            "# It takes the height of the masks for their width: right for square inputs only, which this is not."
        )
    lines += ["[property]", *(f"{key}={value}" for key, value in properties.items())]
    lines += ["", "[class-attrs-all]", f"pre-cluster-threshold={_SCORE_THRESHOLD}", ""]
    return "\n".join(lines)
