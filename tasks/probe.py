"""Probe: a head on the frozen encoder, and the same head on two baselines.

Reads     shard: one row per volume; label: one row per study; pretrain: one row per encoder
Writes    one row per modality and encoder (pretrained, random, histogram)
Excludes  too_few_labels
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from neurovfm_core.errors import Excluded, Reason
from neurovfm_core.files import sha256_of, written_whole
from neurovfm_core.params import fingerprint
from neurovfm_core.probing.settings import ProbeParams, label_matrix
from neurovfm_core.vocabulary import LabelState, Modality, Split
from tasks.shardset import COLUMNS, open_shards
from tasks.stage import Candidates, Place, Stage, Unit, Upstream
from tasks.workspace import Workspace

SEMANTIC_VERSION = 1  # raise it when the same input and settings would give other predictions
METHODS = (
    "For every modality an attentive probe ({pooling}) was trained on frozen token features of whole studies with "
    "class-weighted cross-entropy; early stopping used validation patients only. The same probe was trained on a "
    "randomly initialised encoder and on intensity histograms. Uncertain mentions counted as {uncertain_as}."
)
KINDS = ("pretrained", "random", "histogram")


def plan(workspace: Workspace, upstream: Upstream, params: ProbeParams) -> Candidates:
    """Every modality with labelled studies in training, validation and test, times the three encoders."""
    shards = upstream.current("shard", [*COLUMNS, "split", "study_id", "modality"])
    labels = upstream.current(
        "label", ["study_id", "sha256", "engine", "engine_version", "label_names", "label_states"]
    )
    encoders = upstream.current("pretrain", ["item_id", "sha256", "outputs"]).to_pylist()
    items, prints, payloads = [], [], {}
    for modality in Modality:
        studies = _studies(shards.to_pylist(), labels.to_pylist(), modality)
        if not encoders or not studies:
            continue
        data = fingerprint(*(part for study in studies for part in _identity(study)))
        for kind in KINDS:
            item_id = f"{modality}-{kind}"
            items.append(item_id)
            # The random encoder takes its shape and normalisation from the trained one.
            prints.append(data if kind == "histogram" else f"{data}-{encoders[0]['sha256']}")
            payloads[item_id] = {
                "studies": studies,
                "encoder": encoders[0],
                "kind": kind,
                "modality": modality,
            }
    table = pa.table({"item_id": pa.array(items, pa.string()), "input_fingerprint": pa.array(prints, pa.string())})
    return Candidates(table, payloads)


def execute(unit: Unit, params: ProbeParams, place: Place) -> list[dict[str, Any]]:
    """Train one probe and predict every study; test studies are predicted, never looked at before."""
    from neurovfm_core.probing.heads import save_head
    from neurovfm_core.probing.probe import train_probe

    work = unit.payload
    studies, modality = work["studies"], Modality(work["modality"])
    names = tuple(studies[0]["label_names"])
    states = [dict(zip(s["label_names"], map(LabelState, s["label_states"]), strict=True)) for s in studies]
    targets = label_matrix(states, names, params)
    splits = [Split(study["split"]) for study in studies]
    if Split.VAL not in splits or Split.TRAIN not in splits:
        raise Excluded(Reason.TOO_FEW_LABELS, f"no labelled {modality} study in training or validation")
    bags = study_bags(place, work, params)
    fitted = train_probe(bags, targets, splits, params, labels=names)
    folder = place.folder / f"{unit.item_id}-{unit.input_fingerprint[:8]}"
    encoder_sha256 = "" if work["kind"] == "histogram" else work["encoder"]["sha256"]
    engine, version = studies[0]["engine"], studies[0]["engine_version"]
    card = {
        "modality": modality.value,
        "encoder_kind": work["kind"],
        "encoder_sha256": encoder_sha256,
        "label_engine": engine,
        "label_engine_version": version,
    }
    save_head(folder, fitted, card)
    logits = fitted.predict(bags)
    predictions = folder / "predictions.parquet"
    _write_predictions(predictions, studies, fitted.labels, logits, targets[:, fitted.columns(names)])
    outputs = [predictions, *(folder / name for name in ("model.safetensors", "config.json", "card.json"))]
    counts = {split: splits.count(split) for split in Split}
    return [
        {
            "outputs": [place.relative(path) for path in outputs],
            "bytes": sum(path.stat().st_size for path in outputs),
            "sha256": sha256_of(predictions),
            "modality": modality.value,
            "encoder_kind": work["kind"],
            "encoder_sha256": encoder_sha256,
            "num_train": counts[Split.TRAIN],
            "num_val": counts[Split.VAL],
            "num_test": counts[Split.TEST],
            "label_names": list(fitted.labels),
            "best_epoch": fitted.facts["best_epoch"],
            "label_engine": engine,
            "label_engine_version": version,
        }
    ]


def study_bags(place: Place, work: dict[str, Any], params: ProbeParams) -> list[Any]:
    """Return what the probe sees of each study: tokens of an encoder, or histograms."""
    import torch

    from neurovfm_core.models.checkpoints import load_encoder
    from neurovfm_core.probing.features import encode_study, histogram_bag, normalization_of, random_encoder

    studies = work["studies"]
    shards = open_shards(place.root, [volume for study in studies for volume in study["volumes"]])
    volume_ids = {study["study_id"]: [v["item_id"] for v in study["volumes"]] for study in studies}
    if work["kind"] == "histogram":
        return [histogram_bag(shards, study_id, volumes) for study_id, volumes in volume_ids.items()]
    folder = place.checked(work["encoder"]["outputs"][:1], work["encoder"]["sha256"]).parent
    encoder = load_encoder(folder)
    if work["kind"] == "random":
        encoder = random_encoder(encoder.config, params.seed)
    encoder = encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    stats = normalization_of(folder)
    most = params.max_tokens_per_study
    return [
        encode_study(encoder, shards, study_id, volumes, stats, max_tokens=most)
        for study_id, volumes in volume_ids.items()
    ]


def _studies(shards: list[dict[str, Any]], labels: list[dict[str, Any]], modality: Modality) -> list[dict[str, Any]]:
    """Return labelled studies of one modality in a stable order, with their volumes."""
    volumes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in shards:
        if row["modality"] == modality:
            volumes[row["study_id"]].append(row)
    studies = []
    for label in sorted(labels, key=lambda row: row["study_id"]):
        rows = sorted(volumes.get(label["study_id"], []), key=lambda row: row["item_id"])
        if rows:
            volumes_of_study = [{name: row[name] for name in COLUMNS} for row in rows]
            studies.append({**label, "split": rows[0]["split"], "volumes": volumes_of_study})
    return studies


def _identity(study: dict[str, Any]) -> list[str]:
    """What a probe's input is, whatever shards or commits it came in."""
    volumes = [part for volume in study["volumes"] for part in (volume["item_id"], volume["sha256"])]
    return [study["study_id"], study["split"], study["sha256"], *volumes]


def _write_predictions(
    path: Path, studies: list[dict[str, Any]], labels: tuple[str, ...], logits: Any, targets: Any
) -> None:
    """Write one row per study: logits and targets (NaN is missing), one list entry per label of the head."""
    table = pa.table(
        {
            "study_id": [s["study_id"] for s in studies],
            "split": [s["split"] for s in studies],
            "logits": [row.tolist() for row in np.asarray(logits, np.float32)],
            "targets": [row.tolist() for row in np.asarray(targets, np.float32)],
        },
        metadata={"labels": json.dumps(list(labels))},
    )
    with written_whole(path) as partial:
        pq.write_table(table, partial)


STAGE = Stage(
    name="probe",
    reads=("shard", "label", "pretrain"),
    semantic_version=SEMANTIC_VERSION,
    methods=METHODS,
    plan=plan,
    execute=execute,
    in_workers=False,
    waits_for_data=True,
)
