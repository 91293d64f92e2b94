"""From the text of a report to the state of every label, with evidence.

`Ontology` holds what the labels mean and how reports say them (data, not code);
`label_report` finds and judges the mentions; `study_labels` settles one state per label.
"""

from neurovfm_core.labels.explain import explain
from neurovfm_core.labels.ontology import LabelEntry, Ontology
from neurovfm_core.labels.rules import RULES_VERSION, LabelParams, Mention, label_report, study_labels

__all__ = [
    "RULES_VERSION",
    "LabelEntry",
    "LabelParams",
    "Mention",
    "Ontology",
    "explain",
    "label_report",
    "study_labels",
]
