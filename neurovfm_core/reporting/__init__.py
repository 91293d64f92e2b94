"""The analysis report: one page drawn from one machine-readable file."""
