"""Comparison of the graphs with PyTorch and NumPy references."""
