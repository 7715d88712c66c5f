"""What an analyst does beside the server: answer request files, fit calibrations, tune policies.

It never serves: it reads files, computes, and writes policy files that the server takes unchanged.
"""
