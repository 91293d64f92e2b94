"""Rules about the code itself: imports, file length, prints, generated pages."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for folder in ("flows", "tasks", "manifests", "neurovfm_core") for path in (ROOT / folder).rglob("*.py")
)


def test_imports_point_down() -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_has_one_subject_and_fits_in_500_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


def test_no_test_folder_shadows_a_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_help_needs_neither_torch_nor_prefect() -> None:
    code = (
        "import sys; sys.argv = ['neurovfm', '--help']\n"
        "from flows.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'prefect', 'pydicom', 'SimpleITK'} & set(sys.modules), 'slow imports'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr


def test_data_workers_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from tasks import export, convert, preprocess, shard, label\n"
        "assert 'torch' not in sys.modules and 'prefect' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr


def test_reference_pages_are_fresh() -> None:
    from flows.reference import pages

    for name, text in pages().items():
        path = ROOT / "docs" / "reference" / name
        assert path.exists() and path.read_text() == text, f"{name} is old: make docs"
