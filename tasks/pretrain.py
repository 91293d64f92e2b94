"""Pretrain: Vol-JEPA on token shards gives an encoder.

Reads     shard: one row per volume
Writes    one row per encoder
Excludes  nothing
"""

from typing import Any

import pyarrow as pa

from neurovfm_core.files import sha256_of
from neurovfm_core.jepa.settings import PretrainParams
from neurovfm_core.shards import NormalizationStats
from neurovfm_core.vocabulary import Split
from tasks.plan import content_fingerprint
from tasks.shardset import COLUMNS, open_shards
from tasks.stage import Candidates, Place, Stage, Stopped, Unit, Upstream
from tasks.workspace import Workspace

SEMANTIC_VERSION = 1  # raise it when the same input and settings would give other weights
METHODS = (
    "A volumetric joint-embedding predictive architecture (Vol-JEPA) was trained on the training split for "
    "{steps:,} steps of {batch_volumes} volumes, with an exponential moving average teacher "
    "({momentum_start:g} to {momentum_end:g}) and AdamW (peak learning rate {learning_rate:g})."
)
RUN_NAME = "main"


def plan(workspace: Workspace, upstream: Upstream, params: PretrainParams) -> Candidates:
    """One encoder, from all volumes of the training split; none while there are no such volumes."""
    table = upstream.current("shard", [*COLUMNS, "split", "patient_id"])
    rows = table.to_pylist()
    if not any(row["split"] == Split.TRAIN for row in rows):
        return Candidates(
            pa.table({"item_id": pa.array([], pa.string()), "input_fingerprint": pa.array([], pa.string())})
        )
    known = content_fingerprint(table.select(["item_id", "sha256", "split"]))
    return Candidates(pa.table({"item_id": [RUN_NAME], "input_fingerprint": [known]}), {RUN_NAME: rows})


def execute(unit: Unit, params: PretrainParams, place: Place) -> list[dict[str, Any]]:
    """Train, or go on with a run that was interrupted.

    Raises
    ------
    Stopped
        If a stop was asked for; the checkpoint is written.
    """
    from neurovfm_core.jepa.trainer import train
    from neurovfm_core.models.checkpoints import load_encoder

    rows = sorted(unit.payload, key=lambda row: row["item_id"])
    ids = {split: [row["item_id"] for row in rows if row["split"] == split] for split in Split}
    shards = open_shards(place.root, rows)
    stats = NormalizationStats.of_volumes(shards, ids[Split.TRAIN])
    folder = place.folder / f"{unit.item_id}-{unit.input_fingerprint[:8]}"
    result = train(
        shards,
        ids[Split.TRAIN],
        ids[Split.VAL],
        stats,
        params,
        folder,
        on_progress=lambda line: place.on_progress(_in_words(line)),
        should_stop=place.should_stop,
    )
    if result.stopped:
        raise Stopped
    encoder = load_encoder(result.encoder_folder)
    weights = result.encoder_folder / "model.safetensors"
    digest = sha256_of(weights)
    outputs = [
        weights,
        *(result.encoder_folder / name for name in ("config.json", "card.json")),
        result.log_path,
    ]
    return [
        {
            "outputs": [place.relative(path) for path in outputs],
            "bytes": weights.stat().st_size,
            "sha256": digest,
            "run_name": folder.name,
            "steps": result.steps,
            "volumes_seen": result.steps * params.batch_volumes,
            "final_loss": result.final_loss,
            "val_loss": result.val_loss,
            "feature_std": result.feature_std,
            "effective_rank": result.effective_rank,
            "num_parameters": sum(parameter.numel() for parameter in encoder.parameters()),
            "width": encoder.config.width,
            "depth": encoder.config.depth,
            "encoder_sha256": digest,
            "device": params.device,
            "num_train_volumes": len(ids[Split.TRAIN]),
            "num_train_patients": len({row["patient_id"] for row in rows if row["split"] == Split.TRAIN}),
        }
    ]


def _in_words(line: Any) -> str:
    words = [f"epoch {line['epoch']:.1f}"] if "epoch" in line else []
    words += [f"{name} {line[name]:.3f}" for name in ("loss", "val_loss", "effective_rank") if name in line]
    if "volumes_per_s" in line:
        words.append(f"{line['volumes_per_s']:.0f} volumes/s, {line['eta_s']:.0f} s left")
    return ", ".join(words)


STAGE = Stage(
    name="pretrain",
    reads=("shard",),
    semantic_version=SEMANTIC_VERSION,
    methods=METHODS,
    plan=plan,
    execute=execute,
    in_workers=False,
    waits_for_data=True,
)
