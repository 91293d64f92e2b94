"""What `results.json` holds: the single source of every number on the page.

A count of None is a small cell that was suppressed; an estimate of None is undefined.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError

from neurovfm_core.errors import UsageError
from neurovfm_core.params import Params

SCHEMA_VERSION = 1

Count = Annotated[int, Field(ge=0)] | None

CHARACTERISTICS = ("sex", "age_band", "manufacturer", "field_strength")
"""Of a cohort row, in the order of the table; each maps a value to its number of studies."""


class FlowRow(Params):
    """What one stage did with its items."""

    stage: str
    unit: str
    """What the stage counts: series, volumes, reports, studies."""
    follows: bool = True
    """Whether it takes what the row above it kept; False where another source comes in."""
    ok: int
    excluded: dict[str, int] = Field(default_factory=dict)
    """Items by reason code."""
    failed: dict[str, int] = Field(default_factory=dict)
    """Items by reason code."""


class CohortRow(Params):
    """The studies of one split and modality."""

    split: str
    modality: str
    patients: Count
    studies: Count
    series: Count
    volumes: Count = 0
    sex: dict[str, Count] = Field(default_factory=dict)
    age_band: dict[str, Count] = Field(default_factory=dict)
    manufacturer: dict[str, Count] = Field(default_factory=dict)
    field_strength: dict[str, Count] = Field(default_factory=dict)


class LabelRow(Params):
    """How often the reports of one split say what of one label."""

    modality: str
    split: str
    label: str
    present: Count = 0
    uncertain: Count = 0
    absent: Count = 0
    historical: Count = 0
    not_mentioned: Count = 0


class EncoderRow(Params):
    """One of the compared sources of features, in the order of the figures."""

    key: str
    """As in the keys of the evaluation."""
    name: str
    """As readers see it."""
    description: str = ""
    digest: str = ""
    """sha256 of the weights, where there are any."""


class EstimateRow(Params):
    """`neurovfm_core.stats.bootstrap.Estimate`, NaN as None."""

    value: float | None
    low: float | None
    high: float | None
    num_undefined: int = 0
    bca_low: float | None = None
    bca_high: float | None = None
    delong_low: float | None = None
    delong_high: float | None = None


class DifferenceRow(Params):
    """`neurovfm_core.stats.bootstrap.Difference`, NaN as None."""

    encoder: str
    minus: str
    value: float | None
    low: float | None
    high: float | None
    p_value: float | None
    num_undefined: int = 0


class ClassRow(Params):
    """One label of an evaluation."""

    name: str
    num_positives: Count
    num_negatives: Count
    suppressed: bool
    flagged: bool
    auroc: dict[str, EstimateRow] = Field(default_factory=dict)
    differences: tuple[DifferenceRow, ...] = ()


class Evaluation(Params):
    """`BootstrapResult.to_dict()` of one modality's test studies."""

    replicates: int
    seed: int
    level: float
    unit: str
    interval: str
    min_positives: int
    flag_below: int
    num_studies: int
    num_units: int
    macro: dict[str, EstimateRow]
    macro_classes: int
    differences: tuple[DifferenceRow, ...] = ()
    classes: tuple[ClassRow, ...]
    labels_without_head: tuple[str, ...] = ()
    """Labels with too few training studies; nothing is claimed about them."""


