"""The analysis of logs: fit calibrations, tune the weights of policies, and write both to a file.

This package reads log files, computes, and writes policies files that a server accepts unchanged.
It serves no requests and does not know the command line. Its errors are `TuningError`s.
"""
