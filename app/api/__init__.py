"""HTTP, and nothing but HTTP: bytes in, engine calls, bytes out."""
