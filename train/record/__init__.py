"""The run folder, recipes, and the output on the screen."""
