"""Constraints: what a generated text must match, as automata over a model's symbols."""
