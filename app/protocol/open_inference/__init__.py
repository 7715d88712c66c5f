"""The Open Inference Protocol (V2) over HTTP, for Triton's clients; see app/api/README.md."""
