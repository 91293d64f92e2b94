"""The figures that are drawn from `results.json` alone."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from neurovfm_core.reporting.drawing import (
    BLUE,
    ENCODER_COLOURS,
    ENCODER_MARKERS,
    INK,
    MUTED,
    ORANGE,
    SPLIT_COLOURS,
    WIDTH_IN,
    Figure,
    canvas,
    plural,
    quiet_grid,
    readable,
    svg_bytes,
)
from neurovfm_core.reporting.results import EncoderRow, Evaluation, FlowRow, LabelRow, Results

EMA_SPAN_SHARE = 0.03
"""The smoothed training loss remembers this share of the log's lines."""


def figures_of(results: Results) -> list[Figure]:
    """Draw everything the results allow, in the order of the page."""
    figures = []
    if results.flow:
        figures.append(flow_figure(results.flow))
    for modality in sorted({row.modality for row in results.labels}):
        figures.append(label_figure([row for row in results.labels if row.modality == modality], modality))
    if results.pretraining:
        figures.append(training_figure(results.pretraining))
    if any(e.value is not None for part in results.evaluation.values() for e in part.macro.values()):
        figures.append(macro_figure(results.evaluation, results.encoders))
    for modality in results.modalities:
        if any(not row.suppressed for row in results.evaluation[modality].classes):
            figures.append(forest_figure(results.evaluation[modality], results.encoders, modality))
    return figures


def flow_figure(flow: Sequence[FlowRow]) -> Figure:
    """Draw what every stage kept, excluded by reason, and failed on."""
    sides = []
    for row in flow:
        lines = [f"{count:,}  {readable(reason).lower()}" for reason, count in _by_count(row.excluded)]
        lines += [f"{count:,}  failed: {readable(reason).lower()}" for reason, count in _by_count(row.failed)]
        sides.append(lines)
    line_in, gap_in = 0.155, 0.26
    heights = [max(0.5, 0.36 + line_in * len(lines)) for lines in sides]
    total = sum(heights) + gap_in * (len(flow) - 1)
    with canvas(WIDTH_IN, total + 0.05, layout=None) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH_IN), ylim=(-0.025, total + 0.025))
        axes.axis("off")
        top = total
        for i, (row, lines, height) in enumerate(zip(flow, sides, heights, strict=True)):
            middle = top - height / 2
            _box(axes, 0.05, middle - 0.25, 3.1, 0.5, "#eef4f9", BLUE)
            axes.text(0.2, middle, row.stage.capitalize(), va="center", weight="bold", size=9)
            axes.text(3.0, middle, f"{row.ok:,} {row.unit}", va="center", ha="right", size=9)
            if lines:
                colour = ORANGE if row.failed else MUTED
                _box(axes, 3.85, top - height, WIDTH_IN - 3.9, height, "#fbfbfc", colour)
                axes.annotate("", (3.83, middle), (3.17, middle), arrowprops=_arrow())
                heading = f"Not kept: {sum(row.excluded.values()) + sum(row.failed.values()):,}"
                axes.text(4.0, top - 0.17, heading, va="center", weight="bold", size=8)
                for k, line in enumerate(lines):
                    axes.text(4.0, top - 0.34 - line_in * k, line, va="center", size=7.5, color="#3a424d")
            if i + 1 < len(flow) and flow[i + 1].follows:
                below = top - height - gap_in - heights[i + 1] / 2 + 0.27
                axes.annotate("", (1.6, below), (1.6, middle - 0.27), arrowprops=_arrow())
            top -= height + gap_in
        image = svg_bytes(figure, "flow")
    said = "; ".join(
        f"{row.stage}: {row.ok} {row.unit} kept, {sum(row.excluded.values())} excluded, "
        f"{sum(row.failed.values())} failed"
        for row in flow
    )
    return Figure(
        "flow",
        "Flow of the data",
        image,
        said,
        "Each stage counts its own items, so numbers of neighbouring stages differ where the unit changes "
        "(a series may hold several volumes). Excluded: not for this analysis by a rule. Failed: should have "
        "worked. Every item that entered a stage is in one of the three.",
        "cohort",
    )


def label_figure(rows: Sequence[LabelRow], modality: str) -> Figure:
    """Draw how many studies of each split have each label."""
    splits = [split for split in ("train", "val", "test") if any(row.split == split for row in rows)]
    counts = {(row.label, row.split): row.present for row in rows}
    labels = {row.label for row in rows}
    total = {label: sum(counts.get((label, split)) or 0 for split in splits) for label in labels}
    # A label that no report affirms is a line in the table, not a bar of length zero.
    shown = sorted((label for label in labels if total[label]), key=lambda label: (total[label], label))
    with canvas(WIDTH_IN, 0.9 + 0.19 * max(1, len(shown))) as figure:
        axes = figure.add_subplot()
        left = np.zeros(len(shown))
        for split in splits:
            width = np.array([counts.get((label, split)) or 0 for label in shown], float)
            axes.barh(range(len(shown)), width, left=left, color=SPLIT_COLOURS[split], height=0.72, label=split)
            left += width
        for y, label in enumerate(shown):
            axes.annotate(
                f"{total[label]:,}",
                (left[y], y),
                (3, 0),
                textcoords="offset points",
                va="center",
                size=7,
                color=MUTED,
            )
        axes.set_yticks(range(len(shown)), [readable(label) for label in shown])
        axes.set_ylim(-0.6, max(1, len(shown)) - 0.4)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(f"{modality} studies whose report affirms the label")
        quiet_grid(axes, "x")
        figure.legend(loc="outside upper right", ncols=len(splits))
        image = svg_bytes(figure, f"labels-{modality}")
    return Figure(
        f"labels-{modality.lower()}",
        f"Labels in the {modality} reports",
        image,
        f"Stacked bars of {len(shown)} labels by split; most frequent: "
        + ", ".join(f"{readable(label)} {total[label]}" for label in shown[::-1][:5]),
        "Studies whose report states the label as present, by split. Labels that no report affirms are left out.",
        "labels",
    )


