"""FORMAT.md is normative: its reader, run as printed, reads what we wrote."""

import re
from pathlib import Path

import numpy as np
import pytest

import neurovfm_core.shards
from neurovfm_core.shards import VolumeTokens, write_shard
from neurovfm_core.shards.layout import INDEX_SCHEMA
from neurovfm_core.vocabulary import Modality, Split
from neurovfm_core.volumes import Prepared, View

PAGE = Path(neurovfm_core.shards.__file__).with_name("FORMAT.md").read_text()


@pytest.fixture
def volume():
    rng = np.random.default_rng(3)
    foreground = np.zeros((12, 48, 32), bool)
    foreground[4:9, 10:40, 3:20] = True
    code = rng.integers(0, 256, foreground.shape).astype(np.uint8)
    prepared = Prepared(code, foreground, Modality.MR, (4.0, 1.0, 1.0), View.CORONAL, np.eye(4), {})
    return VolumeTokens.from_prepared(
        prepared, volume_id="ser_a_v0", study_id="stu_a", patient_id="pat_a", split=Split.TEST
    )


def test_the_printed_reader_reads_a_shard(tmp_path, monkeypatch, volume):
    write_shard(tmp_path, "name", [volume])
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {}
    exec(compile(program, "FORMAT.md", "exec"), names)
    assert 0 < len(volume) < np.prod(volume.grid)
    np.testing.assert_array_equal(names["volume"], volume.dense())
    counts = np.frombuffer(names["row"]["foreground_count"], "<u2")
    np.testing.assert_array_equal(counts, volume.foreground_count)


def test_the_page_lies_beside_the_data(tmp_path, volume):
    write_shard(tmp_path, "name", [volume])
    assert (tmp_path / "FORMAT.md").read_text() == PAGE


def test_the_page_names_every_column_of_the_index():
    table = PAGE.split("## Index columns")[1].split("##")[0]
    documented = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    assert documented == INDEX_SCHEMA.names
