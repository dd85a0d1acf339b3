"""Comparing graphs with PyTorch and NumPy references."""