def training_figure(log: Sequence[dict[str, object]]) -> Figure:
    """Draw the loss and the two numbers that would show a collapse."""
    panels = (
        ("Loss (smooth L1)", "loss", "val_loss"),
        ("Feature standard deviation", "feature_std", "val_feature_std"),
        ("Effective rank", "effective_rank", "val_effective_rank"),
    )
    with canvas(WIDTH_IN, 2.5) as figure:
        for axes, letter, (title, train, val) in zip(figure.subplots(1, 3), "abc", panels, strict=True):
            steps, values = _series(log, train)
            if len(values):
                axes.plot(steps, values, color=BLUE, alpha=0.25, linewidth=0.8)
                axes.plot(steps, _smoothed(values), color=BLUE, label="training")
            steps, values = _series(log, val)
            if len(values):
                axes.plot(steps, values, color=ORANGE, marker="s", markersize=2.6, label="validation")
            axes.set_title(f"{letter}   {title}")
            axes.set_xlabel("Step")
            axes.margins(x=0.02)
            axes.set_ylim(bottom=0)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            quiet_grid(axes, "y")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        image = svg_bytes(figure, "training")
    last = {key: values[-1] for key in ("loss", "val_loss", "feature_std") if len(values := _series(log, key)[1])}
    return Figure(
        "training",
        "Loss and signs of collapse",
        image,
        "Curves over training steps; last values: " + ", ".join(f"{key} {value:.3g}" for key, value in last.items()),
        "a, Loss on training crops (thin: logged, thick: smoothed) and on fixed masks of validation volumes. "
        "b, c, Spread and effective rank (RankMe) of the teacher's features. A loss that falls while b or c "
        "falls towards zero would be a collapse, not learning.",
        "pretraining",
    )


def macro_figure(evaluation: dict[str, Evaluation], encoders: Sequence[EncoderRow]) -> Figure:
    """Draw the macro AUROC of every encoder and modality with its interval."""
    modalities = sorted(evaluation)
    said = []
    with canvas(WIDTH_IN * 0.78, 2.7) as figure:
        axes = figure.add_subplot()
        width = 0.8 / max(1, len(encoders))
        for k, encoder in enumerate(encoders):
            for m, modality in enumerate(modalities):
                estimate = evaluation[modality].macro.get(encoder.key)
                if estimate is None or estimate.value is None:
                    continue
                x = m + (k - (len(encoders) - 1) / 2) * width
                axes.bar(
                    x,
                    estimate.value - 0.5,
                    width * 0.88,
                    bottom=0.5,
                    color=_colour(k),
                    label=encoder.name if m == 0 or encoder.name not in _legend(axes) else None,
                )
                top = estimate.value
                if estimate.low is not None and estimate.high is not None:
                    axes.plot([x, x], [estimate.low, estimate.high], color=INK, linewidth=1)
                    top = max(top, estimate.high)
                axes.text(x, max(top, 0.5) + 0.012, f"{estimate.value:.2f}", ha="center", va="bottom", size=7.5)
                said.append(f"{modality} {encoder.name} {_spoken(estimate.value, estimate.low, estimate.high)}")
        axes.axhline(0.5, color=INK, linewidth=0.8)
        beside = axes.get_yaxis_transform()
        axes.text(1.01, 0.5, "chance", va="center", size=7.5, color=MUTED, transform=beside)
        names = [
            f"{m}\n{evaluation[m].macro_classes} labels, {evaluation[m].num_studies:,} studies" for m in modalities
        ]
        axes.set_xticks(range(len(modalities)), names)
        axes.set_xlim(-0.55, len(modalities) - 0.45)
        axes.tick_params(axis="x", length=0)
        axes.spines["bottom"].set_visible(False)
        low = min([0.5] + [e.low for part in evaluation.values() for e in part.macro.values() if e.low is not None])
        axes.set_ylim(max(0.0, np.floor(low * 10) / 10), 1.02)
        axes.set_ylabel("Macro AUROC")
        quiet_grid(axes, "y")
        figure.legend(loc="outside upper left", ncols=len(encoders))
        image = svg_bytes(figure, "macro")
    level = next(iter(evaluation.values())).level
    return Figure(
        "macro",
        "Diagnosis from frozen features",
        image,
        "; ".join(said),
        f"Mean AUROC over labels on held-out test studies; bars start at chance. Lines: {level:.0%} "
        "percentile bootstrap intervals; the average is taken inside each replicate, and all encoders share "
        "the resamples.",
        "evaluation",
    )


