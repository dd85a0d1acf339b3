"""The rill.v1 service definition and its generated stubs."""
