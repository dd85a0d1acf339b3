"""Access control: bearer tokens, certificates, limits per client."""
