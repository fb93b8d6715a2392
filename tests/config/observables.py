"""What can be seen of a cfg: small functions from a cfg to a value that two cfgs can be compared by."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from m2f.config import CfgNode
from m2f.data.build import entries, load_dataset
from m2f.data.loader import build_eval_loader, build_train_loader
from m2f.encryption import is_encrypted
from m2f.engine import setup
from m2f.engine.expectations import CheckFailed
from m2f.engine.jobs import JOBS
from m2f.engine.trainer import DefaultTrainer
from m2f.evaluation import build_evaluators
from m2f.modeling.build import build_model
from m2f.solver import Horizon, build_clipper, build_optimizer, build_schedule
from m2f.structures.instances import Instances
from m2f.structures.metadata import Category, Metadata

TIMES = ("time", "data_time", "max_memory_mib", "seconds")  # scalars that no two runs share


# Values.


def described(value: Any) -> Any:
    """A value as nested tuples that compare by content; arrays by shape, type and checksum."""
    if isinstance(value, (Tensor, np.ndarray)):
        array = np.ascontiguousarray(value.detach().numpy() if isinstance(value, Tensor) else value)
        return (array.shape, str(array.dtype), zlib.crc32(array.tobytes()))
    if isinstance(value, Mapping):
        return tuple((key, described(item)) for key, item in value.items())
    if dataclasses.is_dataclass(value):
        return tuple((f.name, described(getattr(value, f.name))) for f in dataclasses.fields(value))
    if isinstance(value, (list, tuple)):
        return tuple(described(item) for item in value)
    return repr(value)


@contextmanager
def heard() -> Iterator[list[str]]:
    """What m2f says inside, without what it fills in."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(f"{record.levelname} {record.name}: {record.msg if record.args else '...'}")

    root, listener = logging.getLogger("m2f"), Listener()
    level = root.level
    root.addHandler(listener)
    root.setLevel(logging.DEBUG)
    try:
        yield said
    finally:
        root.removeHandler(listener)
        root.setLevel(level)


# The model.


def metadata_of(cfg: CfgNode) -> Metadata:
    """Labels for the model's classes, half of them things."""
    count = cfg.model.sem_seg_head.num_classes
    return Metadata("probe", tuple(Category(i + 1, f"class {i}", 2 * i < count) for i in range(count)))


def filled(model: nn.Module) -> nn.Module:
    """Weights that depend on their name and shape alone, so that a cfg cannot change them by drawing more numbers."""
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        is_scale = parameter.ndim == 1 and name.endswith("weight")
        parameter.data = noise / (parameter[0].numel() ** 0.5) if parameter.ndim > 1 else 0.1 * noise + is_scale
    return model


def batch() -> list[dict[str, Any]]:
    """Two images of different sizes, with targets, one of them with void."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for number, (height, width) in enumerate([(64, 40), (48, 64)]):
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        masks[0, : height // 2], masks[1, height // 2 :, : width // 3] = True, True
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        made.append({"image": image, "instances": Instances(torch.tensor([0, 1 + number]), masks)})
    made[0]["valid"] = torch.arange(64)[:, None].expand(64, 40) % 4 > 0
    return made


def losses(cfg: CfgNode) -> Any:
    """The maps that leave the backbone, the losses of a batch, and the gradients that it leaves."""
    model = filled(build_model(cfg, metadata_of(cfg))).train()
    torch.manual_seed(0)
    parts = model(batch())
    torch.stack(list(parts.values())).sum().backward()
    learnt = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return described([model.backbone.feature_shapes(), parts, learnt])


def answers(cfg: CfgNode) -> Any:
    """The model's answers for a batch."""
    model = filled(build_model(cfg, metadata_of(cfg))).eval()
    return described(model(batch()))


def recomputation(cfg: CfgNode) -> Any:
    """How often the layers of each part run in a forward and backward pass."""
    model = filled(build_model(cfg, metadata_of(cfg))).train()
    calls: dict[str, int] = {}
    for name, module in model.named_modules():
        part = name.partition(".")[0]
        module.register_forward_hook(lambda *_, part=part: calls.update({part: calls.get(part, 0) + 1}))
    torch.stack(list(model(batch()).values())).sum().backward()
    return described(calls)


def said_while_building(cfg: CfgNode) -> Any:
    """The log of building the model."""
    with heard() as said:
        build_model(cfg, metadata_of(cfg))
    return described(said)


# Data.


def _data(cfg: CfgNode, split: str) -> Any:
    """Metadata, records and the first batches of a split."""
    (entry,) = entries(cfg, split)
    loaded = load_dataset(entry)
    loader = build_train_loader(cfg, loaded) if split == "train" else build_eval_loader(cfg, loaded, split)
    batches = list(islice(loader, 4))
    return described([entry.name, loaded.metadata, list(loaded.records), batches])


def train_data(cfg: CfgNode) -> Any:
    return _data(cfg, "train")


def val_data(cfg: CfgNode) -> Any:
    return _data(cfg, "val")


def test_data(cfg: CfgNode) -> Any:
    return _data(cfg, "test")


# Devices.


@contextmanager
def two_gpus() -> Iterator[None]:
    """torch says that it sees two devices, whatever there is; nothing is computed on them."""
    with patch("torch.cuda.is_available", lambda: True), patch("torch.cuda.device_count", lambda: 2):
        yield


def pinning(cfg: CfgNode) -> Any:
    """Whether batches are page-locked, where there is a device."""
    with two_gpus():
        return build_train_loader(cfg, load_dataset(entries(cfg, "train")[0]))._batches.pin_memory


