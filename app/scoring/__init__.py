"""The hot path: a score call from its bytes to its response."""
