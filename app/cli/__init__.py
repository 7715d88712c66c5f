"""The `gatehouse` command: its subcommands and what they share; the Ray Serve application."""
