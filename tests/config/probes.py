"""Components that a spec can name and whose effect shows; `registered` puts them into the registries for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import get_worker_info

from m2f.data.build import DATASET_MAPPER_REGISTRY
from m2f.engine.hooks import HOOK_REGISTRY
from m2f.engine.train_loop import HookBase
from m2f.evaluation import EVALUATOR_REGISTRY, Evaluator
from m2f.modeling.build import CRITERION_REGISTRY, META_ARCH_REGISTRY, TRANSFORMER_DECODER_REGISTRY
from m2f.modeling.criterion import MaskCriterion
from m2f.modeling.maskformer import MaskFormer
from m2f.modeling.transformer_decoder.masked_attention import MultiScaleMaskedTransformerDecoder


class ProbeMaskFormer(MaskFormer):
    """Also loses one."""

    def losses(self, *args: Any, **kwargs: Any) -> Any:
        losses = super().losses(*args, **kwargs)
        return {**losses, "loss_probe": losses["loss_ce"].detach() * 0 + 1}


class ProbeDecoder(MultiScaleMaskedTransformerDecoder):
    """Keeps all but its last prediction to itself."""

    def forward(self, *args: Any) -> Any:
        return super().forward(*args)[-1:]


class ProbeCriterion(MaskCriterion):
    """Counts everything twice."""

    def forward(self, *args: Any) -> Any:
        return {name: 2 * loss for name, loss in super().forward(*args).items()}


class ProbeEvaluator(Evaluator):
    """Counts images."""

    def __init__(self, _cfg: Any, _metadata: Any) -> None:
        self.reset()

    def reset(self) -> None:
        self.images = 0

    def process(self, inputs: Any, _outputs: Any) -> None:
        self.images += len(inputs)

    def evaluate(self) -> dict[str, float]:
        return {"probe/images": float(self.images)}


class ProbeHook(HookBase):
    """Leaves a scalar."""

    def __init__(self, _cfg: Any, _trainer: Any) -> None:
        pass

    def after_step(self) -> None:
        self.trainer.storage.put_scalar("probe", 1.0)


def where_loaded(*_: Any) -> Any:
    """A mapper whose samples say how many processes load them."""

    def mapper(record: Any, _rng: Any) -> Any:
        worker = get_worker_info()
        return {"file_name": record["file_name"], "num_workers": worker.num_workers if worker else 0}

    return mapper


PROBES = (
    (META_ARCH_REGISTRY, ProbeMaskFormer),
    (TRANSFORMER_DECODER_REGISTRY, ProbeDecoder),
    (CRITERION_REGISTRY, ProbeCriterion),
    (EVALUATOR_REGISTRY, ProbeEvaluator),
    (HOOK_REGISTRY, ProbeHook),
    (DATASET_MAPPER_REGISTRY, where_loaded),
)


@contextmanager
def registered() -> Iterator[None]:
    """Inside, every probe can be named in a spec."""
    for registry, probe in PROBES:
        registry.register()(probe)
    try:
        yield
    finally:
        for registry, probe in PROBES:
            registry._obj_map.pop(probe.__name__)
