"""The report page: self-contained, reproducible, and true to results.json."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from neurovfm_core.errors import UsageError
from neurovfm_core.reporting.drawing import canvas, inline_svg, svg_bytes
from neurovfm_core.reporting.page import render_report
from neurovfm_core.reporting.results import checked, cohort_rows
from neurovfm_core.reporting.slices import as_displayed, slice_figure, slice_panel, token_map
from neurovfm_core.stats.bootstrap import bootstrap_auroc

SECRET_MARKUP = '<script>alert("x")</script>'


def evaluation(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    labels = np.zeros((60, 4))
    for c, positives in enumerate((3, 12, 30, 31)):
        labels[rng.choice(60, positives, replace=False), c] = 1
    scores = {
        name: rng.normal(size=labels.shape) + gain * labels
        for name, gain in (("pretrained", 3.0), ("random", 0.4), ("histogram", 0.0))
    }
    names = ["rare_one", "acute_ischemic_stroke", "brain_tumor", "hydrocephalus"]
    return bootstrap_auroc(scores, labels, class_names=names, replicates=200, seed=1).to_dict()


@pytest.fixture(scope="module")
def results() -> dict:
    log = [{"step": s, "loss": 1 / s, "feature_std": 0.9, "effective_rank": 20.0} for s in range(1, 40)]
    log += [{"step": s, "val_loss": 1.1 / s, "val_feature_std": 0.9, "val_effective_rank": 19} for s in (10, 20)]
    series = [
        {
            "split": "train" if i < 7 else "test",
            "modality": "MR",
            "patient_id": i // 2,
            "study_id": i,
            "sex": "F",
            "age_band": "40-49",
            "manufacturer": f"Maker & Sons {SECRET_MARKUP}",
            "field_strength_t": 1.5,
            "num_volumes": 2,
        }
        for i in range(10)
    ]
    return {
        "title": f"Report {SECRET_MARKUP}",
        "data_notice": "Synthetic data.",
        "totals": {"patients": 5},
        "flow": [
            {
                "stage": "convert",
                "unit": "volumes",
                "ok": 7,
                "excluded": {"localizer": 2},
                "failed": {"crash": 1},
            },
            {"stage": "shard", "unit": "volumes", "ok": 7},
        ],
        "cohort": cohort_rows(series),
        "labels": [
            {"modality": "MR", "split": "train", "label": "brain_tumor", "present": 9},
            {"modality": "MR", "split": "train", "label": "never", "absent": 9},
        ],
        "pretraining": log,
        "encoders": [
            {"key": "pretrained", "name": "Pretrained", "digest": "ab" * 32},
            {"key": "random", "name": "Random weights"},
            {"key": "histogram", "name": "Histogram"},
        ],
        "evaluation": {"MR": evaluation()},
        "methods": "Volumes were stored as 8-bit.",
        "provenance": {"Code": {"version": "1.2.3"}},
    }


def panel(title: str = "Study 1"):
    image = np.zeros((8, 32, 48), np.uint8)
    image[:, 8:24, 10:40] = 200
    evidence = token_map(np.array([[1, 1, 2]]), np.array([2.0]), (2, 2, 3))
    return slice_panel(title, image, image > 0, evidence, np.eye(4)[[2, 1, 0, 3]])


@pytest.fixture(scope="module")
def folder(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("analysis")
    render_report(results, [slice_figure([panel(), panel("Study 2")], "Caption.")], folder)
    return folder


@pytest.fixture(scope="module")
def html(folder):
    return (folder / "report.html").read_text()


class Page(HTMLParser):
    """Collects tags, and every attribute that could fetch something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                self.targets.append(value)


def test_the_page_names_no_address_outside_itself(html):
    assert not re.search(r"(https?|ftp|wss?):", html)
    assert not re.search(r"url\((?!#)", html)
    assert "@import" not in html
    page = Page(html)
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in page.targets)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html).group(1)
    assert policy.replace("&#39;", "'").startswith("default-src 'none'; img-src data:;")


def test_every_inner_link_has_its_anchor_and_no_id_occurs_twice(html):
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert {target[1:] for target in page.targets if target.startswith("#")} <= set(page.ids)


def test_the_same_results_give_the_same_bytes(results, folder, tmp_path):
    render_report(results, [slice_figure([panel(), panel("Study 2")], "Caption.")], tmp_path)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) == 8
    for name in files:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_page_can_be_drawn_again_from_results_json_alone(folder, tmp_path):
    saved = json.loads((folder / "results.json").read_text())
    render_report(saved, [], tmp_path)
    assert (tmp_path / "results.json").read_bytes() == (folder / "results.json").read_bytes()
    assert (tmp_path / "figures" / "forest-mr.svg").read_bytes() == (folder / "figures" / "forest-mr.svg").read_bytes()


def test_text_from_the_data_cannot_become_markup(html):
    assert SECRET_MARKUP not in html
    assert "&lt;script&gt;" in html
    assert Page(html).tags.count("script") == 1


def test_research_use_and_the_nature_of_the_data_stand_at_the_top(html):
    assert html.index("For research use only") < html.index("Synthetic data.") < html.index('id="cohort"')


def test_numbers_on_the_page_are_those_of_the_evaluation(html, results):
    part = results["evaluation"]["MR"]
    text = re.sub(r"<[^>]+>", " ", html)
    for estimate in part["macro"].values():
        assert f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})" in text
    gain = next(d for d in part["differences"] if d["minus"] == "random")
    assert f"MR: Pretrained is above Random weights (difference in macro AUROC {gain['value']:+.3f}" in text


