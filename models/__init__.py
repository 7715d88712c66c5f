"""Multi-task ranking networks: their configuration, training and export."""
