"""The command lines: `m2f TASK -e SPEC KEY=VALUE ...`, and that of `tools/train_net.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

import m2f
from m2f.config.task_rules import TASKS
from m2f.engine.setup import Task

OVERRIDES = """\
Settings that win over the spec are full dotted keys, in either way of writing, in any place:
  train.optim.lr=1e-4    train.optim.lr 1e-4    evaluate.tasks='[panoptic, semantic]'
Values are YAML. `python tools/show_spec.py -e SPEC KEY=VALUE` prints what a run would use.
"""
_ABOUT = {
    "train": "Train, or go on from the latest checkpoint of the results folder.",
    "evaluate": "Measure a checkpoint (evaluate.checkpoint: .pth, .onnx and others) or saved predictions.",
    "inference": "Answer images, folders, videos (inference.input, or dataset.test.img_dir): overlays and predictions.",
    "export": "Write export.checkpoint as ONNX (export.onnx_file), certified to answer as the model does.",
}
_LAUNCHER = ("model", "mask2former")  # what stands before the task in `tao model mask2former train`


def parse_command(arguments: Sequence[str]) -> tuple[Task, argparse.Namespace]:
    """The task and its arguments: `.spec`, `.overrides`.

    Raises:
        SystemExit: help was asked for (0), or the words are wrong (2).
    """
    words = list(arguments)
    for word in _LAUNCHER:
        if words[:1] == [word]:
            words.pop(0)
    parser = _command_parser()
    if words[:1] and not words[0].startswith("-") and words[0] not in TASKS:
        parser.error(f"{words[0]!r} is no task; there are {', '.join(TASKS)}")
    if not words or words[0] not in TASKS:
        parser.parse_args(words)
        parser.error(f"name a task first: {', '.join(TASKS)}")
    task: Task = words[0]  # type: ignore[assignment]  # one of TASKS
    return task, task_parser(task).parse_intermixed_args(words[1:])


def _command_parser() -> _Parser:
    listed = "\n".join(f"  {task:<10} {about}" for task, about in _ABOUT.items())
    parser = _Parser(
        prog="m2f",
        usage="m2f TASK -e SPEC [KEY=VALUE ...]",
        description=f"Mask2Former from a TAO spec.\n\ntasks:\n{listed}",
        epilog=f"{OVERRIDES}SPEC is a YAML file, or m2f://NAME for one that m2f brings, as m2f://quickstart/shapes_panoptic.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"m2f {m2f.__version__}")
    return parser


def task_parser(task: Task, prog: str = "m2f") -> argparse.ArgumentParser:
    """The arguments of one task; read them with `parse_intermixed_args`."""
    parser = _Parser(
        prog=f"{prog} {task}",
        description=_ABOUT[task],
        epilog=OVERRIDES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = ("-e", "--experiment_spec", "--config-file")
    parser.add_argument(*names, dest="spec", metavar="SPEC", required=True, help="a YAML spec, or m2f://NAME")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that win over the spec")
    return parser


def parse_train_net(arguments: Sequence[str]) -> tuple[Task, argparse.Namespace]:
    """What `tools/train_net.py` is told, in Detectron2's words, as a task and its arguments.

    Raises:
        SystemExit: help was asked for (0), or the words are wrong (2).
    """
    parser = argparse.ArgumentParser(
        description="Train and evaluate Mask2Former from a TAO spec.",
        epilog=OVERRIDES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    names = ("--config-file", "-e", "--experiment_spec")
    parser.add_argument(*names, dest="spec", metavar="SPEC", help="a TAO mask2former YAML spec, or m2f://NAME")
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint (train.resume: auto)")
    parser.add_argument("--eval-only", action="store_true", help="evaluate a checkpoint, do not train")
    parser.add_argument("--num-gpus", type=int, metavar="N", help="processes, each with one GPU")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that win over the spec")
    parsed = parser.parse_intermixed_args(arguments)
    task: Task = "evaluate" if parsed.eval_only else "train"
    flags = ["train.resume=auto"] if parsed.resume else []
    flags += [f"{task}.num_gpus={parsed.num_gpus}"] if parsed.num_gpus is not None else []
    parsed.overrides = [*flags, *parsed.overrides]
    return task, parsed


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and where help is."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} -h)\n")
