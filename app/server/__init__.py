"""Sockets and the process: connections, TLS, signals, start and shutdown."""
