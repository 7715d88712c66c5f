"""Task scores to calibrated scores, rank scores and an order. NumPy only; no models, no HTTP."""
