"""Study-level heads on a frozen encoder, and the baselines they are compared with."""
