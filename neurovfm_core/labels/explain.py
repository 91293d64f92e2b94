"""A report's labels for a reader: each with its evidence marked in its line, and the rule that fired."""

from neurovfm_core.labels.ontology import Ontology
from neurovfm_core.labels.rules import label_report, study_labels
from neurovfm_core.vocabulary import LabelState, Modality

CONTEXT = 40
"""Characters shown on either side of the evidence."""


def explain(text: str, modality: Modality | str, ontology: Ontology) -> str:
    """Return plain text: the settled labels, then every mention with its evidence between >> and <<.

    The result quotes the report; it must not be logged or leave the site.
    """
    mentions = label_report(text, modality, ontology)
    states = study_labels(mentions, modality, ontology)
    lines = [f"{Modality(modality).value}, ontology {ontology.version}", "", "labels"]
    said = [(label, state) for label, state in states.items() if state is not LabelState.NOT_MENTIONED]
    lines += [f"  {state.value:<10} {label}" for label, state in said] or ["  none mentioned"]
    lines += ["", "mentions"]
    for mention in mentions:
        before = text[max(0, mention.start - CONTEXT) : mention.start]
        after = text[mention.end : mention.end + CONTEXT]
        quote = " ".join(f"{before}>>{mention.evidence}<<{after}".split())
        side = "" if mention.laterality == "none" else f", {mention.laterality}"
        section = mention.section.name.lower()
        lines.append(f"  {mention.label}: {mention.state.value}{side} ({section}; {mention.rule})")
        lines.append(f"    {quote}")
    return "\n".join(lines) + "\n"
