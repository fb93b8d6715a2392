"""A TensorRT engine in the place of ONNX Runtime: the same pre- and post-processing around another session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m2f.export.deepstream import trtexec_command
from m2f.export.info import ExportInfo, info_beside
from m2f.export.runtime import GraphModel


def load_engine(path: str | Path) -> GraphModel:
    """An engine that trtexec built of a graph of m2f's; `<stem>.json` of the graph lies beside it.

    Raises:
        FileNotFoundError: the engine or the JSON is not there.
        ValueError: no GPU is visible, or the engine is for another version of TensorRT or another GPU.
        ModuleNotFoundError: tensorrt is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such engine: {path}")
    info = info_beside(path)
    return GraphModel(TensorRTSession(path, info), info)


class TensorRTSession:
    """Runs an engine on the current GPU; buffers are torch's.

    Args:
        path: the engine.
        info: what its graph is.

    Raises:
        ValueError: see `load_engine`.
        ModuleNotFoundError: see `load_engine`.
    """

    def __init__(self, path: Path, info: ExportInfo) -> None:
        command = trtexec_command(info, path.with_suffix(".onnx"), path)
        self._trt = _tensorrt(path, command)
        self._logger = self._trt.Logger(self._trt.Logger.WARNING)
        self._trt.init_libnvinfer_plugins(self._logger, "")  # deformable attention may be one
        self._engine = self._trt.Runtime(self._logger).deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise ValueError(
                f"{path} is not an engine for TensorRT {self._trt.__version__} and this GPU; build it here: {command}"
            )
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_output = self._trt.TensorIOMode.OUTPUT
        self._output_names = [name for name in names if self._engine.get_tensor_mode(name) == is_output]
        self._path, self._stream = path, torch.cuda.Stream()

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """See `m2f.export.runtime.session.Session`.

        Raises:
            ValueError: the engine was not built for inputs of this shape.
        """
        with torch.cuda.stream(self._stream):
            inputs = {name: torch.from_numpy(values).cuda() for name, values in input_feed.items()}
            for name, tensor in inputs.items():
                self._bind_input(name, tensor)
            outputs = {name: self._bind_output(name) for name in self._output_names}  # it writes all of them
            self._context.execute_async_v3(self._stream.cuda_stream)
        self._stream.synchronize()
        return [outputs[name].cpu().numpy() for name in output_names]

    def _bind_input(self, name: str, tensor: Tensor) -> None:
        shape = tuple(tensor.shape)
        if not self._context.set_input_shape(name, shape):
            low, _, high = self._engine.get_tensor_profile_shape(name, 0)
            raise ValueError(f"{self._path} takes inputs from {tuple(low)} to {tuple(high)}, not {shape}")
        self._context.set_tensor_address(name, tensor.data_ptr())

    def _bind_output(self, name: str) -> Tensor:
        kind = torch.from_numpy(np.empty(0, self._trt.nptype(self._engine.get_tensor_dtype(name)))).dtype
        tensor = torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=kind, device="cuda")
        self._context.set_tensor_address(name, tensor.data_ptr())
        return tensor


def _tensorrt(path: Path, command: str) -> Any:
    """The package."""
    origin = f"it is built by: {command}"
    try:
        import tensorrt  # noqa: PLC0415 - optional
    except ModuleNotFoundError as error:
        message = f"{path} is a TensorRT engine and tensorrt is not installed: pip install tensorrt; {origin}"
        raise ModuleNotFoundError(message, name=error.name) from error
    if not torch.cuda.is_available():
        raise ValueError(f"{path} is a TensorRT engine and no NVIDIA GPU is visible; {origin}")
    return tensorrt
