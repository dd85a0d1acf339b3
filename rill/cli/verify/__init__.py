"""`rill verify`: are a bundle's texts always the same?"""
