"""The rill.v1 service: requests in, messages out."""
