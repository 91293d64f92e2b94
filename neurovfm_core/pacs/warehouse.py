"""The site's warehouse: which studies belong to the cohort, and their reports.

One read-only view of two tables, ``studies`` and ``reports``, through SQLAlchemy
Core, so SQLite, PostgreSQL and SQL Server answer alike. The rows hold
identifiers and never leave the export process.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import sqlalchemy
from sqlalchemy import Column, Connection, MetaData, Select, String, Table, Text, select

from neurovfm_core.errors import Reason, Transient, UsageError
from neurovfm_core.params import Params
from neurovfm_core.vocabulary import Modality

METADATA = MetaData()
STUDIES = Table(
    "studies",
    METADATA,
    Column("study_uid", String, primary_key=True),
    Column("accession", String),
    Column("patient_id", String),
    Column("patient_name", String),
    Column("birth_date", String),  # YYYY-MM-DD
    Column("sex", String),
    Column("study_date", String),  # YYYY-MM-DD
    Column("modality", String),
    Column("body_part", String),
    Column("description", String),
)
REPORTS = Table(
    "reports",
    METADATA,
    Column("accession", String),
    Column("study_uid", String),
    Column("report_date", String),
    Column("status", String),  # final, addendum
    Column("text", Text),
)
UIDS_PER_QUERY = 500  # SQLite and SQL Server limit the number of bound values


class CohortParams(Params):
    """Which studies are wanted."""

    date_from: date | None = None
    """First study date that belongs to the cohort; none: no lower end."""
    date_until: date | None = None
    """Last study date that belongs to the cohort; none: no upper end."""
    body_parts: tuple[str, ...] = ("HEAD", "BRAIN", "ORBIT", "FACE", "NECK")
    """Body parts, in the warehouse's words. A study without one is judged by its description."""
    modalities: tuple[Modality, ...] = (Modality.CT, Modality.MR)
    """DICOM modalities."""


@dataclass(frozen=True, slots=True)
class CohortStudy:
    """One study of the cohort. Holds identifiers."""

    study_uid: str = field(repr=False)
    accession: str = field(repr=False)
    patient_id: str = field(repr=False)
    study_date: date | None = field(repr=False)
    modality: str
    body_part: str
    sex: str
    age_years: int | None  # on the study date; None where a date is missing


@dataclass(frozen=True, slots=True)
class ReportRecord:
    """One report row of the archive. Holds identifiers and text."""

    accession: str = field(repr=False)
    study_uid: str = field(repr=False)
    patient_id: str = field(repr=False)  # "" for a report whose study the warehouse does not know
    patient_name: str = field(repr=False)
    modality: str
    study_date: str = field(repr=False)
    text: str = field(repr=False)
    status: str = "final"  # final, addendum