def device(cfg: CfgNode) -> Any:
    """The device of a training run, or why there is none."""
    try:
        return str(setup.build_device(cfg, "train"))
    except ValueError as error:
        return str(error)


def devices(cfg: CfgNode) -> Any:
    """The devices of the tasks that need one, where there are two."""
    with two_gpus():
        return [str(setup.build_device(cfg, task)) for task in ("train", "evaluate", "inference")]


def cudnn(cfg: CfgNode) -> Any:
    """What the library is told."""
    flags = torch.backends.cudnn
    before = flags.benchmark, flags.deterministic
    try:
        setup.setup_cudnn(cfg)
        return flags.benchmark, flags.deterministic
    finally:
        flags.benchmark, flags.deterministic = before


# Optimisation.


class _Toy(nn.Module):
    """A model of two parts; the optimiser knows the backbone by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 2)
        self.head = nn.Linear(2, 2)


def trajectory(cfg: CfgNode) -> Any:
    """Twelve steps of a toy along fixed gradients: weights and rates, and what is said.

    Its validation loss stands still, its training loss falls.
    """
    model, generator, steps = filled(_Toy()), torch.Generator().manual_seed(2), []
    with heard() as said:
        optimizer = build_optimizer(cfg, model)
        schedule = build_schedule(cfg, optimizer, Horizon.from_config(cfg, dataset_length=4))
        clip = build_clipper(cfg)
        for step in range(12):
            for parameter in model.parameters():
                parameter.grad = 5 * torch.rand(parameter.shape, generator=generator)
            clip(model.parameters())
            optimizer.step()
            schedule.step()
            schedule.observe({"val_loss": 1.0, "train_loss": 1 / (1 + step)})
            steps.append([group["lr"] for group in optimizer.param_groups])
    return described([steps, model.state_dict(), said])


# Runs.


def _files(folder: Path) -> Any:
    """Names of the files below a folder, with the content of those that hold results."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and "tfevents" not in name:
            found[name] = _content(path)
    return found


def _content(path: Path) -> Any:
    if path.suffix == ".pth":
        state = torch.load(path, weights_only=True)
        return {key: state[key] for key in ("model", "iteration", "position", "epoch")}
    if path.name == "metrics.json":
        lines = map(json.loads, path.read_text().splitlines())
        return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]
    if path.name == "results.json" or "predictions" in path.parts or "overlays" in path.parts or path.suffix == ".onnx":
        return zlib.crc32(path.read_bytes())
    return "there"


def run(cfg: CfgNode) -> Any:
    """A short training run: what it writes below the folder of all results, and what it says."""
    with heard() as said:
        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load()
        trainer.train()
    return described([trainer.iteration, emptied(Path("out")), said])


def start(cfg: CfgNode) -> Any:
    """Where a training run starts: weights and iteration."""
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load()
    return described([trainer.iteration, trainer.position, trainer.model.state_dict()])


def evaluation(cfg: CfgNode) -> Any:
    """An evaluation alone: results, what is said, and what it writes."""
    return _job("evaluate", cfg)


def inference(cfg: CfgNode) -> Any:
    """An inference: what is said, and what it writes."""
    return _job("inference", cfg)


def export(cfg: CfgNode) -> Any:
    """An export: what is said, and what it writes."""
    return _job("export", cfg)


def _job(task: Any, cfg: CfgNode) -> Any:
    """A task from its preparation to its files, or why there are none."""
    torch.manual_seed(0)
    with heard() as said:
        try:
            job = JOBS[task](cfg, DefaultTrainer)
            job.prepare()
            outcome: Any = dict(job.run().kpi)
            outcome |= {"weights": _weights(job)}
        except (CheckFailed, ValueError, OSError, ModuleNotFoundError) as error:
            outcome = str(error)
    outcome = {k: v for k, v in outcome.items() if k not in TIMES} if isinstance(outcome, Mapping) else outcome
    return described([outcome, said, emptied(Path("out"))])


def _weights(job: Any) -> Any:
    """Of the model that answered, where there is one."""
    trainer = getattr(job, "_trainer", None)
    return trainer.model.state_dict() if trainer is not None and "model" in trainer.__dict__ else None


def encryption(cfg: CfgNode) -> Any:
    """Whether the checkpoints of a short run can be read by whoever finds them."""
    trainer = DefaultTrainer(cfg)
    trainer.train()
    path = trainer.checkpointer.latest_path
    found = is_encrypted(path)
    shutil.rmtree("out", ignore_errors=True)
    return found


def emptied(folder: Path) -> Any:
    """The files of a folder, which is gone afterwards."""
    files = _files(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return files


def libraries(cfg: CfgNode) -> Any:
    """Packages whose functions run when instances are evaluated."""
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, 4:9, 4:9] = True
    truth = Instances(torch.tensor([0]), masks)
    answer = dataclasses.replace(truth, scores=torch.tensor([0.9]))
    (evaluator,) = build_evaluators(cfg, metadata_of(cfg), ["instance"])
    evaluator.process([{"image_id": 1, "height": 16, "width": 16, "instance": truth}], [{"instance": answer}])
    called: set[str] = set()
    before = sys.getprofile()
    sys.setprofile(lambda frame, *_: called.add(frame.f_globals.get("__name__", "").partition(".")[0]))
    try:
        evaluator.evaluate()
    finally:
        sys.setprofile(before)
    return tuple(sorted(called & {"pycocotools", "faster_coco_eval", "hotcoco"}))
