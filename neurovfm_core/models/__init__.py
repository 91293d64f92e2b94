"""Networks: attention over packed tokens, the encoder, the predictor, their files."""
