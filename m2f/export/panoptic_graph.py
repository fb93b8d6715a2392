"""Panoptic merging with static shapes: no query is dropped, it only wins nothing."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from m2f.modeling.postprocess import DecisionRule


class Candidates(NamedTuple):
    """Every query as a segment that may be."""

    masks: Tensor  # (B, Q, H, W) probabilities
    scores: Tensor  # (B, Q), 0 for no-object
    labels: Tensor  # (B, Q) int64, K for no-object


def merge(candidates: Candidates, is_thing: Tensor, rule: DecisionRule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each pixel to one segment, as `m2f.modeling.postprocess.panoptic` decides it, for a batch at once.

    Args:
        candidates: the queries.
        is_thing: (K+1,) bool by label.
        rule: the thresholds.

    Returns:
        Ids (B, H, W) int32, 0 = void, the others from 1 without gaps in query order; and the table of segments, a row
        for each query: ids (B, Q) int32, labels (B, Q) int64 and scores (B, Q). A row that is no segment, or not the
        first query of a stuff segment, has id 0, label K and score 0.
    """
    scores, labels = candidates.scores, candidates.labels
    accepted, owner, solid = _compete(candidates, rule)
    rank, same = _group(accepted, labels, ~is_thing[labels])
    leads = rank > 0
    ids = (same * rank.unsqueeze(1)).sum(dim=2) * accepted  # exactly one leader in each accepted query's row
    best = (same * (scores * accepted).unsqueeze(1)).amax(dim=2)
    pixels = ids.gather(1, owner.flatten(1)).view(owner.shape) * solid
    return pixels.int(), rank.int(), torch.where(leads, labels, len(is_thing) - 1), best * leads


def _compete(candidates: Candidates, rule: DecisionRule) -> tuple[Tensor, Tensor, Tensor]:
    """Queries that become segments (B, Q), and each pixel's owner (B, H, W) and whether its mask holds there.

    Counts of pixels are sums of ones in float32: exact up to 2^24, which is 4096 x 4096 pixels.
    """
    masks, scores, _ = candidates
    takes_part = scores > rule.object_mask_threshold
    shares = torch.where(takes_part[..., None, None], masks * scores[..., None, None], -1.0)
    owner = shares.argmax(dim=1, keepdim=True)  # (B, 1, H, W)
    inside = masks >= 0.5
    wins = owner == torch.arange(masks.shape[1], device=masks.device)[:, None, None]
    won, area = wins.float().sum((2, 3)), inside.float().sum((2, 3))
    visible = (wins & inside).flatten(2).any(dim=2)
    accepted = takes_part & visible & (won / area >= rule.overlap_threshold)
    return accepted, owner.squeeze(1), inside.gather(1, owner).squeeze(1)


def _group(accepted: Tensor, labels: Tensor, is_stuff: Tensor) -> tuple[Tensor, Tensor]:
    """The segment that each query is the first of, or 0, (B, Q), and which queries belong together (B, Q, Q)."""
    query = torch.arange(labels.shape[1], device=labels.device)
    alike = (labels.unsqueeze(2) == labels.unsqueeze(1)) & is_stuff.unsqueeze(2)
    follows = alike & accepted.unsqueeze(1) & (query[:, None] > query)
    leads = accepted & ~follows.any(dim=2)
    rank = (leads.unsqueeze(1) & (query[:, None] >= query)).sum(dim=2) * leads
    return rank, alike | (query[:, None] == query)
