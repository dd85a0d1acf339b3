"""The parity matrix, a tool of the repository: every kind of model, compared with its references."""
