"""A backbone of plain convolutions: the smallest example of a project. Importing it registers `plain_conv`."""

from m2f.config import CfgNode

from . import backbone as backbone  # a relative import: a project has no fixed name


def add_config(cfg: CfgNode) -> None:
    """Add the backbone's section to a tree."""
    section = cfg.model.backbone.plain_conv = CfgNode()
    section.widths = [16, 32, 64, 128]  # channels of res2 .. res5
    section.depth = 1  # convolutions of a stage after the one that halves the resolution
    section.out_features = ["res2", "res3", "res4", "res5"]
