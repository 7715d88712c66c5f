"""The page at `/console`: its parts, and the route that serves them as one response."""
