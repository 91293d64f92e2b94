"""Build the synthetic hospital on disk: a PACS dump, a warehouse, and the truth about both.

pacs/<patient>/<date_modality>/<series>/...   DICOM and what else lies around in a PACS dump
warehouse.sqlite                              tables `studies` and `reports`
truth/truth.jsonl                             one head study per line, in order of its index
truth/identifiers.json                        kind -> every text that must never leave
truth/masks/<series uid>.npz                  label -> (slices, rows, columns) bool, with its geometry
truth/studies/*.json                          one record per study; it exists once the study is whole
"""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from neurovfm_core.files import written_whole
from neurovfm_core.hospital.acquisition import Acquisition, acquire, ct_protocols, mr_protocols
from neurovfm_core.hospital.anatomy import build_head
from neurovfm_core.hospital.dicom_writer import SeriesRecord, StudyWriter
from neurovfm_core.hospital.findings import truth_labels
from neurovfm_core.hospital.junk import DEFECTS, add_junk, chosen_junk
from neurovfm_core.hospital.outside import OutsideStudy, outside_studies, phantom
from neurovfm_core.hospital.patients import (
    HospitalParams,
    Identifiers,
    Visit,
    described,
    identifiers,
    require_same_hospital,
    visits,
)
from neurovfm_core.hospital.reports import write_report
from neurovfm_core.hospital.warehouse import write_warehouse
from neurovfm_core.params import canonical_json
from neurovfm_core.randomness import rng_for
from neurovfm_core.vocabulary import Modality

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HospitalSummary:
    """What a hospital holds, and what this call added. Head studies only, but for files and bytes."""

    folder: Path
    num_patients: int
    num_studies: int
    num_series: int
    num_files: int
    size_bytes: int
    num_written: int
    elapsed_s: float


