"""An ONNX file to something that runs, with words for whoever picked the wrong file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from m2f.encryption import is_encrypted, open_decrypted
from m2f.export.info import METADATA_KEY, ExportInfo

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # TensorRT's would build an engine at every start


class Session(Protocol):
    """What runs a graph: ONNX Runtime's session, or whatever takes its place."""

    def run(self, output_names: Sequence[str], input_feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs of these names, in their order, for inputs by name."""
        ...


def open_session(path: Path, key: str = "", threads: int | None = None) -> tuple[Session, ExportInfo]:
    """Load an ONNX file that m2f has exported, on the GPU where ONNX Runtime was built for it.

    Args:
        path: plain or encrypted.
        key: of the encryption.
        threads: of one operator; None: as many as there are cores.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no ONNX file, was not exported by m2f, holds TensorRT's nodes, or `key` does not open it.
        ModuleNotFoundError: onnxruntime is not installed, or cryptography and the file is encrypted.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such model: {path}")
    session = _load(path, key, threads)
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise ValueError(f"{path} does not say how to use it: it was not exported by m2f, or its metadata were removed")
    return session, ExportInfo.from_json(text, f"{path}: metadata {METADATA_KEY!r}")


def _load(path: Path, key: str, threads: int | None) -> Any:
    """ONNX Runtime's session."""
    try:
        import onnxruntime  # noqa: PLC0415 - optional
        from onnxruntime.capi import onnxruntime_pybind11_state as states  # noqa: PLC0415 - optional
    except ModuleNotFoundError as error:
        message = f"{path} needs onnxruntime to run: pip install 'm2f[export]' (or onnxruntime)"
        raise ModuleNotFoundError(message, name=error.name) from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of every constant that it folds
    options.intra_op_num_threads = threads or 0
    providers = [name for name in _PROVIDERS if name in onnxruntime.get_available_providers()]
    source = open_decrypted(path, key).read() if is_encrypted(path) else str(path)
    try:
        return onnxruntime.InferenceSession(source, options, providers=providers)
    except (states.Fail, states.InvalidArgument, states.InvalidGraph, states.InvalidProtobuf) as error:
        raise ValueError(_why(path, str(error))) from error


def _why(path: Path, error: str) -> str:
    error = error.replace(str(path), path.name).strip()
    plugin = re.search(r"\w+Plugin\w*_TRT", error)
    if plugin:
        return (
            f"{path} holds {plugin[0]} nodes, which only TensorRT runs, with its plugin: build an engine with trtexec "
            "and give that, or export with export.on_cpu: True"
        )
    return f"{path} is not an ONNX file that ONNX Runtime can run: {error.partition(chr(10))[0]}"
