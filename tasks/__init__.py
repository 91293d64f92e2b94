"""One module per stage: plan, execute, publish."""
