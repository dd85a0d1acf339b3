"""The models and their cells."""
