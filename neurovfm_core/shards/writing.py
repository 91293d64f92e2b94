"""Writing a shard: tokens, index, manifest; the manifest last."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from neurovfm_core.errors import IntegrityError, UsageError
from neurovfm_core.files import sha256_of, written_whole
from neurovfm_core.params import canonical_json
from neurovfm_core.shards.layout import ALIGNMENT_TOKENS, INDEX_SCHEMA, ShardParams, constant_header
from neurovfm_core.shards.normalization import NormalizationStats
from neurovfm_core.shards.tokens import VolumeTokens
from neurovfm_core.vocabulary import VOXELS_PER_TOKEN, Split

FORMAT_PAGE = "FORMAT.md"


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What a manifest keeps of a shard.

    Attributes
    ----------
    files
        Names inside the folder: manifest, index, tokens.
    bytes
        Of the three together.
    sha256
        Of the manifest, which names the checksums of the other two.
    """

    name: str
    files: tuple[str, ...]
    num_volumes: int
    num_tokens: int
    bytes: int
    sha256: str


def write_shard(
    folder: Path, name: str, volumes: Iterable[VolumeTokens], params: ShardParams | None = None
) -> ShardFacts:
    """Write one shard; it exists from the moment its manifest does.

    The same volumes in the same order give the same bytes. Writing a shard again is harmless.

    Parameters
    ----------
    name
        Stem of the three files; should name the content, for a shard never changes.
    volumes
        Taken one at a time: memory holds one volume.

    Raises
    ------
    UsageError
        A volume comes twice.
    IntegrityError
        A shard of this name exists with other content.
    """
    params = params or ShardParams()
    paths = {kind: folder / f"{name}.{kind}" for kind in ("json", "arrow", "tok")}
    with ExitStack() as whole:
        # Left in reverse order: tokens, then index, then manifest take their names.
        partial = {kind: whole.enter_context(written_whole(path)) for kind, path in paths.items()}
        with partial["tok"].open("wb") as file:
            rows, counted = _write_tokens(file, volumes, params.min_foreground_share)
        _write_index(partial["arrow"], rows)
        num_tokens = sum(row["num_tokens"] for row in rows)
        manifest = constant_header() | {
            "name": name,
            "num_volumes": len(rows),
            "num_tokens": num_tokens,
            "files": {
                kind: {"bytes": partial[kind].stat().st_size, "sha256": sha256_of(partial[kind])}
                for kind in ("tok", "arrow")
            },
            "min_foreground_share": params.min_foreground_share,
            "statistics": {split: stats.to_dict() for split, stats in counted.items()},
        }
        text = canonical_json(manifest)
        if paths["json"].exists() and paths["json"].read_text() != text:
            raise IntegrityError("a shard of this name exists with other content", where=paths["json"].name)
        partial["json"].write_text(text)
    _write_format_page(folder)
    size_bytes = len(text.encode()) + sum(facts["bytes"] for facts in manifest["files"].values())
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return ShardFacts(name, tuple(path.name for path in paths.values()), len(rows), num_tokens, size_bytes, sha256)


def _write_tokens(
    file: BinaryIO, volumes: Iterable[VolumeTokens], min_foreground_share: float
) -> tuple[list[dict[str, Any]], dict[Split, NormalizationStats]]:
    """Append every volume on a page of its own; return index rows, and statistics of each split."""
    rows: list[dict[str, Any]] = []
    counted: dict[Split, NormalizationStats] = defaultdict(NormalizationStats)
    offset = 0
    seen: set[str] = set()
    for volume in volumes:
        if volume.volume_id in seen:
            raise UsageError("a volume comes twice in one shard", where=volume.volume_id)
        seen.add(volume.volume_id)
        content = np.ascontiguousarray(volume.tokens).data
        file.write(content)
        gap = -len(volume) % ALIGNMENT_TOKENS
        file.write(bytes(gap * VOXELS_PER_TOKEN))
        kept = np.zeros(volume.grid, np.bool_)
        kept[tuple(volume.coords.T)] = True
        rows.append(
            {
                "volume_id": volume.volume_id,
                "study_id": volume.study_id,
                "patient_id": volume.patient_id,
                "modality": volume.modality.value,
                "split": volume.split.value,
                "view": int(volume.view),
                "grid": volume.grid,
                "spacing_mm": volume.spacing_mm,
                "affine": volume.affine.ravel().tolist(),
                "token_offset": offset,
                "num_tokens": len(volume),
                "kept": np.packbits(kept).tobytes(),
                "foreground_count": volume.foreground_count.astype("<u2").tobytes(),
                "sha256": hashlib.sha256(content).digest(),
            }
        )
        offset += len(volume) + gap
        chosen = volume.select(min_foreground_share).tokens
        part = NormalizationStats.of_tokens(volume.modality, chosen)
        counted[volume.split] = NormalizationStats.merged([counted[volume.split], part])
    return rows, dict(counted)


def _write_index(path: Path, rows: list[dict[str, Any]]) -> None:
    batch = pa.RecordBatch.from_pylist(rows, schema=INDEX_SCHEMA)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, INDEX_SCHEMA) as writer:
        writer.write_batch(batch)


def _write_format_page(folder: Path) -> None:
    """Leave the format's description beside the data, for whoever finds it without this code."""
    page = files(__package__).joinpath(FORMAT_PAGE).read_text()
    target = folder / FORMAT_PAGE
    if not target.exists() or target.read_text() != page:
        with written_whole(target) as partial:
            partial.write_text(page)
