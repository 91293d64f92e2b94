"""Prefect flows and the `neurovfm` command."""
