"""DICOM series to NIfTI volumes: grouping, geometry, pixels."""

from neurovfm_core.dicom.convert import ConvertedVolume, ConvertParams, RejectedVolume, convert_series

__all__ = ["ConvertParams", "ConvertedVolume", "RejectedVolume", "convert_series"]
