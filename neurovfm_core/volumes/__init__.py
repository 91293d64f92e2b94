"""Volumes: from an array with geometry to 8-bit patches on a common grid."""

from neurovfm_core.volumes.archive import FileFacts, read_prepared, write_prepared
from neurovfm_core.volumes.intensity import decode_ct, decode_table, level_table, windows_of
from neurovfm_core.volumes.official import OfficialVolume, load_official
from neurovfm_core.volumes.orientation import View
from neurovfm_core.volumes.patches import PatchGrid, to_patches
from neurovfm_core.volumes.preparation import Prepared, PreprocessParams, prepare
from neurovfm_core.volumes.volume import Volume, read_nifti

__all__ = [
    "FileFacts",
    "OfficialVolume",
    "PatchGrid",
    "Prepared",
    "PreprocessParams",
    "View",
    "Volume",
    "decode_ct",
    "decode_table",
    "level_table",
    "load_official",
    "prepare",
    "read_nifti",
    "read_prepared",
    "to_patches",
    "windows_of",
    "write_prepared",
]
