"""The export task: a checkpoint as an ONNX file, certified, with what its users need beside it."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import m2f
from m2f.checkpoint.atomic import replace_file
from m2f.config import CfgNode
from m2f.data.build import entries, load_dataset
from m2f.data.datasets.shapes import scene
from m2f.data.images import read_image
from m2f.encryption import write_encrypted
from m2f.engine.expectations import CheckFailed
from m2f.engine.weights import checkpoint_of, load_model
from m2f.export.deepstream import deepstream_files, deepstream_needs, trtexec_command
from m2f.export.graphs import MaskGraph, build_graph
from m2f.export.info import METADATA_KEY, ExportInfo
from m2f.export.onnx_file import export_onnx
from m2f.export.parity import Certificate, certify
from m2f.export.plugin import save_without_plugin_nodes

logger = logging.getLogger(__name__)

PLAIN, ENCRYPTED = ".onnx", ".etlt"
CERTIFICATE = ".parity.json"


@dataclass(frozen=True)
class ExportSummary:
    """What an export has written, and measured.

    Attributes:
        onnx: the graph, encrypted where there is a key.
        files: all of them.
        certificate: the graph compared with the model.
    """

    onnx: Path
    files: tuple[Path, ...]
    certificate: Certificate

    @property
    def kpi(self) -> dict[str, float]:
        """The certificate in numbers: mean differences of outputs, and agreements."""
        first = self.certificate.comparisons[0]
        means = {f"{name}/mean_difference": difference.mean for name, difference in first.outputs.items()}
        return {**means, **first.agreement}


class ExportRun:
    """One export.

    Args:
        cfg: frozen.
        directory: gets the files, unless `export.onnx_file` places them elsewhere.

    Raises:
        FileNotFoundError: there is no checkpoint, or no such picture.
        ValueError: the checkpoint or a picture cannot be used, or `export.onnx_file` has another ending.
    """

    def __init__(self, cfg: CfgNode, directory: Path) -> None:
        self.cfg = cfg
        source = checkpoint_of(cfg, "export")
        self.path = _target(cfg, directory, Path(source).stem)
        self.pictures = _pictures(cfg)
        if cfg.export.dynamic_size:  # a graph that is right at one size alone must not pass
            name, picture = next(iter(self.pictures.items()))
            self.pictures[f"{name} (upper half)"] = picture[: -(-picture.shape[0] // 2)]
        self.model: Any = load_model(cfg, source, (cfg.model.mode,), torch.device("cpu"))
        self.info = _info(cfg, self.model, Path(source))

    def run(self) -> ExportSummary:
        """Write the graph where nobody takes it for finished, compare it with the model, then give it its name.

        Raises:
            ValueError: the graph cannot be written as the spec has it.
            CheckFailed: it does not answer as the model does; a file that was there before is as it was.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Before it is encrypted it lies where nobody else can read.
        beside = None if self.cfg.encryption_key else self.path.parent
        with tempfile.TemporaryDirectory(dir=beside, prefix=".exporting-") as room:
            draft = Path(room) / f"graph{PLAIN}"
            graph = self._write(draft)
            certificate = self._certify(graph, draft)
            files = [self._save(CERTIFICATE, certificate.to_json().encode())]
            if not certificate.passed:
                raise CheckFailed(
                    f"the exported graph does not answer as the model does, so {self.path} was not written: "
                    f"{'; '.join(certificate.problems)} ({files[0]} has all that was measured)"
                )
            replace_file(self.path, partial(self._place, draft))
        files = [self.path, *files, *self._describe()]
        self._report(files, certificate)
        return ExportSummary(self.path, tuple(files), certificate)

    def _write(self, draft: Path) -> MaskGraph:
        node, info = self.cfg.export, self.info
        graph = build_graph(self.model, info.mode, info.outputs, info.normalize_in_graph)
        result = export_onnx(
            graph,
            draft,
            height=node.input_height,
            width=node.input_width,
            batch_size=node.batch_size,
            dynamic_size=node.dynamic_size,
            opset_version=node.opset_version,
            on_cpu=node.on_cpu,
            fp16=node.fp16,
            metadata=lambda opset: {METADATA_KEY: replace(info, opset=opset).to_json()},
        )
        self.info = replace(info, opset=result.opset)
        logger.info("%d nodes, %.1f MB", result.nodes, result.size / 1e6)
        if node.verbose:
            listed = ", ".join(f"{count} {name}" for name, count in result.operators.items())
            logger.info("operators: %s", listed)
        return graph

    def _certify(self, graph: MaskGraph, draft: Path) -> Certificate:
        runnable = draft
        if not self.cfg.export.on_cpu:
            runnable = draft.with_name(f"standard{PLAIN}")
            save_without_plugin_nodes(draft, runnable)
            logger.info("certified on a copy in which each plugin node is replaced by standard operators")
        return certify(self.model, graph, runnable, self.pictures, tolerance=self.cfg.export.parity_tolerance)

    def _place(self, draft: Path, path: Path) -> None:
        if self.cfg.encryption_key:
            with draft.open("rb") as plain:
                write_encrypted(path, plain, self.cfg.encryption_key)
        else:
            os.replace(draft, path)

    def _describe(self) -> list[Path]:
        """The description, and for DeepStream what it reads."""
        files = [self._save(".json", self.info.to_json().encode())]
        if not deepstream_needs(self.info):
            for name, text in deepstream_files(self.info, self.path).items():
                files.append(self._write_file(self.path.with_name(name), text.encode()))
        return files

    def _save(self, ending: str, content: bytes) -> Path:
        return self._write_file(self.path.with_suffix(ending), content)

    def _write_file(self, path: Path, content: bytes) -> Path:
        replace_file(path, lambda draft: draft.write_bytes(content))
        return path

    def _report(self, files: list[Path], certificate: Certificate) -> None:
        measured = ", ".join(f"{name} {value:.6f}" for name, value in certificate.comparisons[0].agreement.items())
        logger.info("parity with the model on %d pictures: %s", len(self.pictures), measured)
        for file in files:
            logger.info("wrote %s", file)
        if self.path.suffix == PLAIN:
            logger.info("an engine: %s", trtexec_command(self.info, self.path, self.path.with_suffix(".engine")))