def forest_figure(evaluation: Evaluation, encoders: Sequence[EncoderRow], modality: str) -> Figure:
    """Draw the AUROC of every label that is not suppressed, for all encoders."""
    first = encoders[0].key if encoders else next(iter(evaluation.macro))
    rows = [row for row in evaluation.classes if not row.suppressed]
    rows.sort(key=lambda row: (row.auroc[first].value or 0.0, row.name))
    with canvas(WIDTH_IN, 1.1 + 0.3 * len(rows)) as figure:
        axes = figure.add_subplot()
        for k, encoder in enumerate(encoders):
            offset = ((len(encoders) - 1) / 2 - k) * 0.24
            for y, row in enumerate(rows):
                estimate = row.auroc.get(encoder.key)
                if estimate is None or estimate.value is None:
                    continue
                if estimate.low is not None and estimate.high is not None:
                    span = [estimate.low, estimate.high]
                    axes.plot(span, [y + offset] * 2, color=_colour(k), linewidth=1.1, solid_capstyle="butt")
                axes.plot(
                    estimate.value,
                    y + offset,
                    ENCODER_MARKERS[k % len(ENCODER_MARKERS)],
                    markersize=3.9,
                    color=_colour(k),
                    markerfacecolor="white" if row.flagged else _colour(k),
                    markeredgewidth=1,
                )
        for y in range(0, len(rows), 2):
            axes.axhspan(y - 0.5, y + 0.5, color="#f4f6f8", zorder=0)
        for y, row in enumerate(rows):
            text = "few" if row.num_positives is None else f"{row.num_positives:,}"
            axes.text(1.035, y, text, va="center", ha="right", size=7.5, transform=axes.get_yaxis_transform())
        axes.text(
            *(1.035, len(rows) - 0.35),
            "n+",
            ha="right",
            size=7.5,
            weight="bold",
            transform=axes.get_yaxis_transform(),
        )
        axes.axvline(0.5, color=INK, linewidth=0.8)
        axes.set_yticks(range(len(rows)), [readable(row.name) for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        lows = [e.low for row in rows for e in row.auroc.values() if e.low is not None]
        axes.set_xlim(max(-0.01, np.floor(min([0.5, *lows]) * 10) / 10 - 0.01), 1.01)
        axes.set_xlabel("AUROC")
        axes.spines["left"].set_visible(False)
        quiet_grid(axes, "x")
        handles = [
            axes.plot([], [], ENCODER_MARKERS[k], color=_colour(k), markersize=4.5, label=encoder.name)[0]
            for k, encoder in enumerate(encoders)
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=len(encoders))
        image = svg_bytes(figure, f"forest-{modality}")
    flagged = sum(row.flagged for row in rows)
    hidden = len(evaluation.classes) - len(rows)
    return Figure(
        f"forest-{modality.lower()}",
        f"{modality}: AUROC by label",
        image,
        f"Forest plot of {len(rows)} labels; best by {first}: "
        + ", ".join(f"{readable(row.name)} {row.auroc[first].value or 0:.2f}" for row in rows[::-1][:5]),
        f"{evaluation.level:.0%} percentile intervals from {evaluation.replicates:,} resamples of "
        f"{evaluation.num_units:,} {plural(evaluation.unit)}; vertical line: chance. n+, positive test "
        f"studies. Open markers: fewer than {evaluation.flag_below} positives or negatives ({flagged} "
        f"labels), whose intervals are too narrow. {hidden} labels with fewer than "
        f"{evaluation.min_positives} of either are not shown.",
        "evaluation",
    )


def _by_count(reasons: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(((reason, count) for reason, count in reasons.items() if count), key=lambda r: (-r[1], r[0]))


def _box(axes: Axes, x: float, y: float, width: float, height: float, face: str, edge: str) -> None:
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch((x, y), width, height, style, facecolor=face, edgecolor=edge, linewidth=0.9))


def _arrow() -> dict[str, object]:
    return {"arrowstyle": "-|>", "color": MUTED, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}


def _series(log: Sequence[dict[str, object]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps and values of the log lines that have this entry."""
    lines = [line for line in log if isinstance(line.get(key), (int, float))]
    return np.array([line["step"] for line in lines]), np.array([line[key] for line in lines], float)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """Exponential mean from the left, without the pull of a start value."""
    decay = 1 - 1 / max(1.0, EMA_SPAN_SHARE * len(values))
    weights = decay ** np.arange(len(values))
    numerator = np.convolve(values, weights)[: len(values)]
    return numerator / np.cumsum(weights)


def _colour(k: int) -> str:
    return ENCODER_COLOURS[k % len(ENCODER_COLOURS)]


def _legend(axes: Axes) -> list[str]:
    return axes.get_legend_handles_labels()[1]


def _spoken(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} ({low:.2f} to {high:.2f})"
