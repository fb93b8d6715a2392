"""The parity certificate: what an exported file answers, beside what PyTorch answers for the same pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2f.export.agreement import agreement
from m2f.export.info import INPUT_NAME, ExportInfo
from m2f.export.runtime import Answer, GraphModel, InstanceAnswer, OnnxModel, PanopticAnswer
from m2f.export.runtime.postprocess import answer as graph_answer
from m2f.export.runtime.preprocess import evaluation_resize, fit, make_batch
from m2f.export.runtime.resizing import Frame
from m2f.modeling.maskformer import MaskFormer
from m2f.modeling.postprocess import Frame as ModelFrame
from m2f.modeling.postprocess import answer as model_answer
from m2f.structures.sample import ModelOutput

Image = NDArray[np.uint8]
Graph = Callable[[Tensor], Sequence[Tensor]]
"""What was exported, in PyTorch: the input batch to the outputs, in the order of `ExportInfo.output_names`."""


@dataclass(frozen=True)
class Difference:
    """Of one output, over all its numbers; of integers the share that differs, as both."""

    largest: float
    mean: float
    judged: bool  # False where numbers change places with the slightest rounding: ids, and masks in order of score


@dataclass(frozen=True)
class Comparison:
    """The file and PyTorch on the same pixels in the same frame, averaged over runs.

    Attributes:
        batch_size: pictures per run.
        outputs: by name.
        agreement: see `m2f.export.agreement`; of answers at the pictures' own sizes where the outputs are mask logits,
            and in the graph's frame where it decides there.
    """

    batch_size: int
    outputs: dict[str, Difference]
    agreement: dict[str, float]


@dataclass(frozen=True)
class Certificate:
    """Attributes:
    pictures: names of what it was measured on.
    tolerance: for mean differences, and for what an agreement lacks of 1.
    comparisons: with one run per picture (or per batch of a fixed size), and, if any size will do, with all at once.
    own_size: agreement of the answers at the pictures' own sizes with `model.predict`, which pads pictures less than a
        graph of fixed size does. Not judged.
    plugin_nodes_replaced: it was measured on a copy with standard operators in place of TensorRT's plugin.
    versions: of torch, onnxruntime and m2f.
    problems: what is beyond the tolerance, a sentence each.
    """

    pictures: list[str]
    tolerance: float
    comparisons: list[Comparison]
    own_size: dict[str, float]
    plugin_nodes_replaced: bool
    versions: dict[str, str]
    problems: list[str]

    @property
    def passed(self) -> bool:
        """Whether everything judged is within the tolerance."""
        return not self.problems

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps({"passed": self.passed, **asdict(self)}, indent=2)


def certify(
    model: MaskFormer, graph: Graph, onnx: Path, pictures: Mapping[str, Image], *, tolerance: float, key: str = ""
) -> Certificate:
    """Measure a file that stands for `model`.

    Args:
        model: in eval mode.
        graph: what was exported.
        onnx: the file; with standard operators in place of TensorRT's plugin.
        pictures: at least one, (H, W, 3) uint8 RGB by name.
        tolerance: see `Certificate`.
        key: of an encrypted file.
    """
    import onnxruntime  # noqa: PLC0415 - optional

    assert not model.training
    runtime = OnnxModel(onnx, key)
    info, pixels = runtime.info, list(pictures.values())
    step = max(1, info.batch_size)
    chunks = [pixels[start : start + step] for start in range(0, len(pixels), step)]
    comparisons = [_mean_comparison([_compare(model, graph, runtime, chunk) for chunk in chunks])]
    if info.batch_size < 0 and len(pixels) > 1:
        comparisons.append(_compare(model, graph, runtime, pixels))
    return Certificate(
        pictures=list(pictures),
        tolerance=tolerance,
        comparisons=comparisons,
        own_size=_mean([_own_size(model, runtime, picture) for picture in pixels]),
        plugin_nodes_replaced=not info.on_cpu,
        versions={"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "m2f": info.m2f_version},
        problems=[problem for comparison in comparisons for problem in _problems(comparison, tolerance)],
    )


def _compare(model: MaskFormer, graph: Graph, runtime: GraphModel, pixels: Sequence[Image]) -> Comparison:
    """One run of each."""
    info = runtime.info
    batch = make_batch([fit(_resized(picture, info), info) for picture in pixels], info)
    found = runtime.session.run(info.output_names, {INPUT_NAME: batch.tensor})
    outputs = dict(zip(info.output_names, found, strict=True))
    fed = torch.from_numpy(batch.tensor).to(model.device)
    differences = _differences(outputs, graph(fed), info)
    if info.outputs == "mask_logits":
        frames = [Frame(batch.frame, size, p.shape[:2]) for size, p in zip(batch.sizes, pixels, strict=True)]
    else:
        frames = [Frame(batch.frame, batch.frame, batch.frame)] * len(pixels)
    normalised = (fed.float() / 255 - model.pixel_mean) / model.pixel_std if info.normalize_in_graph else fed
    answers = _model_answers(model, normalised, frames, info.tasks)
    agreements = [
        agreement(graph_answer({name: values[i] for name, values in outputs.items()}, frame, info, info.tasks), answer)
        for i, (frame, answer) in enumerate(zip(frames, answers, strict=True))
    ]
    return Comparison(len(pixels), differences, _mean(agreements))


def _own_size(model: MaskFormer, runtime: GraphModel, picture: Image) -> dict[str, float]:
    """Agreement with `model.predict` at the picture's own size."""
    tasks, size = runtime.tasks, (picture.shape[0], picture.shape[1])
    image = _resized(picture, runtime.info)
    batch = model.preprocess([{"image": torch.from_numpy(image.copy())}])
    frame = Frame(batch.padded_size, batch.sizes[0], size)
    (expected,) = _model_answers(model, batch.tensor, [frame], tasks)
    (found,) = runtime.answer([image], [size], tasks)
    return agreement(found, expected)


