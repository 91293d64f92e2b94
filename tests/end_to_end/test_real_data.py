"""Real scanner output: every series ends as a volume or as a row with a reason."""

from pathlib import Path

import numpy as np
import pytest

from tasks.registry import stage_named
from tasks.workspace import Workspace

pytestmark = [pytest.mark.real_data, pytest.mark.slow]


@pytest.fixture(scope="module")
def real(shared_data: Path, run_one, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("real") / "ws"
    source = f"folder:{shared_data / 'dicom'}"
    workspace = Workspace.create(root, source=source, warehouse=None, preset="hospital")
    for name in ("export", "convert", "preprocess", "shard"):
        result = run_one(stage_named(name), workspace)
        assert not result.error, result.error
    return workspace


def rows(workspace: Workspace, stage: str) -> list[dict]:
    return workspace.store.manifest(stage).current().to_pylist()


def test_nothing_is_lost_and_every_refusal_has_a_reason(real: Workspace) -> None:
    for stage in ("export", "convert", "preprocess", "shard"):
        table = rows(real, stage)
        assert table
        assert [row for row in table if row["status"] != "ok" and not row["reason"]] == []
    exported = {r["item_id"] for r in rows(real, "export") if r["status"] == "ok" and r["kind"] == "series"}
    assert {row["source_id"] for row in rows(real, "convert")} == exported


def test_what_is_no_image_does_not_become_a_volume(real: Workspace) -> None:
    reasons = {row["reason"] for stage in ("export", "convert") for row in rows(real, stage)}
    assert {"not_ct_or_mr", "localizer", "secondary_capture"} & reasons
    assert "unexpected" not in reasons
    assert "crash" not in reasons


def test_real_heads_reach_the_shards(real: Workspace) -> None:
    done = [row for row in rows(real, "shard") if row["status"] == "ok"]
    assert {row["modality"] for row in done} == {"CT", "MR"}
    assert len(done) >= 5
    assert all(row["num_tokens"] > 0 for row in done)


def test_embed_returns_features_for_real_nifti(finished_root: Path, shared_data: Path, tmp_path: Path) -> None:
    from tasks.embed import embed_paths

    encoder = next((finished_root / "encoders").glob("*/*/encoder"))
    files = sorted((shared_data / "nifti").rglob("*.nii*"))[:4]
    found = embed_paths(files, encoder, tmp_path, preset="paper", modality="MR")
    good = [row for row in found if row["status"] == "ok"]
    assert len(good) >= 3, found
    for row in good:
        with np.load(row["output"], allow_pickle=False) as arrays:
            assert arrays["tokens"].shape == (row["num_tokens"], arrays["mean"].size)
            assert np.isfinite(arrays["mean"]).all()
