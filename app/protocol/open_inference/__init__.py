"""The Open Inference Protocol (V2) over HTTP, as Triton's clients speak it; see app/api/README.md."""
