"""site.toml: wrong input is named with its line, and every setting is explained."""

from pathlib import Path

import pytest

from neurovfm_core.errors import UsageError
from tasks.settings import PRESETS, Site, explain, load_site, preset_text


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid(preset, tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(preset_text(preset, 'folder:/data/with "quotes"', "sqlite:////w.sqlite"))
    site = load_site(path)
    assert site.source.url == 'folder:/data/with "quotes"'
    assert site.source.warehouse == "sqlite:////w.sqlite"
    assert path.read_text().startswith("# Purpose")


@pytest.mark.parametrize(
    ("text", "what", "where", "hint"),
    [
        (
            "[source]\nurl = 'folder:/d'\n[preprocess]\nslice_m = 4.0\n",
            "unknown setting preprocess.slice_m",
            "line 4",
            "slice_mm",
        ),
        ("[source]\nurl = 'folder:/d'\n\n[run]\nworkers = -1\n", "run.workers is -1", "line 5", "explain run"),
        ("[source]\n", "source.url is required", "line 1", ""),
        ("[source\n", "not valid TOML", "site.toml", ""),
        ("[source]\nurl = 'folder:/d'\n[stages]\n", "unknown setting stages", "line 3", ""),
    ],
)
def test_a_mistake_is_named_with_its_line(text, what, where, hint, tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_site(path)
    assert what in caught.value.what
    assert where in caught.value.where
    assert hint in caught.value.hint


def test_every_setting_has_a_meaning() -> None:
    rows = explain()
    assert len(rows) > 50
    assert [f"{row['section']}.{row['key']}" for row in rows if len(row["help"]) < 10] == []


def test_settings_are_read_by_somebody() -> None:
    """A setting that no code names is a promise nobody keeps."""
    root = Path(__file__).resolve().parents[2]
    code = "\n".join(
        path.read_text() for folder in ("tasks", "flows", "neurovfm_core") for path in (root / folder).rglob("*.py")
    )
    unread = [row["key"] for row in explain() if f".{row['key']}" not in code]
    assert unread == []


def test_a_stage_has_the_section_of_its_name() -> None:
    from tasks.registry import STAGES

    assert {stage.name for stage in STAGES} <= set(Site.model_fields)
