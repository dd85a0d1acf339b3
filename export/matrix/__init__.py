"""The parity matrix: every kind of model, compared with its references."""
