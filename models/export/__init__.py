"""From a trained network to an artifact in the store."""
