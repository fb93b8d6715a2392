"""The commands, from arguments to an exit code: 0 done, 2 the user's mistake, 1 ours, 130 interrupted."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from m2f import distributed
from m2f.config import CfgNode, SpecError, check_task, load_spec
from m2f.engine import setup
from m2f.engine.evaluation import flat_metrics
from m2f.engine.setup import Task
from m2f.engine.trainer import DefaultTrainer
from m2f.engine.writers import StatusWriter

logger = logging.getLogger(__name__)

DONE, FAILED, USERS_MISTAKE, INTERRUPTED = 0, 1, 2, 130

# While a run is prepared (spec, data files, checkpoints are read), these are about what the user gave.
_ABOUT_INPUT = (ValueError, KeyError, TypeError, OSError)
# While it runs, only those are that m2f itself raises about a file or setting; torch raises ValueErrors of its own.
_ABOUT_FILES = (ValueError, OSError)
_PACKAGE = Path(__file__).resolve().parent.parent


class _Mistake(Exception):  # noqa: N818 - it is the user's, not an error of ours
    """What the user must correct; the message is the one line that is shown."""


def main(argv: Sequence[str] | None = None, trainer_class: type[DefaultTrainer] = DefaultTrainer) -> int:
    """Train, or evaluate with `--eval-only`.

    Args:
        argv: arguments without the program's name; None: those of the process.
        trainer_class: what runs; a subclass may replace any part.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        cfg, task = _read_arguments(arguments)
        _run(cfg, task, arguments, trainer_class)
    except SystemExit as exit_:  # argparse has spoken
        return exit_.code if isinstance(exit_.code, int) else USERS_MISTAKE
    except _Mistake as mistake:
        sys.stderr.write(f"error: {mistake}\n")
        return USERS_MISTAKE
    except FloatingPointError as error:
        sys.stderr.write(f"error: training diverged and has stopped; the checkpoints are as they were. {error}\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the last checkpoint is where a resumed run goes on\n")
        return INTERRUPTED
    except Exception:  # noqa: BLE001 - the outermost place: whatever is left is a defect of ours
        traceback.print_exc()
        return FAILED
    return DONE


def _read_arguments(arguments: list[str]) -> tuple[CfgNode, Task]:
    """The spec and the task, every name in it resolved; nothing is written until then."""
    parsed = setup.build_parser().parse_intermixed_args(arguments)
    task: Task = "evaluate" if parsed.eval_only else "train"
    setup.setup_logging(None)
    try:
        cfg = load_spec(parsed.config_file, setup.overrides_of(parsed))
        check_task(cfg, task)
        setup.resolve_names(cfg, task)
    except SpecError as error:
        raise _Mistake(str(error)) from error
    return cfg, task


def _run(cfg: CfgNode, task: Task, arguments: list[str], trainer_class: type[DefaultTrainer]) -> None:
    """Prepare, run, and leave a line of how it ended in status.json."""
    try:
        directory = setup.prepare_directory(cfg, task)
    except SpecError as error:
        raise _Mistake(str(error)) from error
    status = StatusWriter(directory / "status.json")
    _report(status, "STARTED", f"Starting {task}.")
    try:
        _prepare_and_run(cfg, task, arguments, trainer_class, status)
    except BaseException as error:
        logger.debug("the run has failed", exc_info=error)
        _report(status, "FAILURE", _one_line(error) or type(error).__name__)
        raise
    _report(status, "SUCCESS", f"{task.capitalize()} finished successfully.")


def _prepare_and_run(
    cfg: CfgNode, task: Task, arguments: list[str], trainer_class: type[DefaultTrainer], status: StatusWriter
) -> None:
    try:
        trainer = trainer_class(cfg, task)
        setup.log_environment(arguments, trainer.device)
        if task == "train":
            trainer.resume_or_load()
        else:
            trainer.load_for_evaluation()
        setup.save_spec(cfg, trainer.directory)
    except _ABOUT_INPUT as error:
        raise _Mistake(_one_line(error)) from error
    try:
        if task == "train":
            trainer.train()
        else:
            _report(status, "RUNNING", "Evaluation metrics generated.", flat_metrics(trainer.evaluate()))
    except _ABOUT_FILES as error:
        if _raised_by_m2f(error):
            raise _Mistake(_one_line(error)) from error
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


def _report(status: StatusWriter, *line: object) -> None:
    if distributed.is_main():
        status.report(*line)  # type: ignore[arg-type]
