"""The rill.v1 service: from requests to streams, from text to messages, from errors to statuses."""