def _target(cfg: CfgNode, directory: Path, stem: str) -> Path:
    """`export.onnx_file`, else one called after the checkpoint; with a key it ends in .etlt."""
    ending = ENCRYPTED if cfg.encryption_key else PLAIN
    path = Path(cfg.export.onnx_file or directory / f"{stem}{ending}").expanduser()
    if path.suffix == PLAIN and ending == ENCRYPTED:
        logger.info("encryption_key is set: the graph is written as %s", path.with_suffix(ENCRYPTED).name)
        return path.with_suffix(ENCRYPTED)
    if path.suffix != ending:
        hint = "; .etlt is for an encrypted one, which needs encryption_key" if path.suffix == ENCRYPTED else ""
        raise ValueError(f"export.onnx_file is {str(path)!r}; it must end in {ending}{hint}")
    if path.is_dir():
        raise ValueError(f"export.onnx_file is {str(path)!r}, which is a folder")
    return path


def _pictures(cfg: CfgNode) -> dict[str, NDArray[np.uint8]]:
    """What the certificate is measured on: given, of the spec's data, or drawn."""
    if cfg.export.parity_images:
        return {path: read_image(path).pixels for path in cfg.export.parity_images}
    reasons = []
    for split in ("val", "test"):
        try:
            (entry,) = entries(cfg, split)
            records = load_dataset(entry).records
        except (ValueError, OSError) as error:
            reasons.append(str(error))
            continue
        names = [record["file_name"] for record in islice(records, cfg.export.parity_count)]
        return {name: read_image(name).pixels for name in names}
    logger.warning("export.parity_images is empty: certified on drawn pictures, since %s", "; ".join(reasons))
    return {f"shapes/{n}": scene("val", n).image for n in range(cfg.export.parity_count)}


def _info(cfg: CfgNode, model: Any, source: Path) -> ExportInfo:
    node, aug = cfg.export, cfg.dataset.augmentation
    is_free = node.dynamic_size
    return ExportInfo(
        mode=cfg.model.mode,
        outputs=node.outputs,
        batch_size=node.batch_size,
        height=-1 if is_free else node.input_height,
        width=-1 if is_free else node.input_width,
        divisibility=model.size_divisibility,
        normalize_in_graph=node.normalize_in_graph,
        pixel_mean=tuple(cfg.dataset.pixel_mean),
        pixel_std=tuple(cfg.dataset.pixel_std),
        min_size=aug.test_min_size,
        max_size=aug.test_max_size,
        target_size=tuple(cfg.dataset.test.target_size or cfg.dataset.val.target_size),
        object_mask_threshold=cfg.model.object_mask_threshold,
        overlap_threshold=cfg.model.overlap_threshold,
        top_k=cfg.model.test_topk_per_image,
        metadata=model.metadata,
        m2f_version=m2f.__version__,
        checkpoint=source.name,
        checkpoint_sha256=_sha256(source) if source.is_file() else "",
        opset=node.opset_version,
        on_cpu=node.on_cpu,
        fp16=node.fp16,
    )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(2**20), b""):
            digest.update(chunk)
    return digest.hexdigest()
