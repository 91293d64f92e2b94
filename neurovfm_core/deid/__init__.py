"""De-identification: pseudonyms, the DICOM allow-list, reports, and the export of both."""

from neurovfm_core.deid.export import ExportedSeries, ExportParams, export_series, folder_sha256
from neurovfm_core.deid.profile import Profile, age_band
from neurovfm_core.deid.pseudonyms import Pseudonymizer, Vault
from neurovfm_core.deid.reports import ExportedReport, Identifiers, export_report, scrub_report

__all__ = [
    "ExportParams",
    "ExportedReport",
    "ExportedSeries",
    "Identifiers",
    "Profile",
    "Pseudonymizer",
    "Vault",
    "age_band",
    "export_report",
    "export_series",
    "folder_sha256",
    "scrub_report",
]
