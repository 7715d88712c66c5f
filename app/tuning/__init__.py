"""What an analyst does with logs: fit calibrations, tune the weights of policies, write them down.

This package reads log files, computes, and writes policies files that a server accepts unchanged.
It serves no requests and does not know the command line. Its errors are `TuningError`s.
"""
