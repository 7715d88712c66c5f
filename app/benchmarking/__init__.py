"""Load for a server over HTTP, and what it measures: the generator, sweeps, reports and plans."""
