"""What the analysis report shows, and with which intervals."""

from typing import Annotated

from pydantic import Field

from neurovfm_core.params import Params, Share


class AnalyzeParams(Params):
    """Statistics and layout of the analysis report."""

    title: str = "Analysis report"
    """Title of the page."""
    data_notice: str = ""
    """One sentence on what the data are, shown on top; for instance that they are synthetic."""
    replicates: Annotated[int, Field(ge=100)] = 10_000
    """Bootstrap replicates behind every interval (paper: 10,000)."""
    level: Share = 0.95
    """Coverage of the intervals."""
    min_positives: Annotated[int, Field(ge=1)] = 5
    """Labels with fewer positive, or fewer negative, test studies get no estimate."""
    suppress_below: Annotated[int, Field(ge=0)] = 10
    """Counts of people below this are not shown; 0 shows all and is for synthetic data only."""
    evidence_examples: Annotated[int, Field(ge=0)] = 3
    """Test studies per modality whose evidence is drawn over a slice."""
    seed: int = 0
    """Decides the bootstrap resamples."""
