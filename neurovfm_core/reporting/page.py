"""The report page: one self-contained HTML file that loads nothing."""

import logging
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from neurovfm_core.files import written_whole
from neurovfm_core.reporting.drawing import Figure, inline_svg, plural, readable
from neurovfm_core.reporting.figures import figures_of
from neurovfm_core.reporting.results import (
    CHARACTERISTICS,
    CohortRow,
    Count,
    Results,
    as_json,
    checked,
)

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
"""A browser that honours it refuses every request the page could make."""

MINUS = "\N{MINUS SIGN}"
CHARACTERISTIC_NAMES = {
    "sex": "Sex",
    "age_band": "Age, years",
    "manufacturer": "Manufacturer",
    "field_strength": "Field strength",
}


def render_report(results: Mapping[str, object], figures: Sequence[Figure], folder: Path) -> Path:
    """Write `results.json`, `figures/` and `report.html`, which shows them and needs neither.

    Parameters
    ----------
    results
        As `neurovfm_core.reporting.results.Results` describes.
    figures
        Those that numbers alone cannot give (slices). All others are drawn here from the results.

    Returns
    -------
    Path
        Of `report.html`. The same results and figures give the same bytes.

    Raises
    ------
    UsageError
        If the results do not fit their description.
    """
    model = checked(results)
    drawn = [*figures_of(model), *figures]
    with written_whole(folder / "results.json") as path:
        path.write_text(as_json(model), encoding="utf-8")
    for figure in drawn:
        with written_whole(folder / "figures" / f"{figure.id}{figure.suffix}") as path:
            path.write_bytes(figure.image)
    with written_whole(folder / "report.html") as path:
        path.write_text(page(model, drawn), encoding="utf-8")
    logger.info("report written figures=%d", len(drawn))
    return folder / "report.html"


def page(results: Results, figures: Sequence[Figure]) -> str:
    """Return the HTML of the page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "readable": readable,
        "count": count_text,
        "estimate": estimate_text,
        "probability": probability_text,
        "picture": picture,
        "plural": plural,
    }
    style, script = (Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("report.css", "report.js"))
    return environment.get_template("report.html").render(
        results=results,
        figures={
            section: [figure for figure in figures if figure.section == section]
            for section in ("cohort", "labels", "pretraining", "evaluation", "evidence")
        },
        numbers={figure.id: number for number, figure in enumerate(figures, start=1)},
        cohort_table=cohort_table(results.cohort),
        encoder_names={encoder.key: encoder.name for encoder in results.encoders},
        findings=findings(results),
        policy=CONTENT_SECURITY_POLICY,
        style=style,
        script=script,
    )


def findings(results: Results) -> list[str]:
    """Say in words what the macro averages and their paired differences show, and what they do not."""
    names = {encoder.key: encoder.name for encoder in results.encoders}
    sentences = []
    for modality in results.modalities:
        part = results.evaluation[modality]
        for row in part.differences:
            if row.value is None or row.low is None or row.high is None:
                continue
            a, b, value, low, high = row.encoder, row.minus, row.value, row.low, row.high
            if value < 0:
                a, b, value, low, high = b, a, -value, -high, -low
            verdict = "is above" if low > 0 else "is not distinguishable from"
            numbers = f"{value:+.3f}, {part.level:.0%} interval {low:+.3f} to {high:+.3f}".replace("-", MINUS)
            sentences.append(
                f"{modality}: {names.get(a, a)} {verdict} {names.get(b, b)} "
                f"(difference in macro AUROC {numbers}; {part.macro_classes} labels, "
                f"{part.num_studies} test studies)."
            )
    return sentences


def cohort_table(rows: Sequence[CohortRow]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Return the cohort table as (heading, lines of (name, one text per cohort row))."""
    sizes = [
        (name.capitalize(), [count_text(getattr(row, name)) for row in rows])
        for name in ("patients", "studies", "series", "volumes")
    ]
    blocks = [("Size", sizes)]
    for name in CHARACTERISTICS:
        values = sorted({value for row in rows for value in getattr(row, name)})
        lines = [(value, [_share_text(getattr(row, name), value, row.studies) for row in rows]) for value in values]
        if lines:
            blocks.append((f"{CHARACTERISTIC_NAMES[name]}, studies (%)", lines))
    return blocks


def _share_text(counts: Mapping[str, Count], value: str, studies: Count) -> str:
    if not counts:
        return "–"
    count = counts.get(value, 0)
    return f"{count:,} ({count / studies:.0%})" if count and studies else count_text(count)


def count_text(count: Count) -> str:
    """Return a count for reading; None, a small cell, as a word that cannot be taken for a number."""
    return "few" if count is None else f"{count:,}"


def estimate_text(estimate: object, signed: bool = False) -> str:
    """Return value and interval of an estimate or difference, a dash where it is undefined."""
    value, low, high = (getattr(estimate, name, None) for name in ("value", "low", "high"))
    form = "+.3f" if signed else ".3f"
    if value is None:
        return "–"
    text = f"{value:{form}}" if low is None or high is None else f"{value:{form}} ({low:{form}} to {high:{form}})"
    return text.replace("-", MINUS)


def probability_text(value: float | None) -> str:
    """Return a p-value for reading."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def picture(figure: Figure) -> Markup:
    """Return the figure as markup that stands alone: inline SVG, or PNG in the address itself."""
    if figure.suffix == ".svg":
        return Markup(inline_svg(figure.image, figure.id))
    return Markup('<img alt="" src="data:image/png;base64,{}">').format(b64encode(figure.image).decode())
