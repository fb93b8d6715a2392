"""What may be configured: TAO's spec and m2f's own keys as one frozen tree."""

from m2f.config.defaults import get_cfg
from m2f.config.node import CfgNode, SpecError
from m2f.config.projects import import_projects
from m2f.config.secret import without_key
from m2f.config.spec import diff_spec, dump_spec, dumped_leaves, load_spec, split_key
from m2f.config.task_rules import check_task

__all__ = [
    "CfgNode",
    "SpecError",
    "check_task",
    "diff_spec",
    "dump_spec",
    "dumped_leaves",
    "get_cfg",
    "import_projects",
    "load_spec",
    "split_key",
    "without_key",
]
