"""Train recurrent character models with PyTorch: text in, run folder out."""
