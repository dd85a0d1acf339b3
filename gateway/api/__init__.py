"""What the gateway answers: each endpoint in a file of its own."""
