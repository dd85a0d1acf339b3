"""The data of a run: from files to batches of symbol ids."""
