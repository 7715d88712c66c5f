"""Task scores to rank scores to an order; pure NumPy, knows no model and no HTTP."""
