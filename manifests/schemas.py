"""The columns of every manifest: one table per stage, one row per item.

Each table is `COMMON` and then the stage's own columns. Under ``b"doc"`` the
schema's metadata has the grain of the table, and that of each field its
description; the reference page is made from them.
"""

import pyarrow as pa

STATUSES = ("ok", "excluded", "failed")
RETIRED_REASONS = ("superseded", "upstream_gone")
"""Reasons of rows that say "this item is no longer there". The current view leaves them out."""

MAX_DETAIL_CHARACTERS = 500


def _field(name: str, dtype: pa.DataType, doc: str, *, required: bool = False) -> pa.Field:
    return pa.field(name, dtype, nullable=not required, metadata={b"doc": doc.encode()})


TEXT, I32, I64, F64 = pa.string(), pa.int32(), pa.int64(), pa.float64()
TEXTS, I32S, F64S = pa.list_(TEXT), pa.list_(I32), pa.list_(F64)

COMMON = pa.schema(
    [
        _field("item_id", TEXT, "pseudonym of the item this row is about", required=True),
        _field(
            "source_id",
            TEXT,
            "unit of work the row came from; the item itself unless one source yields several",
            required=True,
        ),
        _field("input_fingerprint", TEXT, "sha256 of what the source looked like when read", required=True),
        _field("params_fingerprint", TEXT, "sha256 of the settings that were used", required=True),
        _field("semantic_version", I32, "meaning of the stage's output when it was made", required=True),
        _field("status", TEXT, "ok, excluded (a rule) or failed (should have worked)", required=True),
        _field("reason", TEXT, "closed code that says why, empty if ok"),
        _field("detail", TEXT, "one sentence for a person, at most 500 characters, pseudonyms only"),
        _field("outputs", TEXTS, "files or folders, relative to the workspace, with forward slashes"),
        _field("bytes", I64, "size of the outputs"),
        _field("sha256", TEXT, "digest of the outputs, taken while they were written"),
        _field("attempts", I32, "how often the item was tried in this run"),
        _field("run_id", TEXT, "the run that wrote the row", required=True),
        _field("commit_seq", I64, "version that brought the row; an item's highest counts", required=True),
        _field("finished_at", pa.timestamp("us", "UTC"), "when the item was done", required=True),
        _field("seconds", F64, "time the item took"),
    ]
)


def _table(grain: str, *columns: pa.Field) -> pa.Schema:
    return pa.schema([*COMMON, *columns], metadata={b"doc": grain.encode()})


_PATIENT = _field("patient_id", TEXT, "pseudonym of the patient")
_STUDY = _field("study_id", TEXT, "pseudonym of the study (one exam)")
_SERIES = _field("series_id", TEXT, "pseudonym of the series (one acquisition)")
_MODALITY = _field("modality", TEXT, "CT or MR")
_TIME_BUCKET = _field("time_bucket", TEXT, "true year of acquisition, empty if unknown; decides the split")
_SEQUENCE_CLASS = _field("sequence_class", TEXT, "T1, T2, FLAIR, DWI, ADC, SWI, CT ... or unknown")
_SPACING = _field("spacing_mm", F64S, "voxel size along the three axes of the array, mm")
_NUM_TOKENS = _field("num_tokens", I32, "tokens that hold some foreground")
_ENCODER_SHA256 = _field("encoder_sha256", TEXT, "digest of the encoder's weights")

_EXPORT = _table(
    "one row per series or report",
    _field("kind", TEXT, "series or report"),
    _PATIENT,
    _STUDY,
    _SERIES,
    _MODALITY,
    _field("body_part", TEXT, "DICOM BodyPartExamined"),
    _field("manufacturer", TEXT, "DICOM Manufacturer"),
    _field("model", TEXT, "DICOM ManufacturerModelName"),
    _field("field_strength_t", F64, "magnetic field, tesla; null for CT"),
    _field("sex", TEXT, "DICOM PatientSex"),
    _field("age_band", TEXT, "ten years wide, such as 40-49; 89+ above"),
    _field("description", TEXT, "series description without identifiers"),
    _TIME_BUCKET,
    _field("study_date_shifted", TEXT, "YYYYMMDD, moved by the patient's secret number of days"),
    _field("instances_expected", I32, "instances the source announced"),
    _field("instances_received", I32, "instances that arrived and were written"),
    _field("instances_dropped", I32, "instances left out by a rule"),
)

_CONVERT = _table(
    "one row per volume; a rejected volume has its row too",
    _PATIENT,
    _STUDY,
    _SERIES,
    _MODALITY,
    _TIME_BUCKET,
    _SEQUENCE_CLASS,
    _field("shape", I32S, "voxels along i, j, k of the NIfTI array"),
    _SPACING,
    _field("slice_axis", I32, "axis of the NIfTI array along which slices were stacked"),
    _field("flags", TEXTS, "quality remarks that do not exclude"),
)

