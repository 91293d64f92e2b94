"""Reading shards: a volume is a view into the mapped file."""

import hashlib
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from neurovfm_core.errors import IntegrityError, UsageError
from neurovfm_core.files import sha256_of
from neurovfm_core.shards.layout import INDEX_SCHEMA, read_manifest
from neurovfm_core.shards.normalization import NormalizationStats
from neurovfm_core.shards.tokens import VolumeTokens, raster_coords
from neurovfm_core.vocabulary import VOXELS_PER_TOKEN, Modality, Split
from neurovfm_core.volumes import View

MAX_MAPPED_FILES = 512
"""A mapping keeps a file descriptor, and 1,024 are a common limit."""
SHARD_SUFFIXES = (".json", ".arrow", ".tok")


@dataclass(frozen=True)
class _Index:
    """The rows of one shard; long columns stay in the mapped file."""

    manifest: Path
    batch: pa.RecordBatch
    token_offset: NDArray[np.int64]
    num_tokens: NDArray[np.int32]

    def __getitem__(self, column: str) -> pa.Array:
        return self.batch.column(column)

    @property
    def tokens_path(self) -> Path:
        return self.manifest.with_suffix(".tok")


class ShardSet:
    """Volumes of any number of shards, by id.

    Cheap to open, safe to fork, to send to another process (it travels as paths) and to use from
    several threads.

    Parameters
    ----------
    where
        A folder with shards, or paths of shards (any of a shard's three files). If two hold the same
        volume, the later one in the sequence counts: pass them oldest first.

    Raises
    ------
    UsageError
        A path does not exist.
    IntegrityError
        Another format version, or a file is shorter or longer than its manifest says.
    """

    def __init__(self, where: Path | Sequence[Path]) -> None:
        self._paths = _manifests(where)
        self._indexes = [_open_index(path) for path in self._paths]
        self._mapped = lru_cache(maxsize=MAX_MAPPED_FILES)(_map_tokens)
        ids = [index["volume_id"].to_pylist() for index in self._indexes]
        shards = np.repeat(np.arange(len(ids)), [len(part) for part in ids])
        rows = np.concatenate([np.arange(len(part)) for part in ids]) if ids else np.arange(0)
        flat = np.array([one for part in ids for one in part], dtype=np.bytes_)
        # Fixed-width and sorted: 5 M ids take 0.2 GB, shared after a fork; a dict would take ten times that.
        order = np.argsort(flat, kind="stable")
        last_of_id = np.append(flat[order][1:] != flat[order][:-1], True)[: len(order)]
        newest = order[last_of_id]
        self._sorted_ids, self._shard_of, self._row_of = flat[newest], shards[newest], rows[newest]
        self._reading_order = np.argsort(newest, kind="stable")

    def __getstate__(self) -> list[Path]:
        return self._paths

    def __setstate__(self, paths: list[Path]) -> None:
        self.__init__(paths)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self._sorted_ids)

    def __contains__(self, volume_id: object) -> bool:
        return isinstance(volume_id, str) and self._find(volume_id) is not None

    @property
    def ids(self) -> list[str]:
        """Every volume id, in the order of the files; a new list at every call."""
        return [one.decode() for one in self._sorted_ids[self._reading_order]]

    def select_ids(self, *, split: Split | None = None, modality: Modality | None = None) -> list[str]:
        """Return the ids of a split, of a modality, or both, in the order of the files."""
        found = []
        splits = [index["split"].to_pylist() for index in self._indexes]
        modalities = [index["modality"].to_pylist() for index in self._indexes]
        for place in self._reading_order:
            shard, row = self._shard_of[place], self._row_of[place]
            if split in (None, splits[shard][row]) and modality in (None, modalities[shard][row]):
                found.append(self._sorted_ids[place].decode())
        return found

    def get(self, volume_id: str) -> VolumeTokens:
        """Return the tokens of a volume: a read-only view, nothing is copied.

        Raises
        ------
        UsageError
            No shard holds it.
        """
        index, row = self._locate(volume_id)
        offset, num_tokens = int(index.token_offset[row]), int(index.num_tokens[row])
        flat, _ = self._mapped(index.tokens_path)
        d, h, w = index["grid"][row].as_py()
        kept = np.unpackbits(np.frombuffer(index["kept"][row].as_buffer(), np.uint8), count=d * h * w)
        depth, rows, columns = index["spacing_mm"][row].as_py()
        return VolumeTokens(
            volume_id=volume_id,
            study_id=index["study_id"][row].as_py(),
            patient_id=index["patient_id"][row].as_py(),
            split=Split(index["split"][row].as_py()),
            modality=Modality(index["modality"][row].as_py()),
            tokens=flat[offset : offset + num_tokens],
            coords=raster_coords(np.flatnonzero(kept), (d, h, w)),
            foreground_count=np.frombuffer(index["foreground_count"][row].as_buffer(), "<u2"),
            grid=(d, h, w),
            spacing_mm=(depth, rows, columns),
            affine=np.array(index["affine"][row].as_py()).reshape(4, 4),
            view=View(index["view"][row].as_py()),
        )

    def dense(self, volume_id: str) -> NDArray[np.uint8]:
        """Return the (D, H, W) stored volume, 0 where no token was kept."""
        return self.get(volume_id).dense()

    def prefetch(self, volume_ids: Iterable[str]) -> None:
        """Ask the kernel to read these volumes ahead; call it one batch early.

        Without it a random read of a cold file fetches each page by itself, and with the kernel's
        own read-ahead 3.4 times the useful bytes.
        """
        for volume_id in volume_ids:
            index, row = self._locate(volume_id)
            start = int(index.token_offset[row]) * VOXELS_PER_TOKEN
            stop = start + int(index.num_tokens[row]) * VOXELS_PER_TOKEN
            _, mapped = self._mapped(index.tokens_path)
            if mapped is not None:
                start -= start % mmap.PAGESIZE
                mapped.madvise(mmap.MADV_WILLNEED, start, stop - start)

    def normalization(self, split: Split = Split.TRAIN) -> NormalizationStats:
        """Return the statistics that the shards recorded when written; no voxel is read.

        Superseded volumes are counted too; `NormalizationStats.of_volumes` counts given volumes only.
        """
        recorded = (read_manifest(path)["statistics"].get(split.value) for path in self._paths)
        return NormalizationStats.merged(NormalizationStats.from_dict(one) for one in recorded if one)

    def verify(self) -> None:
        """Read every byte again; raise `IntegrityError` naming the first shard that differs."""
        for path in self._paths:
            verify_shard(path)

    def _find(self, volume_id: str) -> int | None:
        wanted = volume_id.encode()
        place = int(np.searchsorted(self._sorted_ids, wanted))
        # A longer id than any stored would be cut to their width by the search, not by this comparison.
        found = place < len(self._sorted_ids) and self._sorted_ids[place] == wanted
        return place if found else None

    def _locate(self, volume_id: str) -> tuple[_Index, int]:
        place = self._find(volume_id)
        if place is None:
            raise UsageError("no shard holds this volume", where=volume_id, hint="run the shard stage")
        return self._indexes[self._shard_of[place]], int(self._row_of[place])


