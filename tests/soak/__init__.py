"""A long mixed load on a real server, whose every answer is checked; see `__main__`."""
