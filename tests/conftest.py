"""A small hospital and a workspace with the whole chain run once, for tests to copy."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from neurovfm_core.hospital.build import HospitalParams, build_hospital
from tasks.registry import STAGES
from tasks.run import run_stage
from tasks.stage import Progress, RunResult, Selection, Stage
from tasks.workspace import Workspace

# The suite says the same every time; `--hypothesis-profile=explore` looks for new counterexamples.
settings.register_profile("suite", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("suite")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

TINY_SITE = """
[source]
url = "folder:{hospital}/pacs"
warehouse = "sqlite:///{hospital}/warehouse.sqlite"

[run]
workers = 2
group_seconds = 5.0
min_free_gb = 0.1

[shard]
volumes_per_shard = 8

[shard.split]
test_share = 0.3
val_share = 0.4

[pretrain]
encoder = {{ width = 48, depth = 1, num_heads = 3 }}
predictor = {{ width = 32, depth = 1, num_heads = 2 }}
steps = 8
batch_volumes = 4
max_crop = [6, 6, 6]
precision = "fp32"
device = "cpu"
num_threads = 1
log_every = 2
validate_every = 4
checkpoint_every = 2
validation_volumes = 4

[probe]
hidden = 8
mlp = [8]
epochs = 3
max_tokens_per_study = 100
min_train_positives = 1

[analyze]
replicates = 100
min_positives = 1
"""


class Quiet:
    """A reporter that only remembers."""

    def __init__(self) -> None:
        self.results: list[RunResult] = []

    def started(self, stage: str, planned: int, fresh: int) -> None: ...
    def progress(self, stage: str, progress: Progress) -> None: ...
    def message(self, stage: str, text: str) -> None: ...
    def finished(self, result: RunResult) -> None:
        self.results.append(result)

    def group(self, name: str, work: Callable[[], int]) -> None:
        work()


def run(stage: Stage, workspace: Workspace, **selection: Any) -> RunResult:
    return run_stage(stage, workspace, Selection(**selection), reporter=Quiet(), requested_by="test", asked=True)


@pytest.fixture(scope="session")
def run_one() -> Callable[..., RunResult]:
    return run


@pytest.fixture(scope="session")
def tiny_site() -> str:
    return TINY_SITE


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real data are not beside the repository ({SHARED_DATA.name})")
    return SHARED_DATA


@pytest.fixture(scope="session")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    build_hospital(folder, HospitalParams(num_studies=14, seed=3, scale=0.6), workers=2)
    return folder


@pytest.fixture(scope="session")
def finished_root(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole chain, run once. Tests copy it and leave it alone."""
    root = tmp_path_factory.mktemp("finished") / "ws"
    source = f"folder:{hospital}/pacs"
    # With a random key the splits, and what a tiny data set can show, would be others every time.
    workspace = Workspace.create(root, source=source, warehouse=None, preset="demo", key=bytes(range(32)))
    (root / "site.toml").write_text(TINY_SITE.format(hospital=hospital))
    workspace = Workspace.open(root)
    for stage in STAGES:
        result = run(stage, workspace)
        assert not result.error, f"{stage.name}: {result.error}"
    return root


@pytest.fixture
def finished(finished_root: Path, tmp_path: Path) -> Workspace:
    """A copy of the finished workspace."""
    shutil.copytree(finished_root, tmp_path / "ws")
    return Workspace.open(tmp_path / "ws")
