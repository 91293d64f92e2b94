"""What a shard looks like on disk; FORMAT.md says it in words."""

import json
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from neurovfm_core.errors import IntegrityError, UsageError
from neurovfm_core.params import Params, Share
from neurovfm_core.shards.splits import SplitParams
from neurovfm_core.vocabulary import PATCH_SHAPE, VOXELS_PER_TOKEN, Modality
from neurovfm_core.volumes import level_table, windows_of

SCHEMA_VERSION = 1
ALIGNMENT_TOKENS = 4
"""Volumes start on a page: 4 tokens of 1,024 bytes."""

INDEX_SCHEMA = pa.schema(
    [
        pa.field("volume_id", pa.string(), nullable=False),
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("view", pa.int32(), nullable=False),
        pa.field("grid", pa.list_(pa.int32(), 3), nullable=False),
        pa.field("spacing_mm", pa.list_(pa.float64(), 3), nullable=False),
        pa.field("affine", pa.list_(pa.float64(), 16), nullable=False),
        pa.field("token_offset", pa.int64(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("kept", pa.binary(), nullable=False),
        pa.field("foreground_count", pa.binary(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
    ]
)


class ShardParams(Params):
    """How volumes are put into shards, and patients into splits."""

    volumes_per_shard: Annotated[int, Field(ge=1, le=100_000)] = 2000
    """Most volumes in one shard: about 1 GB per 1,000."""
    min_foreground_share: Share = 0.25
    """Share of patient voxels from which on a token counts in the statistics. Nothing is dropped by it:
    every token with any patient voxel is stored, and the rule is applied when reading."""
    split: SplitParams = SplitParams()
    """Which patients train, validate and test."""


def decode_levels() -> dict[str, Any]:
    """Return what a stored byte means, for readers without this code."""
    return {
        str(modality): {
            str(window or "image"): [int(level) for level in level_table(window)] if window else "byte / 255"
            for window in windows_of(modality)
        }
        for modality in Modality
    }


def constant_header() -> dict[str, Any]:
    """Return the part of the manifest that is the same for every shard of this version."""
    return {
        "schema_version": SCHEMA_VERSION,
        "token_shape": list(PATCH_SHAPE),
        "token_bytes": VOXELS_PER_TOKEN,
        "alignment_tokens": ALIGNMENT_TOKENS,
        "dtype": "uint8",
        "codec": "raw",
        "decode": decode_levels(),
    }


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the small JSON of a shard.

    Raises
    ------
    UsageError
        There is none.
    IntegrityError
        It is not JSON, or of a version that this code does not read.
    """
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UsageError("there is no such shard", where=path.name, hint="run the shard stage") from error
    except ValueError as error:
        raise IntegrityError("the shard's manifest is damaged", where=path.name) from error
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise IntegrityError(
            f"shard of schema version {version}, this code reads {SCHEMA_VERSION}",
            where=path.name,
            hint="write the shards again with this version, or use the version that wrote them",
        )
    if set(manifest.get("files", ())) != {"tok", "arrow"}:
        raise IntegrityError("the shard's manifest does not name its files", where=path.name)
    return manifest
