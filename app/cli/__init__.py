"""The `gatehouse` command: one file per subcommand."""
