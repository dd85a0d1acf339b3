"""`rill batch`: the texts of many prompts."""