def test_a_difference_that_may_be_chance_is_said_to_be(results, html):
    loser = next(d for d in results["evaluation"]["MR"]["differences"] if d["encoder"] == "random")
    assert loser["low"] < 0 < loser["high"]
    assert re.search("MR: (Random weights|Histogram) is not distinguishable from", html)


def test_rare_labels_are_suppressed_in_table_figure_and_file(html, folder):
    row = re.search(r"<tr><td>Rare one</td>.*?</tr>", html).group(0)
    assert "suppressed" in row
    assert ">few<" in row
    assert "Rare one" not in (folder / "figures" / "forest-mr.svg").read_text()
    rare = json.loads((folder / "results.json").read_text())["evaluation"]["MR"]["classes"][0]
    assert rare["num_positives"] is None
    assert rare["auroc"] == {}
    assert "small n" in re.search(r"<tr><td>Acute ischemic stroke</td>.*?</tr>", html).group(0)


def test_small_cells_of_the_cohort_are_hidden_unless_asked_for(results):
    test_split = checked(results).cohort[1]
    assert test_split.split == "test"
    assert (test_split.patients, test_split.studies, test_split.volumes) == (None, None, 6)
    assert test_split.sex == {"F": None}
    open_row = checked({**results, "suppress_below": 0}).cohort[1]
    assert (open_row.patients, open_row.studies, open_row.sex) == (2, 3, {"F": 3})


def test_a_cohort_counts_patients_once_and_studies_by_their_first_series():
    series = [
        {"split": "train", "modality": "CT", "patient_id": "p", "study_id": s, "sex": sex, "num_volumes": 1}
        for s, sex in (("a", "M"), ("a", "F"), ("b", ""))
    ]
    (row,) = cohort_rows(series)
    assert (row["patients"], row["studies"], row["series"], row["volumes"]) == (1, 2, 3, 3)
    assert row["sex"] == {"M": 1, "unknown": 1}
    assert row["field_strength"] == {}


def test_empty_parts_leave_their_sections_out(tmp_path):
    html = render_report({"title": "Nothing yet"}, [], tmp_path).read_text()
    assert "<figure" not in html
    assert 'id="evaluation"' not in html
    assert "For research use only" in html


def test_an_encoder_without_any_estimate_is_drawn_as_absent_not_as_half(tmp_path, results):
    part = bootstrap_auroc({"pretrained": np.zeros((6, 1))}, np.zeros((6, 1)), replicates=10).to_dict()
    html = render_report({**results, "evaluation": {"MR": part}}, [], tmp_path).read_text()
    assert "Infinity" not in html
    assert "nan" not in re.sub(r"<[^>]+>", " ", html).lower().split()


@pytest.mark.parametrize(
    ("change", "where"),
    [({"titel": "x"}, "titel"), ({"flow": [{"stage": "a", "unit": "b", "ok": "many"}]}, "flow.0.ok")],
)
def test_results_that_do_not_fit_are_refused_by_name(results, change, where):
    with pytest.raises(UsageError) as refused:
        checked({**results, **change})
    assert refused.value.where == where


def test_a_figure_with_a_script_is_refused():
    with pytest.raises(ValueError, match="scripts"):
        inline_svg(b"<svg><script>1</script></svg>", "x")


def test_svg_text_stays_text():
    with canvas(2, 1) as figure:
        figure.text(0.5, 0.5, "Readable words")
        assert b"Readable words" in svg_bytes(figure, "salt")


def test_tokens_of_several_windows_add_up_on_their_grid():
    grid = token_map(np.array([[0, 0, 1], [1, 1, 0], [0, 0, 1]]), np.array([1.0, 5, 2]), (2, 2, 2))
    assert grid[0, 0, 1] == 3
    assert grid[1, 1, 0] == 5
    assert grid.sum() == 8


@pytest.mark.parametrize("axes", [(2, 1, 0), (1, 2, 0), (0, 2, 1), (1, 0, 2)])
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_a_slice_is_shown_in_the_radiological_convention(axes, signs):
    """Downwards leads to inferior (or posterior), rightwards to the patient's left (or back)."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    affine[axes[0], 0] = 4
    affine[axes[1], 1], affine[axes[2], 2] = signs
    rows_ras, columns_ras = max(axes[1:]), min(axes[1:])
    index = np.stack(np.meshgrid(np.arange(6), np.arange(4), indexing="ij"), -1).astype(float)
    ras = np.zeros((6, 4, 3))
    ras[..., axes[1]] += signs[0] * index[..., 0]
    ras[..., axes[2]] += signs[1] * index[..., 1]
    shown_rows, shown_columns = (as_displayed(ras[..., axis], affine) for axis in (rows_ras, columns_ras))
    assert (np.diff(shown_rows, axis=0) < 0).all()
    assert (np.diff(shown_columns, axis=1) < 0).all()


def test_the_slice_with_the_most_evidence_is_chosen_and_its_token_is_where_it_was():
    shown = panel()
    assert shown.image.shape == shown.evidence.shape == (32, 48)
    # Rows point to anterior, columns to right in that affine, so both are mirrored for display.
    np.testing.assert_array_equal(np.argwhere(shown.evidence > 0).min(0), [0, 0])
    np.testing.assert_array_equal(np.argwhere(shown.evidence > 0).max(0), [15, 15])
