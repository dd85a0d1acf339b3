"""The engine: rounds over all live streams of a model."""
