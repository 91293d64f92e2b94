"""Analyze: intervals on held-out patients, figures and the report.

Reads     every stage before it
Writes    one row per report
Excludes  nothing
"""

import json
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from neurovfm_core.files import sha256_of, written_whole
from neurovfm_core.params import canonical_json, fingerprint
from neurovfm_core.reporting.settings import AnalyzeParams
from neurovfm_core.vocabulary import PATCH_SHAPE, LabelState, Modality, Split, Window
from tasks.plan import content_fingerprint
from tasks.shardset import open_shards
from tasks.stage import Candidates, Place, Stage, Unit, Upstream
from tasks.workspace import Workspace

SEMANTIC_VERSION = 1  # raise it when the same input and settings would give another report
METHODS = (
    "Area under the receiver operating characteristic curve was computed on held-out test patients, with "
    "percentile intervals ({level:.0%}) from {replicates:,} bootstrap replicates that resample patients."
)
RUN_NAME = "report"
UNITS = {
    "export": "series and reports",
    "convert": "volumes",
    "preprocess": "volumes",
    "shard": "volumes",
    "label": "reports",
    "pretrain": "encoders",
    "probe": "heads",
}
BRANCHES = ("label", "pretrain", "probe")
"""Stages that do not take up what the one before them in the table kept."""
ENCODERS = (
    ("pretrained", "Vol-JEPA", "the encoder pretrained on the training split"),
    ("random", "Random encoder", "the same architecture, never trained"),
    ("histogram", "Histogram", "intensity histogram of every volume"),
)
SPEED_KEYS = ("volumes_per_s", "eta_s")
"""Of the machine, not of the encoder: left out, so that the same run gives the same results.json."""


def plan(workspace: Workspace, upstream: Upstream, params: AnalyzeParams) -> Candidates:
    """One report over everything upstream; none while there are no heads."""
    tables = {name: upstream.current(name, where=None) for name in STAGE.reads}
    if not any(status == "ok" for status in tables["probe"]["status"].to_pylist()):
        return Candidates(
            pa.table({"item_id": pa.array([], pa.string()), "input_fingerprint": pa.array([], pa.string())})
        )
    content = [table.select(["item_id", "status", "reason", "sha256"]) for table in tables.values()]
    provenance = {
        name: {"pin": pin.to_dict(), **(workspace.store.manifest(name).provenance(pin.version) or {})}
        for name, pin in upstream.pins.items()
        if pin
    }
    known = content_fingerprint(*content)
    payload = {"tables": tables, "provenance": provenance}
    return Candidates(pa.table({"item_id": [RUN_NAME], "input_fingerprint": [known]}), {RUN_NAME: payload})


def execute(unit: Unit, params: AnalyzeParams, place: Place) -> list[dict[str, Any]]:
    """Compute every number once, into results.json; figures and page are drawn from it."""
    from neurovfm_core.reporting.page import render_report

    tables = {name: table.to_pylist() for name, table in unit.payload["tables"].items()}
    provenance = unit.payload["provenance"]
    place.on_progress("bootstrap")
    heads = {(row["modality"], row["encoder_kind"]): row for row in tables["probe"] if row["status"] == "ok"}
    results: dict[str, Any] = {
        "title": params.title,
        "subtitle": "Health system learning: from PACS to probe",
        "data_notice": params.data_notice,
        "suppress_below": params.suppress_below,
        "totals": _totals(tables),
        "flow": [_flow_row(name, tables[name]) for name in UNITS],
        "cohort": _cohort(tables),
        "labels": _label_counts(tables),
        "pretraining": _training_log(tables["pretrain"], place),
        "encoders": [
            {"key": key, "name": name, "description": text, "digest": _digest(heads, key)}
            for key, name, text in ENCODERS
        ],
        "evaluation": {
            modality.value: _evaluation(modality, heads, tables["shard"], params, place)
            for modality in Modality
            if (modality, "pretrained") in heads
        },
        "methods": _methods(provenance, params),
    }
    results["provenance"] = _provenance(tables, provenance, heads, params)
    folder = place.folder / f"{unit.item_id}-{unit.input_fingerprint[:8]}"
    place.on_progress("figures")
    figures = _evidence_figures(heads, tables, params, place)
    page = render_report(results, figures, folder)
    history = folder / "provenance.json"
    with written_whole(history) as partial:
        partial.write_text(canonical_json(provenance) + "\n")
    numbers = folder / "results.json"
    macro = {modality: part["macro"] for modality, part in results["evaluation"].items()}
    return [
        {
            "outputs": [place.relative(path) for path in (numbers, page, history)],
            "bytes": numbers.stat().st_size + page.stat().st_size,
            "sha256": sha256_of(numbers),
            "run_name": folder.name,
            "report": place.relative(page),
            "num_figures": len(figures),
            "macro_auroc_json": canonical_json(macro),
        }
    ]


