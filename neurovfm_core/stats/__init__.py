"""Exact, vectorised statistics of an evaluation."""
