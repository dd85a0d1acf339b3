"""Who may call: bearer tokens, certificates, limits per client."""
