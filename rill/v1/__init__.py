"""The messages and stubs of rill.proto, generated (`make protos`)."""
