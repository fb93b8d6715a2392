"""The commands, from arguments to an exit code: 0 done, 2 the user's mistake, 1 ours or a failed check, 130 stopped.

`m2f/engine/api.py` has the same tasks as functions, which raise instead.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m2f import distributed
from m2f.config import CfgNode, SpecError, check_task, load_spec
from m2f.config.secret import without_key
from m2f.engine import setup
from m2f.engine.arguments import parse_command, parse_train_net
from m2f.engine.expectations import CheckFailed
from m2f.engine.jobs import JOBS, Outcome
from m2f.engine.setup import Task
from m2f.engine.trainer import DefaultTrainer
from m2f.engine.writers import StatusWriter

logger = logging.getLogger(__name__)

DONE, FAILED, USERS_MISTAKE, INTERRUPTED = 0, 1, 2, 130

# While a run is prepared (spec, data files, checkpoints are read), these are about what the user gave.
_ABOUT_INPUT = (ValueError, KeyError, TypeError, OSError, ModuleNotFoundError)
# While it runs, only those are that m2f itself raises about a file or setting; torch raises ValueErrors of its own.
_ABOUT_FILES = (ValueError, OSError)
_PACKAGE = Path(__file__).resolve().parent.parent


class UserError(ValueError):
    """What the user must correct; the message is the one line that is shown."""


def command(argv: Sequence[str] | None = None) -> int:
    """`m2f TASK -e SPEC KEY=VALUE ...`; also after `tao model mask2former`.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        task, parsed = parse_command(arguments)
    except SystemExit as exit_:  # argparse has spoken
        return _code(exit_)
    return _exit_code(task, parsed.spec, parsed.overrides, DefaultTrainer)


def main(argv: Sequence[str] | None = None, trainer_class: type[DefaultTrainer] = DefaultTrainer) -> int:
    """`tools/train_net.py`: train, or evaluate with `--eval-only`.

    Args:
        argv: arguments without the program's name; None: those of the process.
        trainer_class: what runs; a subclass may replace any part.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        task, parsed = parse_train_net(arguments)
    except SystemExit as exit_:
        return _code(exit_)
    return _exit_code(task, parsed.spec, parsed.overrides, trainer_class)


def execute(
    task: Task,
    spec: str | Path | None,
    overrides: Sequence[str],
    trainer_class: type[DefaultTrainer] = DefaultTrainer,
) -> Outcome:
    """Run a task from its spec to its results, and leave a line of how it ended in status.json.

    Raises:
        UserError: spec, data or files are wrong; of a wrong spec nothing was written.
        CheckFailed: the work is done, and a metric or an export is not what it has to be.
        FloatingPointError: training diverged.
    """
    cfg = _read_spec(task, spec, overrides)
    try:
        directory = setup.prepare_directory(cfg, task)
    except SpecError as error:
        raise UserError(str(error)) from error
    status = StatusWriter(directory / "status.json")
    _report(status, "STARTED", f"Starting {task}.")
    try:
        outcome = _prepare_and_run(cfg, task, [str(spec), *overrides], trainer_class)
    except BaseException as error:
        logger.debug("the run has failed", exc_info=error)
        _report(status, "FAILURE", _one_line(error) or type(error).__name__)
        raise
    if outcome.kpi:
        _report(status, "RUNNING", outcome.message, outcome.kpi)
    _report(status, "SUCCESS", f"{task.capitalize()} finished successfully.")
    return outcome


def _code(exit_: SystemExit) -> int:
    return exit_.code if isinstance(exit_.code, int) else USERS_MISTAKE


def _exit_code(task: Task, spec: str | None, overrides: Sequence[str], trainer_class: type[DefaultTrainer]) -> int:
    try:
        execute(task, spec, overrides, trainer_class)
    except UserError as mistake:
        return _said(USERS_MISTAKE, f"error: {mistake}")
    except CheckFailed as verdict:
        return _said(FAILED, f"error: {_one_line(verdict)}")
    except FloatingPointError as error:
        return _said(FAILED, f"error: training diverged and has stopped; the checkpoints are as they were. {error}")
    except KeyboardInterrupt:
        rest = "; the last checkpoint is where a resumed run goes on" if task == "train" else ""
        return _said(INTERRUPTED, f"interrupted{rest}")
    except Exception:  # noqa: BLE001 - the outermost place: whatever is left is a defect of ours
        traceback.print_exc()
        return FAILED
    return DONE


def _said(code: int, line: str) -> int:
    sys.stderr.write(f"{line}\n")
    return code


def _read_spec(task: Task, spec: str | Path | None, overrides: Sequence[str]) -> CfgNode:
    """The spec, every name in it resolved; nothing is written until then."""
    setup.setup_logging(None)
    try:
        cfg = load_spec(spec, overrides)
        check_task(cfg, task)
        setup.resolve_names(cfg, task)
    except SpecError as error:
        raise UserError(str(error)) from error
    return cfg


def _prepare_and_run(cfg: CfgNode, task: Task, arguments: list[str], trainer_class: type[DefaultTrainer]) -> Outcome:
    try:
        job = JOBS[task](cfg, trainer_class)
        setup.log_environment(without_key(arguments), job.device)
        job.prepare()
        setup.save_spec(cfg, job.directory)
    except _ABOUT_INPUT as error:
        raise UserError(_one_line(error)) from error
    try:
        return job.run()
    except _ABOUT_FILES as error:
        if _raised_by_m2f(error):
            raise UserError(_one_line(error)) from error
        raise


def _raised_by_m2f(error: BaseException) -> bool:
    """Whether the line that raised is one of m2f's."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    return _PACKAGE in Path(last).resolve().parents


def _one_line(error: BaseException) -> str:
    """A message without the quotes that KeyError puts around its own."""
    if isinstance(error, OSError):
        return " ".join(str(error).split())
    return " ".join(str(error.args[0] if error.args else error).split())


def _report(status: StatusWriter, *line: Any) -> None:
    if distributed.is_main():
        status.report(*line)
