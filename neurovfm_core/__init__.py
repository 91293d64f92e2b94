"""The method as a library: from DICOM and reports to encoder, probe and statistics.

Knows nothing of Prefect, manifests or the command line, and is usable alone.
"""

__version__ = "0.1.0"