def verify_shard(path: Path) -> None:
    """Compare every file and every volume of a shard with their checksums.

    Parameters
    ----------
    path
        Any of the shard's three files.

    Raises
    ------
    IntegrityError
        Names the file, or the volume if only some are damaged.
    """
    manifest = read_manifest(path.with_suffix(".json"))
    _check_sizes(path, manifest)
    index_path = path.with_suffix(".arrow")
    # Before anything of it is trusted: offsets that a flipped bit sent astray would be followed.
    if sha256_of(index_path) != manifest["files"]["arrow"]["sha256"]:
        raise IntegrityError("the index differs from its checksum", where=index_path.name)
    index = _open_index(path.with_suffix(".json"))
    flat, _ = _map_tokens(index.tokens_path)
    for row, volume_id in enumerate(index["volume_id"].to_pylist()):
        start = index.token_offset[row]
        tokens = flat[start : start + index.num_tokens[row]]
        if hashlib.sha256(tokens.data).digest() != index["sha256"][row].as_py():
            raise IntegrityError(f"volume {volume_id} differs from its checksum", where=index.tokens_path.name)
    if sha256_of(index.tokens_path) != manifest["files"]["tok"]["sha256"]:
        raise IntegrityError("the gaps between volumes are not empty", where=index.tokens_path.name)


def _manifests(where: Path | Sequence[Path]) -> list[Path]:
    if isinstance(where, Path):
        if not where.is_dir():
            raise UsageError("there is no such folder of shards", where=where.name, hint="run the shard stage")
        return sorted(where.glob("*.json"))
    for path in where:
        if path.suffix not in SHARD_SUFFIXES:
            raise UsageError("not a file of a shard", where=path.name)
    return list(dict.fromkeys(path.with_suffix(".json") for path in where))


def _open_index(manifest_path: Path) -> _Index:
    _check_sizes(manifest_path, read_manifest(manifest_path))
    # Closing the file leaves its pages mapped for as long as the arrays live.
    with pa.memory_map(str(manifest_path.with_suffix(".arrow"))) as source:
        try:
            reader = pa.ipc.open_file(source)
            if reader.schema != INDEX_SCHEMA or reader.num_record_batches != 1:
                raise IntegrityError("the index has other columns", where=f"{manifest_path.stem}.arrow")
            batch = reader.get_batch(0)
        except (OSError, pa.ArrowException) as error:
            raise IntegrityError("the index is damaged", where=f"{manifest_path.stem}.arrow") from error
    columns: dict[str, Any] = {name: batch.column(name).to_numpy() for name in ("token_offset", "num_tokens")}
    return _Index(manifest_path, batch, **columns)


def _check_sizes(path: Path, manifest: dict[str, Any]) -> None:
    for kind, facts in manifest["files"].items():
        file = path.with_suffix(f".{kind}")
        found = file.stat().st_size if file.exists() else 0
        if found != facts["bytes"]:
            raise IntegrityError(
                f"the file has {found} bytes, its manifest says {facts['bytes']}",
                where=file.name,
                hint="copy or write the shard again",
            )


def _map_tokens(path: Path) -> tuple[NDArray[np.uint8], mmap.mmap | None]:
    """Map a token file; reads are random, so the kernel must not read ahead by itself."""
    if path.stat().st_size == 0:
        return np.empty((0, VOXELS_PER_TOKEN), np.uint8), None
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)
    return np.frombuffer(mapped, np.uint8).reshape(-1, VOXELS_PER_TOKEN), mapped
