"""The training loop: trainer, checkpoints, optimizer, processes."""
