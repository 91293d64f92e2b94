"""Where images and reports come from: the picture archive and the report warehouse."""

from neurovfm_core.pacs.source import FolderSource, SeriesListing, Source, StrayFile, open_source
from neurovfm_core.pacs.warehouse import CohortParams, CohortStudy, ReportRecord, Warehouse

__all__ = [
    "CohortParams",
    "CohortStudy",
    "FolderSource",
    "ReportRecord",
    "SeriesListing",
    "Source",
    "StrayFile",
    "Warehouse",
    "open_source",
]
