"""From features to ranked scores: queue, batch, run on a lane. No HTTP in this package."""
