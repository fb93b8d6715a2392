"""Which learning rate and weight decay each parameter has, as few groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

BACKBONE = "backbone."
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
_POSITION_TABLES = ("relative_position_bias_table", "absolute_pos_embed")


class _Rule(NamedTuple):
    in_backbone: bool
    decays: bool


def param_groups(model: nn.Module, lr: float, weight_decay: float, backbone_multiplier: float) -> list[dict[str, Any]]:
    """At most four groups: backbone or not, decayed or not; order and members depend on the model alone.

    So a checkpoint fits again after a change of the three numbers.

    Args:
        model: its parameters under `backbone.` take `backbone_multiplier` x `lr`; frozen ones are left out.
        lr: of everything else.
        weight_decay: of all but norms, `nn.Embedding` and position tables; biases decay.
        backbone_multiplier: rate of the backbone / lr.

    Raises:
        ValueError: no parameter learns.
    """
    groups: dict[_Rule, list[nn.Parameter]] = {}
    for parameter, rule in _ruled_parameters(model):
        groups.setdefault(rule, []).append(parameter)
    if not groups:
        raise ValueError("train.freeze leaves nothing to train: every parameter of the model is frozen")
    return [
        {
            "params": groups[rule],
            "lr": lr * backbone_multiplier if rule.in_backbone else lr,
            "weight_decay": weight_decay if rule.decays else 0.0,
        }
        for rule in sorted(groups)
    ]


def _ruled_parameters(model: nn.Module) -> Iterator[tuple[nn.Parameter, _Rule]]:
    """Each learning parameter once, as its first name has it."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            yield parameter, _Rule(f"{prefix}.".startswith(BACKBONE), _decays(module, name))


def _decays(module: nn.Module, name: str) -> bool:
    # A norm of the model's own, which is no subclass of torch's, is known by its class name; `ConvNorm` is none.
    is_named_norm = "norm" in type(module).__name__.lower() and not isinstance(module, (_ConvNd, nn.Linear))
    is_norm = isinstance(module, _NORMS) or is_named_norm
    return not (is_norm or isinstance(module, nn.Embedding) or name in _POSITION_TABLES)