class Results(Params):
    """Everything the page shows. An empty part leaves its section out."""

    schema_version: int = SCHEMA_VERSION
    title: str
    subtitle: str = ""
    data_notice: str = ""
    """One sentence on what the data are, e.g. that the hospital is synthetic."""
    suppress_below: Annotated[int, Field(ge=0)] = 5
    """Counts of people from 1 to one below this are not shown; 0 shows all (demonstration data only)."""
    totals: dict[str, int] = Field(default_factory=dict)
    """Headline numbers, e.g. patients, studies, series, volumes, tokens."""
    flow: tuple[FlowRow, ...] = ()
    cohort: tuple[CohortRow, ...] = ()
    labels: tuple[LabelRow, ...] = ()
    pretraining: tuple[dict[str, object], ...] = ()
    """The lines of the trainer's log."""
    encoders: tuple[EncoderRow, ...] = ()
    evaluation: dict[str, Evaluation] = Field(default_factory=dict)
    """By modality."""
    methods: str = ""
    provenance: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Heading to name to value: manifest versions, code, seeds, settings, packages."""

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(sorted(self.evaluation))


def checked(results: Mapping[str, object]) -> Results:
    """Return the results as a model with small cells suppressed.

    Raises
    ------
    UsageError
        Naming the first entry that does not fit.
    """
    try:
        model = Results.model_validate(results)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"results.json: {first['msg']}", where=".".join(str(part) for part in first["loc"])) from error
    return suppress_small_cells(model)


def suppress_small_cells(results: Results) -> Results:
    """Replace counts of people from 1 to `suppress_below` - 1 by None.

    Only the cells themselves: a total beside a single hidden cell still gives it away, so totals of a
    small cohort deserve a second look before they leave the hospital.
    """
    limit = results.suppress_below

    def hide(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: hide(inner) for key, inner in value.items()}
        return None if isinstance(value, int) and 0 < value < limit else value

    return results.model_copy(
        update={
            "cohort": tuple(CohortRow(**hide(row.model_dump())) for row in results.cohort),
            "labels": tuple(LabelRow(**hide(row.model_dump())) for row in results.labels),
            "evaluation": {
                modality: part.model_copy(
                    update={
                        "classes": tuple(
                            row.model_copy(
                                update={
                                    "num_positives": hide(row.num_positives),
                                    "num_negatives": hide(row.num_negatives),
                                }
                            )
                            for row in part.classes
                        )
                    }
                )
                for modality, part in results.evaluation.items()
            },
        }
    )


def cohort_rows(series: Iterable[Mapping[str, object]]) -> list[dict]:
    """Count a cohort by split and modality.

    Parameters
    ----------
    series
        One mapping per series: split, modality, patient_id, study_id, sex, age_band, manufacturer,
        field_strength_t (tesla, None for CT), and num_volumes.

    Returns
    -------
    list of dict
        `CohortRow` values. Characteristics count studies; a study is described by its first series.
    """
    groups: dict[tuple[str, str], list[Mapping[str, object]]] = {}
    for row in series:
        groups.setdefault((str(row["split"]), str(row["modality"])), []).append(row)
    order = {"train": 0, "val": 1, "test": 2}
    result = []
    for (split, modality), rows in sorted(groups.items(), key=lambda g: (g[0][1], order.get(g[0][0], 3))):
        studies: dict[object, Mapping[str, object]] = {}
        for row in rows:
            studies.setdefault(row["study_id"], row)
        counted: dict[str, dict[str, int]] = {name: {} for name in CHARACTERISTICS}
        for row in studies.values():
            tesla = row.get("field_strength_t")
            values = {
                "sex": row.get("sex"),
                "age_band": row.get("age_band"),
                "manufacturer": row.get("manufacturer"),
                "field_strength": f"{tesla:g} T" if isinstance(tesla, (int, float)) and tesla else None,
            }
            for name, value in values.items():
                if name == "field_strength" and modality == "CT":
                    continue
                key = str(value or "unknown")
                counted[name][key] = counted[name].get(key, 0) + 1
        result.append(
            {
                "split": split,
                "modality": modality,
                "patients": len({row["patient_id"] for row in rows}),
                "studies": len(studies),
                "series": len(rows),
                "volumes": sum(int(str(row.get("num_volumes") or 0)) for row in rows),
                **{name: dict(sorted(counts.items())) for name, counts in counted.items()},
            }
        )
    return result


def as_json(results: Results) -> str:
    """Return the text of `results.json`: keys in schema order, no NaN."""
    return json.dumps(results.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
