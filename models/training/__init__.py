"""From an experiment file to a trained network."""
