"""Volumetric joint-embedding prediction: masks, objective, schedules and the trainer."""