_PREPROCESS = _table(
    "one row per volume",
    _PATIENT,
    _STUDY,
    _SERIES,
    _MODALITY,
    _TIME_BUCKET,
    _SEQUENCE_CLASS,
    _field("shape", I32S, "voxels along D, H, W; D is the slice axis"),
    _SPACING,
    _field("view", I32, "acquisition axis of the volume"),
    _field("foreground_share", F64, "share of voxels that are patient, 0 to 1"),
    _field("foreground_ml", F64, "volume of the patient in the image, ml"),
    _field("clipped_share", F64, "share of foreground voxels at the ends of the intensity range, 0 to 1"),
    _NUM_TOKENS,
)

_SHARD = _table(
    "one row per volume",
    _PATIENT,
    _STUDY,
    _SERIES,
    _MODALITY,
    _TIME_BUCKET,
    _SEQUENCE_CLASS,
    _field("split", TEXT, "train, val or test; by patient and time, for ever"),
    _field("shard", TEXT, "name of the shard that holds the volume"),
    _field("row", I32, "position of the volume in its shard"),
    _NUM_TOKENS,
    _field("grid", I32S, "tokens along d, h, w"),
)

_LABEL = _table(
    "one row per study that has a report",
    _PATIENT,
    _STUDY,
    _MODALITY,
    _TIME_BUCKET,
    _field("engine", TEXT, "labeler that read the report"),
    _field("engine_version", TEXT, "version of the labeler's rules or model"),
    _field("label_names", TEXTS, "diagnoses in the order of the ontology"),
    _field("label_states", TEXTS, "state of each diagnosis: present, uncertain, absent, ..."),
    _field("num_present", I32, "diagnoses that are present"),
    _field("evidence", TEXT, "JSON: for each mention its label, state and offsets; no report text"),
)

_PRETRAIN = _table(
    "one row per training run",
    _field("run_name", TEXT, "name of the training run and of its folder"),
    _field("steps", I32, "optimizer steps taken"),
    _field("volumes_seen", I64, "volumes shown to the network, with repetition"),
    _field("final_loss", F64, "training loss at the last step"),
    _field("val_loss", F64, "loss on the validation split at the end"),
    _field("feature_std", F64, "mean standard deviation of features; near 0 is collapse"),
    _field("effective_rank", F64, "entropy rank of the features; near 1 is collapse"),
    _field("num_parameters", I64, "parameters of the encoder"),
    _field("width", I32, "encoder width"),
    _field("depth", I32, "encoder blocks"),
    _ENCODER_SHA256,
    _field("device", TEXT, "what it was trained on"),
    _field("num_train_volumes", I32, "volumes in the training split"),
    _field("num_train_patients", I32, "patients in the training split"),
)

_PROBE = _table(
    "one row per probe: one modality on one encoder",
    _MODALITY,
    _field("encoder_kind", TEXT, "pretrained, random or histogram"),
    _ENCODER_SHA256,
    _field("num_train", I32, "studies the probe was fitted on"),
    _field("num_val", I32, "studies that chose the epoch and thresholds"),
    _field("num_test", I32, "studies that nothing was chosen on"),
    _field("label_names", TEXTS, "diagnoses the probe predicts"),
    _field("best_epoch", I32, "epoch with the best validation score, from 0"),
    _field("val_macro_auroc", F64, "mean AUROC over diagnoses, validation"),
    _field("label_engine", TEXT, "labeler whose labels were learned"),
    _field("label_engine_version", TEXT, "version of that labeler"),
)

_ANALYZE = _table(
    "one row per analysis report",
    _field("run_name", TEXT, "name of the analysis and of its folder"),
    _field("report", TEXT, "path of the HTML report, relative to the workspace"),
    _field("num_figures", I32, "figures in the report"),
    _field("macro_auroc_json", TEXT, "JSON: mean AUROC by encoder and modality"),
)

STAGE_SCHEMAS: dict[str, pa.Schema] = {
    "export": _EXPORT,
    "convert": _CONVERT,
    "preprocess": _PREPROCESS,
    "shard": _SHARD,
    "label": _LABEL,
    "pretrain": _PRETRAIN,
    "probe": _PROBE,
    "analyze": _ANALYZE,
}
"""Stages in the order of the chain."""

SCHEMA_VERSION: dict[str, int] = dict.fromkeys(STAGE_SCHEMAS, 1)
"""Raised when a column changes its meaning. New columns alone need no new number."""


def schema_version(stage: str) -> int:
    return SCHEMA_VERSION[stage]


def grain(stage: str) -> str:
    """Return what one row of a stage's table is about: "one row per ..."."""
    return STAGE_SCHEMAS[stage].metadata[b"doc"].decode()