def build_hospital(
    folder: Path,
    params: HospitalParams,
    *,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> HospitalSummary:
    """Write what is missing of a hospital.

    Study k depends on the seed and k alone: with a larger `num_studies` an existing
    hospital gains studies and keeps the bytes of those it has. Any number of workers
    gives the same bytes. A study appears in `pacs` whole or not at all; its files are
    not fsynced, as they can be built again.

    Parameters
    ----------
    on_progress
        Called with (studies written, studies to write) after each study.

    Raises
    ------
    UsageError
        If the folder holds a hospital built with other settings.
    """
    started = time.perf_counter()
    _remember_settings(folder / "truth" / "hospital.json", params)
    jobs: list[Visit | OutsideStudy] = [*outside_studies(params), *visits(params)]
    missing = [job for job in jobs if not _is_whole(folder, job)]
    for done, _ in enumerate(_written(folder, params, missing, workers), 1):
        if on_progress:
            on_progress(done, len(missing))
    shutil.rmtree(folder / ".building", ignore_errors=True)
    records = [json.loads(path.read_text()) for path in sorted((folder / "truth" / "studies").glob("*.json"))]
    if missing or not (folder / "warehouse.sqlite").exists():
        _write_tables(folder, records)
    heads = [record["truth"] for record in records if record["truth"]]
    summary = HospitalSummary(
        folder=folder,
        num_patients=len({truth["patient_id"] for truth in heads}),
        num_studies=len(heads),
        num_series=sum(len(truth["series"]) for truth in heads),
        num_files=sum(record["num_files"] for record in records),
        size_bytes=sum(record["size_bytes"] for record in records),
        num_written=len(missing),
        elapsed_s=time.perf_counter() - started,
    )
    logger.info("hospital built studies=%d written=%d", summary.num_studies, summary.num_written)
    return summary


def _remember_settings(path: Path, params: HospitalParams) -> None:
    if path.exists():
        require_same_hospital(json.loads(path.read_text()), params)
    else:
        _write_text(path, canonical_json(described(params)) + "\n")


def _written(folder: Path, params: HospitalParams, jobs: list[Visit | OutsideStudy], workers: int) -> Iterator[None]:
    """Write the studies, yielding after each."""
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            _write_study(folder, params, job)
            yield
        return
    # Spawned, not forked: the caller may hold threads and locks.
    with ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn")))
        futures: list[Future[None]] = [pool.submit(_write_study, folder, params, job) for job in jobs]
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        for future in as_completed(futures):
            future.result()
            yield


def _is_whole(folder: Path, job: Visit | OutsideStudy) -> bool:
    place = _study_folder(folder, job)
    return _record_path(folder, job).exists() and (place is None or place.is_dir())


def _record_path(folder: Path, job: Visit | OutsideStudy) -> Path:
    visit = job if isinstance(job, Visit) else job.visit
    return folder / "truth" / "studies" / f"{visit.index:07d}.json"


def _study_folder(folder: Path, job: Visit | OutsideStudy) -> Path | None:
    if isinstance(job, OutsideStudy) and not job.in_pacs:
        return None
    visit = job if isinstance(job, Visit) else job.visit
    return folder / "pacs" / identifiers(visit).peek("folder_name") / f"{visit.study_date:%Y%m%d}_{visit.modality}"


def _write_study(folder: Path, params: HospitalParams, job: Visit | OutsideStudy) -> None:
    """Write one study: its files under a hidden name first, then into place, its record last."""
    visit = job if isinstance(job, Visit) else job.visit
    place = _study_folder(folder, job)
    ids = identifiers(visit)
    building = folder / ".building" / f"{visit.index:07d}"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    if isinstance(job, Visit):
        record = _head_study(folder, params, visit, ids, building)
    else:
        record = _outside_study(params, job, ids, building)
    files = [path for path in building.rglob("*") if path.is_file()]
    record["num_files"], record["size_bytes"] = len(files), sum(path.stat().st_size for path in files)
    if place is None:
        shutil.rmtree(building)
    else:
        ids["folder_name"]  # the path below plants it
        shutil.rmtree(place, ignore_errors=True)  # of a call that was killed before its record
        place.parent.mkdir(parents=True, exist_ok=True)
        building.replace(place)
    record["identifiers"] = ids.planted
    _write_text(_record_path(folder, job), canonical_json(record) + "\n")


def _head_study(folder: Path, params: HospitalParams, visit: Visit, ids: Identifiers, building: Path) -> dict[str, Any]:
    seed, index = params.seed, visit.index
    modality = visit.modality
    # The head is the patient's, not the visit's: follow-ups show the same anatomy.
    head = build_head(
        rng_for(seed, "head", visit.patient.index),
        age_years=visit.age_years,
        sex=visit.patient.sex,
        findings=visit.findings,
        modality=modality.value,
    )
    draw = mr_protocols if modality is Modality.MR else ct_protocols
    protocols = draw(rng_for(seed, "protocols", index), params.scale)
    junk_rng = rng_for(seed, "junk", index)
    junk = chosen_junk(junk_rng, index) if params.junk else frozenset()
    defect = next((kind for kind in DEFECTS if kind in junk and len(protocols) > 1), "")
    writer = StudyWriter(visit, ids, building)
    masks: dict[str, str] = {}
    first: Acquisition | None = None
    for at, protocol in enumerate(protocols):
        stack = acquire(head, protocol, rng_for(seed, "acquire", index, at))
        if first is None:
            first = stack
            if params.junk and "localizer" in junk:
                add_junk(writer, stack, frozenset({"localizer"}), junk_rng)
        series = writer.images(
            stack, protocol.sequence, protocol.view, defect=defect if at == len(protocols) - 1 else ""
        )
        if seen := {label: mask for label, mask in stack.masks.items() if mask.any()}:
            masks[series.series_uid] = f"truth/masks/{series.series_uid}.npz"
            _write_masks(folder / masks[series.series_uid], seen, stack)
    assert first is not None, "a study has at least one series"
    strays = add_junk(writer, first, junk - {"localizer"}, junk_rng)
    report = write_report(visit, ids, rng_for(seed, "report", index))
    truth = {
        "index": index,
        "study_uid": visit.study_uid,
        "patient_id": visit.patient.mrn,
        "accession": visit.accession,
        "modality": modality.value,
        "study_date": visit.study_date.isoformat(),
        "age_years": visit.age_years,
        "sex": visit.patient.sex,
        "findings": [asdict(finding) for finding in visit.findings],
        "labels": list(truth_labels(visit.findings, modality.value)),
        "states": {label: state.value for label, state in report.states.items()},
        "has_report": bool(report.text),
        "series": [_series_truth(series, masks) for series in writer.records],
        "strays": strays,
    }
    description = "MRI BRAIN W WO CONTRAST" if modality is Modality.MR else "CT HEAD WO CONTRAST"
    texts = {"final": report.text} | ({"addendum": report.addendum} if report.addendum else {})
    body_part = ("HEAD", "BRAIN")[index % 2]
    return {
        "truth": truth,
        "study": _study_row(visit, ids, body_part, description),
        "reports": [_report_row(ids, status, text) for status, text in texts.items()],
    }


def _outside_study(params: HospitalParams, job: OutsideStudy, ids: Identifiers, building: Path) -> dict[str, Any]:
    visit = job.visit
    if job.in_pacs:
        stack = phantom(visit.modality, rng_for(params.seed, "phantom", visit.index))
        writer = StudyWriter(visit, ids, building, job.body_part)
        sequence = "CT" if visit.modality is Modality.CT else "T2"
        writer.images(stack, sequence, "axial", role="outside", description=job.description)
    row = _study_row(visit, ids, job.body_part, job.description) if job.in_warehouse else None
    reports = [_report_row(ids, "final", job.report)] if job.in_warehouse else []
    return {"truth": None, "study": row, "reports": reports}


def _series_truth(series: SeriesRecord, masks: dict[str, str]) -> dict[str, Any]:
    return {**asdict(series), "masks": masks.get(series.series_uid, "")}


def _study_row(visit: Visit, ids: Identifiers, body_part: str, description: str) -> dict[str, str]:
    return {
        "accession": ids["accession_number"],
        "study_uid": ids["study_instance_uid"],
        "patient_id": ids["patient_id"],
        "patient_name": ids["patient_name"],
        "birth_date": ids["patient_birth_date_iso"],
        "sex": visit.patient.sex,
        "study_date": ids["study_date_iso"],
        "modality": visit.modality.value,
        "body_part": body_part,
        "description": description,
    }


def _report_row(ids: Identifiers, status: str, text: str) -> dict[str, str]:
    return {
        "accession": ids["accession_number"],
        "study_uid": ids["study_instance_uid"],
        "report_date": ids["study_date_iso"],
        "status": status,
        "text": text,
    }


def _write_masks(path: Path, masks: dict[str, Any], stack: Acquisition) -> None:
    arrays = {
        **masks,
        "image_positions": stack.image_positions,
        "image_orientation": np.array(stack.image_orientation),
        "pixel_spacing": np.array(stack.pixel_spacing),
    }
    with written_whole(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _write_tables(folder: Path, records: list[dict[str, Any]]) -> None:
    truths = [record["truth"] for record in records if record["truth"]]
    _write_text(folder / "truth" / "truth.jsonl", "".join(canonical_json(truth) + "\n" for truth in truths))
    planted: dict[str, set[str]] = {}
    for record in records:
        for kind, text in record["identifiers"].items():
            planted.setdefault(kind, set()).add(text)
    listed = {kind: sorted(texts) for kind, texts in sorted(planted.items())}
    _write_text(folder / "truth" / "identifiers.json", json.dumps(listed, indent=1, ensure_ascii=False) + "\n")
    studies = [record["study"] for record in records if record["study"]]
    reports = [report for record in records for report in record["reports"]]
    write_warehouse(folder / "warehouse.sqlite", studies, reports)


def _write_text(path: Path, text: str) -> None:
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")
