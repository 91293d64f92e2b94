"""Export: studies and reports of the cohort, de-identified before anything is kept.

Reads     the image source and the warehouse; no manifest
Writes    one row per series, per report, and per file that belongs to no series
Excludes  not_dicom, unreadable, not_in_cohort, not_ct_or_mr, not_an_image, secondary_capture,
          burned_in_annotation, empty_report, unmatched_report
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from neurovfm_core.deid import Pseudonymizer, Vault, export_report, export_series
from neurovfm_core.deid.export import ExportParams
from neurovfm_core.errors import Excluded
from neurovfm_core.pacs.source import SeriesListing, Source, StrayFile, open_source
from neurovfm_core.pacs.warehouse import CohortStudy, ReportRecord, Warehouse
from neurovfm_core.params import fingerprint
from tasks.stage import Candidates, Place, Stage, Unit, Upstream
from tasks.workspace import REPORTS_FOLDER, Workspace

SEMANTIC_VERSION = 1  # raise it when the same input and settings would give other bytes
METHODS = (
    "Studies were selected from the radiology warehouse by acquisition date, body part and modality, and "
    "de-identified on receipt by an attribute allow-list following DICOM PS3.15 Annex E with keyed pseudonyms "
    "and one random date shift per patient."
)


@dataclass(frozen=True)
class _Images:
    """Identifiers inside: goes to a worker, never to a file."""

    listing: SeriesListing
    cohort_study: CohortStudy | None
    has_cohort: bool
    source: str
    vault: Path


@dataclass(frozen=True)
class _Report:
    records: tuple[ReportRecord, ...]
    vault: Path


def plan(workspace: Workspace, upstream: Upstream, params: ExportParams) -> Candidates:
    """List every series, stray file and report; what a rule leaves out becomes an excluded row."""
    settings = workspace.site.source
    pseudonyms = Vault.open(workspace.vault)
    warehouse = Warehouse(settings.warehouse) if settings.warehouse else None
    cohort = warehouse.cohort(params.cohort) if warehouse else {}
    rows: list[tuple[str, str, str]] = []
    payloads: dict[str, Any] = {}
    for entry in open_source(settings.url).listing():
        if isinstance(entry, StrayFile):
            item_id = "file_" + pseudonyms.instance(str(entry.path)).rpartition("_")[2]
            print_of_entry = fingerprint(entry.reason.value, entry.path.stat().st_size)
            payloads[item_id] = entry
        else:
            item_id = pseudonyms.series(entry.series_uid)
            study = cohort.get(entry.study_uid)
            chosen = "" if warehouse is None else str(study is not None)
            print_of_entry = fingerprint(entry.fingerprint, pseudonyms.key_id, chosen)
            payloads[item_id] = _Images(entry, study, warehouse is not None, settings.url, workspace.vault)
        rows.append((item_id, print_of_entry, "report" if isinstance(entry, StrayFile) else "series"))
    if warehouse:
        records = sorted(warehouse.reports(list(cohort)), key=lambda r: r.study_uid)
        for uid, of_study in groupby(records, key=lambda r: r.study_uid):
            item_id = "rep_" + pseudonyms.study(uid).partition("_")[2]
            texts = tuple(of_study)
            payloads[item_id] = _Report(texts, workspace.vault)
            rows.append((item_id, fingerprint(pseudonyms.key_id, *(r.text for r in texts)), "report"))
    return Candidates(_table(rows), payloads)


def execute(unit: Unit, params: ExportParams, place: Place) -> list[dict[str, Any]]:
    """Export one series or report."""
    work = unit.payload
    if isinstance(work, StrayFile):
        raise Excluded(work.reason, work.detail)
    pseudonyms = _pseudonyms(work.vault)
    if isinstance(work, _Report):
        folder = place.root / REPORTS_FOLDER / place.folder.name
        report = export_report(work.records, pseudonyms, folder)
        file = folder / f"{report.study_id}.txt"
        return [{**asdict(report), "kind": "report", "outputs": [place.relative(file)]}]
    if not work.has_cohort:
        params = params.model_copy(update={"require_warehouse": False})
    exported = export_series(work.listing, _source(work.source), pseudonyms, place.folder, params, work.cohort_study)
    folder = place.folder / exported.study_id / exported.item_id
    return [
        {
            **asdict(exported),
            "kind": "series",
            "series_id": exported.item_id,
            "outputs": [place.relative(folder)],
        }
    ]


@lru_cache(maxsize=4)
def _pseudonyms(vault: Path) -> Pseudonymizer:
    return Vault.open(vault)


@lru_cache(maxsize=4)
def _source(url: str) -> Source:
    return open_source(url)


def _table(rows: list[tuple[str, str, str]]) -> pa.Table:
    names = ("item_id", "input_fingerprint", "kind")
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)})


STAGE = Stage(
    name="export",
    reads=(),
    semantic_version=SEMANTIC_VERSION,
    methods=METHODS,
    plan=plan,
    execute=execute,
    carries=("kind",),
    retires=False,
)
