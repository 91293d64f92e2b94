"""The clinical data warehouse: which studies exist, and what was reported of them."""

import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

from neurovfm_core.files import written_whole

_SCHEMA = """
CREATE TABLE studies (
    accession TEXT, study_uid TEXT PRIMARY KEY, patient_id TEXT, patient_name TEXT, birth_date TEXT, sex TEXT,
    study_date TEXT, modality TEXT, body_part TEXT, description TEXT);
CREATE TABLE reports (accession TEXT, study_uid TEXT, report_date TEXT, status TEXT, text TEXT);
CREATE INDEX reports_by_study ON reports (study_uid);
"""


def write_warehouse(path: Path, studies: Iterable[Mapping[str, str]], reports: Iterable[Mapping[str, str]]) -> None:
    """Write both tables to an SQLite file, replacing the one that is there.

    The same rows in the same order give the same bytes.

    Parameters
    ----------
    studies
        Rows with the columns of table `studies`; dates as YYYY-MM-DD.
    reports
        Rows with the columns of table `reports`; `status` is "final" or "addendum".
    """
    with written_whole(path) as partial:
        partial.unlink(missing_ok=True)  # of a process that was killed and had the same id
        connection = sqlite3.connect(partial)
        try:
            connection.executescript(_SCHEMA)
            connection.executemany(
                "INSERT INTO studies VALUES (:accession, :study_uid, :patient_id, :patient_name, :birth_date,"
                " :sex, :study_date, :modality, :body_part, :description)",
                studies,
            )
            connection.executemany(
                "INSERT INTO reports VALUES (:accession, :study_uid, :report_date, :status, :text)", reports
            )
            connection.commit()
        finally:
            connection.close()
