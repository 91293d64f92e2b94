"""The four kinds of error, named by what the pipeline does next."""

from enum import StrEnum


class Reason(StrEnum):
    """Why an item was excluded or failed: a closed list, so that it can be counted."""

    # export
    NOT_DICOM = "not_dicom"
    UNREADABLE = "unreadable"
    NOT_IN_COHORT = "not_in_cohort"
    NOT_CT_OR_MR = "not_ct_or_mr"
    NOT_AN_IMAGE = "not_an_image"
    BURNED_IN_ANNOTATION = "burned_in_annotation"
    SECONDARY_CAPTURE = "secondary_capture"
    UNMATCHED_REPORT = "unmatched_report"
    EMPTY_REPORT = "empty_report"
    # convert
    LOCALIZER = "localizer"
    DERIVED = "derived"
    NOT_GREYSCALE = "not_greyscale"
    TOO_FEW_SLICES = "too_few_slices"
    MIXED_ORIENTATIONS = "mixed_orientations"
    MISSING_GEOMETRY = "missing_geometry"
    UNEVEN_SPACING = "uneven_spacing"
    GANTRY_TILT = "gantry_tilt"
    DUPLICATE_SLICES = "duplicate_slices"
    TRUNCATED = "truncated"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    NOT_A_VOLUME = "not_a_volume"
    # preprocess and shard
    EMPTY_FOREGROUND = "empty_foreground"
    TOO_SMALL = "too_small"
    IMPLAUSIBLE_GEOMETRY = "implausible_geometry"
    IMPLAUSIBLE_INTENSITY = "implausible_intensity"
    # label, probe
    NO_KNOWN_MODALITY = "no_known_modality"
    TOO_FEW_LABELS = "too_few_labels"
    # any stage
    CHECKSUM = "checksum"
    OUT_OF_MEMORY = "out_of_memory"
    CRASH = "crash"
    TIMEOUT = "timeout"
    DISK_FULL = "disk_full"
    SOURCE_UNAVAILABLE = "source_unavailable"
    UNEXPECTED = "unexpected"
    SUPERSEDED = "superseded"
    UPSTREAM_GONE = "upstream_gone"


class PipelineError(Exception):
    """Base of the four. Carries what happened, where, and what to try.

    Parameters
    ----------
    what
        One sentence; pseudonyms only, never an identifier or report text.
    where
        A file inside the workspace, a settings line, or an item id.
    hint
        What the user can do about it.
    """

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what, where, hint)
        self.what, self.where, self.hint = what, where, hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"where: {self.where}")
        if self.hint:
            lines.append(f"try: {self.hint}")
        return "\n".join(lines)


class UsageError(PipelineError):
    """The user asked for something that cannot be done. Nothing starts."""


class Excluded(PipelineError):
    """A rule says this item is not for us. It becomes an `excluded` row; the run goes on."""

    def __init__(self, reason: Reason, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.args = (reason, what, where, hint)
        self.reason = reason

    def __reduce__(self):  # keyword arguments do not survive pickling between processes by themselves
        return (_excluded, (self.reason, self.what, self.where, self.hint))


class Transient(PipelineError):
    """May work a moment later (network, busy disk). Tried again, then a `failed` row."""

    def __init__(self, reason: Reason, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what, where=where, hint=hint)
        self.reason = reason


class IntegrityError(PipelineError):
    """A checksum or a count disagrees with its record. The evidence is kept."""


def _excluded(reason: Reason, what: str, where: str, hint: str) -> Excluded:
    return Excluded(reason, what, where=where, hint=hint)
