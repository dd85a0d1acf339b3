"""The served models: slots, loading, replacing."""