class Warehouse:
    """Read-only access to the warehouse.

    Parameters
    ----------
    url
        SQLAlchemy URL, for example ``sqlite:////data/warehouse.sqlite``.

    Raises
    ------
    UsageError
        If the URL makes no sense, or an SQLite file does not exist.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = sqlalchemy.make_url(url)
            # SQLite would make a missing file and answer with an empty cohort.
            if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
                raise UsageError("the warehouse file does not exist", hint="sqlite:///PATH, check the path")
            self.engine = sqlalchemy.create_engine(parsed)
        except (sqlalchemy.exc.ArgumentError, ModuleNotFoundError):
            # The URL may hold a password, so the message does not repeat it.
            raise UsageError(
                "the warehouse URL is not understood, or its driver is not installed",
                hint="for example sqlite:////data/warehouse.sqlite or postgresql+psycopg://...",
            ) from None

    def cohort(self, params: CohortParams) -> dict[str, CohortStudy]:
        """Return the studies that meet the criteria, by StudyInstanceUID and in its order.

        With a date criterion, studies without a valid date are not in the cohort.
        """
        parts = {part.upper() for part in params.body_parts}
        in_text = re.compile(r"\b(" + "|".join(map(re.escape, sorted(parts))) + r")S?\b", re.IGNORECASE)
        studies = {}
        with self._connection() as connection:
            for row in connection.execute(_cohort_query(params)):
                part = (row.body_part or "").strip().upper()
                if part not in parts and (part or not in_text.search(row.description or "")):
                    continue
                study_date = _date(row.study_date)
                if study_date is None and (params.date_from or params.date_until):
                    continue
                studies[row.study_uid] = CohortStudy(
                    study_uid=row.study_uid,
                    accession=row.accession or "",
                    patient_id=row.patient_id or "",
                    study_date=study_date,
                    modality=row.modality,
                    body_part=part,
                    sex=(row.sex or "").strip().upper(),
                    age_years=_age(_date(row.birth_date), study_date),
                )
        return studies

    def reports(self, study_uids: Iterable[str] | None = None) -> Iterator[ReportRecord]:
        """Yield report rows by study, the final report before its addenda.

        Parameters
        ----------
        study_uids
            Only the reports of these studies; None for all.
        """
        query = (
            select(
                REPORTS,
                STUDIES.c.patient_id,
                STUDIES.c.patient_name,
                STUDIES.c.modality,
                STUDIES.c.study_date,
            )
            .join_from(REPORTS, STUDIES, REPORTS.c.study_uid == STUDIES.c.study_uid, isouter=True)
            .order_by(
                REPORTS.c.study_uid,
                REPORTS.c.accession,
                sqlalchemy.case((REPORTS.c.status == "addendum", 1), else_=0),
                REPORTS.c.report_date,
                REPORTS.c.text,
            )
        )
        with self._connection() as connection:
            for part in _parts(query, study_uids):
                for row in connection.execute(part):
                    yield ReportRecord(
                        accession=row.accession or "",
                        study_uid=row.study_uid or "",
                        patient_id=row.patient_id or "",
                        patient_name=row.patient_name or "",
                        modality=row.modality or "",
                        study_date=row.study_date or "",
                        text=row.text or "",
                        status=row.status or "final",
                    )

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        try:
            with self.engine.connect() as connection:
                missing = [t for t in ("studies", "reports") if not sqlalchemy.inspect(connection).has_table(t)]
                if missing:
                    raise UsageError(
                        f"the warehouse has no table {missing[0]!r}",
                        hint="a view of that name with the documented columns is enough",
                    )
                yield connection
        except sqlalchemy.exc.OperationalError:
            # The driver's text repeats the query with its values, so it is not passed on.
            raise Transient(Reason.SOURCE_UNAVAILABLE, "the warehouse did not answer") from None
        except sqlalchemy.exc.DatabaseError as error:
            raise UsageError(
                f"the warehouse refused the query ({type(error).__name__})",
                hint="are the columns of its two tables as documented?",
            ) from None


def _cohort_query(params: CohortParams) -> Select:
    query = select(STUDIES).where(STUDIES.c.modality.in_([str(modality) for modality in params.modalities]))
    if params.date_from:
        query = query.where(STUDIES.c.study_date >= params.date_from.isoformat())
    if params.date_until:
        query = query.where(STUDIES.c.study_date <= params.date_until.isoformat())
    return query.order_by(STUDIES.c.study_uid)


def _parts(query: Select, study_uids: Iterable[str] | None) -> Iterator[Select]:
    if study_uids is None:
        yield query
        return
    uids = sorted(set(study_uids))
    for start in range(0, len(uids), UIDS_PER_QUERY):
        chunk = uids[start : start + UIDS_PER_QUERY]
        yield query.where(REPORTS.c.study_uid.in_(chunk))


def _date(text: str | None) -> date | None:
    try:
        return date.fromisoformat((text or "").strip()[:10])
    except ValueError:
        return None


def _age(born: date | None, on: date | None) -> int | None:
    if born is None or on is None or on < born:
        return None
    return on.year - born.year - ((on.month, on.day) < (born.month, born.day))
