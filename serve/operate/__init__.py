"""The server process: start, signals, drain, several processes."""
