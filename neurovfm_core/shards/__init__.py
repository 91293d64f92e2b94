"""Shards: tokens of many volumes in one mapped file, their statistics, and who trains on what."""

from neurovfm_core.shards.layout import SCHEMA_VERSION, ShardParams
from neurovfm_core.shards.normalization import OFFICIAL_NORMALIZATION, NormalizationStats
from neurovfm_core.shards.reading import ShardSet, verify_shard
from neurovfm_core.shards.sampling import epoch_order, pack_by_budget
from neurovfm_core.shards.splits import PatientStudy, SplitParams, assign_splits
from neurovfm_core.shards.tokens import VolumeTokens
from neurovfm_core.shards.writing import ShardFacts, write_shard

__all__ = [
    "OFFICIAL_NORMALIZATION",
    "SCHEMA_VERSION",
    "NormalizationStats",
    "PatientStudy",
    "ShardFacts",
    "ShardParams",
    "ShardSet",
    "SplitParams",
    "VolumeTokens",
    "assign_splits",
    "epoch_order",
    "pack_by_budget",
    "verify_shard",
    "write_shard",
]
