"""Gatehouse, online ranking: one user, n candidates, a score per task, one rank score."""