def _model_answers(
    model: MaskFormer, images: Tensor, frames: Sequence[Frame], tasks: Sequence[str]
) -> Iterator[Answer]:
    """PyTorch's, one after the other, since those of many classes are large."""
    with torch.no_grad():
        final = model.layers(images)[-1]
    for i, frame in enumerate(frames):
        yield _to_arrays(model_answer(final, i, ModelFrame(*frame), model.metadata, model.rule, tasks))


def _to_arrays(output: ModelOutput) -> Answer:
    """Tensors to the runtime's values."""
    fields: dict[str, Any] = {}
    if "semantic" in output:
        fields["semantic"] = output["semantic"].cpu().numpy()
    if "panoptic" in output:
        fields["panoptic"] = PanopticAnswer(output["panoptic"].ids.cpu().numpy(), output["panoptic"].segments)
    if "instance" in output:
        columns = ("labels", "masks", "scores", "boxes")
        fields["instance"] = InstanceAnswer(*(getattr(output["instance"], c).cpu().numpy() for c in columns))
    return Answer(**fields)


def _resized(picture: Image, info: ExportInfo) -> Image:
    """(3, h, w)."""
    return evaluation_resize(picture, info).transpose(2, 0, 1)


def _differences(
    found: Mapping[str, NDArray[Any]], expected: Sequence[Tensor], info: ExportInfo
) -> dict[str, Difference]:
    pairs = zip(found.items(), expected, strict=True)
    return {name: _difference(name, values, tensor.detach().cpu().numpy(), info) for (name, values), tensor in pairs}


def _difference(name: str, found: NDArray[Any], expected: NDArray[Any], info: ExportInfo) -> Difference:
    if not np.issubdtype(found.dtype, np.floating):
        share = float((found != expected).mean())
        return Difference(share, share, judged=False)
    error = np.abs(found.astype(np.float32) - expected)
    in_order_of_score = info.mode == "instance" and name == "pred_masks"
    return Difference(float(error.max()), float(error.mean()), judged=not in_order_of_score)


def _mean(measures: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in measures])) for name in measures[0]}


def _mean_comparison(runs: Sequence[Comparison]) -> Comparison:
    first = runs[0]
    outputs = {
        name: Difference(
            max(run.outputs[name].largest for run in runs),
            float(np.mean([run.outputs[name].mean for run in runs])),
            difference.judged,
        )
        for name, difference in first.outputs.items()
    }
    return Comparison(first.batch_size, outputs, _mean([run.agreement for run in runs]))


def _problems(comparison: Comparison, tolerance: float) -> list[str]:
    """Not a number is beyond every tolerance."""
    at = f"at batch size {comparison.batch_size}"
    means = {name: difference.mean for name, difference in comparison.outputs.items() if difference.judged}
    return [
        *(f"{name} differs by {mean:.2e} on average {at}" for name, mean in means.items() if not mean <= tolerance),
        *(
            f"{name} of the answers agrees to {share:.6f} only {at}"
            for name, share in comparison.agreement.items()
            if not 1 - share <= tolerance
        ),
    ]
