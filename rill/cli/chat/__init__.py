"""`rill chat`: a text that a person and a model write in turns."""