def _totals(tables: dict[str, list[dict[str, Any]]]) -> dict[str, int]:
    volumes = [row for row in tables["shard"] if row["status"] == "ok"]
    return {
        "patients": len({row["patient_id"] for row in volumes}),
        "studies": len({row["study_id"] for row in volumes}),
        "series": len({row["series_id"] for row in volumes}),
        "volumes": len(volumes),
        "tokens": sum(row["num_tokens"] for row in volumes),
        "reports": sum(row["status"] == "ok" for row in tables["label"]),
    }


def _flow_row(stage: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        reasons[row["status"]][row["reason"]] += 1
    return {
        "stage": stage,
        "unit": UNITS[stage],
        "follows": stage not in BRANCHES,
        "ok": reasons["ok"].total(),
        "excluded": dict(sorted(reasons["excluded"].items())),
        "failed": dict(sorted(reasons["failed"].items())),
    }


def _cohort(tables: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    from neurovfm_core.reporting.results import cohort_rows

    exported = {row["series_id"]: row for row in tables["export"] if row["kind"] == "series"}
    volumes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in tables["shard"]:
        if row["status"] == "ok":
            volumes[row["series_id"]].append(row)
    facts = ("sex", "age_band", "manufacturer", "field_strength_t")
    return cohort_rows(
        {
            **{key: rows[0][key] for key in ("split", "modality", "patient_id", "study_id")},
            **{key: exported.get(series_id, {}).get(key) for key in facts},
            "num_volumes": len(rows),
        }
        for series_id, rows in sorted(volumes.items())
    )


def _label_counts(tables: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Count what reports say, per modality, split and label, over studies that have volumes."""
    splits = {row["study_id"]: row["split"] for row in tables["shard"] if row["status"] == "ok"}
    counts: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for row in tables["label"]:
        if row["status"] == "ok" and row["study_id"] in splits:
            for label, state in zip(row["label_names"], row["label_states"], strict=True):
                counts[row["modality"], splits[row["study_id"]], label][state] += 1
    return [
        {
            "modality": modality,
            "split": split,
            "label": label,
            **{s.value: found[s.value] for s in LabelState},
        }
        for (modality, split, label), found in sorted(counts.items())
        if found[LabelState.PRESENT] or found[LabelState.UNCERTAIN]
    ]


def _training_log(encoders: list[dict[str, Any]], place: Place) -> list[dict[str, Any]]:
    lines = []
    for row in encoders:
        for name in row["outputs"]:
            if name.endswith("log.jsonl"):
                lines += [json.loads(line) for line in (place.root / name).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in SPEED_KEYS} for line in lines]


def _digest(heads: dict[tuple[str, str], dict[str, Any]], kind: str) -> str:
    # A random encoder's row names the trained encoder that gave it its shape; it has no weights to name.
    return next((row["encoder_sha256"] for (_, k), row in heads.items() if k == kind == "pretrained"), "")


def _evaluation(
    modality: Modality,
    heads: dict[tuple[str, str], dict[str, Any]],
    volumes: list[dict[str, Any]],
    params: AnalyzeParams,
    place: Place,
) -> dict[str, Any]:
    """Estimate AUROC of every encoder on the test studies of one modality, on shared resamples."""
    from neurovfm_core.stats.bootstrap import bootstrap_auroc

    patients = {row["study_id"]: row["patient_id"] for row in volumes}
    scores, targets, studies, labels, without_head = {}, None, [], [], []
    for kind, *_ in ENCODERS:
        row = heads.get((modality, kind))
        if row is None:
            continue
        table = pq.read_table(place.checked(row["outputs"][:1], row["sha256"]))
        table = table.filter(pc.equal(table["split"], Split.TEST.value))
        labels = row["label_names"]
        card = json.loads((place.root / row["outputs"][3]).read_text())
        without_head = sorted(row["label"] for row in card["facts"]["labels_without_head"])
        studies = table["study_id"].to_pylist()
        scores[kind] = np.array(table["logits"].to_pylist(), np.float64).reshape(len(studies), len(labels))
        targets = np.array(table["targets"].to_pylist(), np.float64).reshape(len(studies), len(labels))
    assert targets is not None
    found = bootstrap_auroc(
        scores,
        targets,
        [patients[study] for study in studies],
        class_names=labels,
        replicates=params.replicates,
        seed=params.seed,
        level=params.level,
        min_positives=params.min_positives,
    )
    return {**found.to_dict(), "labels_without_head": without_head}


def _evidence_figures(
    heads: dict[tuple[str, str], dict[str, Any]],
    tables: dict[str, list[dict[str, Any]]],
    params: AnalyzeParams,
    place: Place,
) -> list[Any]:
    """Draw where the evidence lies in the test studies whose findings the probe is most certain of."""
    from neurovfm_core.reporting.slices import slice_figure

    panels = [
        panel
        for modality in Modality
        if (modality, "pretrained") in heads
        for panel in _evidence_panels(heads[modality, "pretrained"], modality, tables, params, place)
    ]
    caption = (
        "Left of each pair: the slice with the most evidence and the outline of its foreground tokens. Right: "
        "evidence (attention times token logit) for the named label, present in the report. Chosen as the test "
        "studies with the highest predicted probability among those that have the label."
    )
    return [slice_figure(panels, caption)] if panels else []


def _evidence_panels(
    head_row: dict[str, Any],
    modality: Modality,
    tables: dict[str, list[dict[str, Any]]],
    params: AnalyzeParams,
    place: Place,
) -> list[Any]:
    from neurovfm_core.models.checkpoints import load_encoder
    from neurovfm_core.probing.features import encode_study, normalization_of
    from neurovfm_core.probing.heads import load_head
    from neurovfm_core.reporting.slices import slice_panel, token_map
    from neurovfm_core.volumes import decode_ct

    encoder_row = next(row for row in tables["pretrain"] if row["sha256"] == head_row["encoder_sha256"])
    folder = place.checked(encoder_row["outputs"][:1], encoder_row["sha256"]).parent
    encoder = load_encoder(folder)
    stats = normalization_of(folder)
    head = load_head((place.root / head_row["outputs"][1]).parent)
    volumes: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in tables["shard"]:
        if row["status"] == "ok" and row["modality"] == modality:
            volumes[row["study_id"]].append(row)
    panels = []
    for study_id, label in _surest(head_row, params.evidence_examples, place):
        rows = {row["item_id"]: row for row in volumes[study_id]}
        shards = open_shards(place.root, rows.values())
        bag = encode_study(encoder, shards, study_id, sorted(rows), stats)
        evidence = head.evidence(bag)[:, label]
        strength = np.bincount(bag.volume_index, np.clip(evidence, 0, None), len(bag.volume_ids))
        strongest = int(strength.argmax())
        volume = shards.get(bag.volume_ids[strongest])
        here = bag.volume_index == strongest
        image = shards.dense(volume.volume_id)
        kept = np.zeros(volume.grid, bool)
        kept[tuple(bag.coords[here].T)] = True
        name = head.labels[label].replace("_", " ")
        panels.append(
            slice_panel(
                f"{name} ({rows[volume.volume_id]['sequence_class']})",
                decode_ct(image, Window.BRAIN) if modality is Modality.CT else image,
                kept.repeat(PATCH_SHAPE[0], 0).repeat(PATCH_SHAPE[1], 1).repeat(PATCH_SHAPE[2], 2),
                token_map(bag.coords[here], evidence[here], volume.grid),
                volume.affine,
            )
        )
    return panels


def _surest(head_row: dict[str, Any], number: int, place: Place) -> list[tuple[str, int]]:
    """Return (study, column of the label) of test studies with a finding, surest first, a label at most once."""
    table = pq.read_table(place.root / head_row["outputs"][0])
    found = []
    for row in table.to_pylist():
        if row["split"] == Split.TEST:
            found += [
                (logit, row["study_id"], column)
                for column, (logit, target) in enumerate(zip(row["logits"], row["targets"], strict=True))
                if target == 1
            ]
    chosen: dict[int, tuple[str, int]] = {}
    used: set[str] = set()
    for _, study_id, column in sorted(found, reverse=True):
        if column not in chosen and study_id not in used:
            chosen[column] = (study_id, column)
            used.add(study_id)
    return list(chosen.values())[:number]


def _methods(provenance: dict[str, Any], params: AnalyzeParams) -> str:
    sentences = [facts["methods"] for facts in provenance.values()]
    return " ".join([*sentences, METHODS.format(**dict(params))])


def _provenance(
    tables: dict[str, list[dict[str, Any]]],
    provenance: dict[str, Any],
    heads: dict[tuple[str, str], dict[str, Any]],
    params: AnalyzeParams,
) -> dict[str, dict[str, str]]:
    """Return what made the numbers, without run ids and versions: those are in provenance.json.

    A manifest is named by its content here, so that the same data give the same results.json
    however many commits they came in.
    """
    head = next(iter(heads.values()))
    environment = list(provenance.values())[-1]["environment"]
    return {
        "Manifests (rows and digest of their content)": {
            name: f"{len(rows):,}, {_rows_digest(rows)[:16]}" for name, rows in tables.items()
        },
        "Labels": {"engine": head["label_engine"], "version": head["label_engine_version"]},
        "Statistics": {
            "replicates": f"{params.replicates:,}",
            "interval": f"percentile, {params.level:.0%}",
            "resampling unit": "patient",
            "seed": str(params.seed),
        },
        "Code": {
            "package": environment["package_version"],
            "git": environment["git"] or "no repository",
            "python": environment["python"],
            **environment["libraries"],
        },
    }


def _rows_digest(rows: list[dict[str, Any]]) -> str:
    return fingerprint(*sorted(f"{row['item_id']} {row['status']} {row['sha256']}" for row in rows))


STAGE = Stage(
    name="analyze",
    reads=("export", "convert", "preprocess", "shard", "label", "pretrain", "probe"),
    semantic_version=SEMANTIC_VERSION,
    methods=METHODS,
    plan=plan,
    execute=execute,
    in_workers=False,
)
