"""Label: reports become study labels with evidence.

Reads     export: one row per report
Writes    one row per report, which is one per study
Excludes  no_known_modality, empty_report
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from neurovfm_core.errors import Excluded, Reason
from neurovfm_core.labels import RULES_VERSION, LabelParams, Ontology, label_report, study_labels
from neurovfm_core.params import canonical_json, fingerprint
from neurovfm_core.vocabulary import LabelState, Modality
from tasks.stage import Candidates, Place, Stage, Unit, Upstream
from tasks.workspace import Workspace

SEMANTIC_VERSION = 1  # raise it when the same input and settings would give other labels
METHODS = (
    "Study labels (74 MRI and 82 CT diagnoses) were extracted from the report text by the {engine} engine as "
    "present, uncertain, absent, historical or not mentioned, each with its evidence."
)
CARRIES = ("patient_id", "study_id", "modality", "time_bucket")


def plan(workspace: Workspace, upstream: Upstream, params: LabelParams) -> Candidates:
    """Every exported report, with the version of the rules and the ontology it would be read by."""
    columns = ["item_id", "sha256", "outputs", *CARRIES]
    table = upstream.current("export", columns, where="status = 'ok' and kind = 'report'")
    version = _version(params)
    prints = [fingerprint(sha256, version) for sha256 in table["sha256"].to_pylist()]
    return Candidates(table.append_column("input_fingerprint", pa.array(prints, pa.string())))


def execute(unit: Unit, params: LabelParams, place: Place) -> list[dict[str, Any]]:
    """Label one report. Evidence is kept as offsets; the text stays where it is."""
    modality = unit.columns["modality"]
    if modality not in list(Modality):
        raise Excluded(Reason.NO_KNOWN_MODALITY, "the study is neither CT nor MR")
    path = place.checked(unit.columns["outputs"][:1], unit.columns["sha256"])
    ontology = _ontology(params.ontology_path)
    mentions = label_report(path.read_text(encoding="utf-8"), Modality(modality), ontology)
    states = study_labels(mentions, Modality(modality), ontology)
    evidence = [
        {"label": m.label, "state": m.state.value, "laterality": m.laterality, "start": m.start, "end": m.end}
        for m in mentions
    ]
    content = canonical_json({"labels": {k: v.value for k, v in states.items()}, "evidence": evidence})
    return [
        {
            "sha256": fingerprint(content),
            "engine": params.engine,
            "engine_version": _version(params),
            "label_names": list(states),
            "label_states": [state.value for state in states.values()],
            "num_present": sum(state is LabelState.PRESENT for state in states.values()),
            "evidence": json.dumps(evidence),
        }
    ]


def _version(params: LabelParams) -> str:
    return f"{RULES_VERSION}+{_ontology(params.ontology_path).version}"


@lru_cache(maxsize=2)
def _ontology(path: Path | None) -> Ontology:
    return Ontology.load(path)


STAGE = Stage(
    name="label",
    reads=("export",),
    semantic_version=SEMANTIC_VERSION,
    methods=METHODS,
    plan=plan,
    execute=execute,
    carries=CARRIES,
)
