"""The networks: configuration, layers, gates and one file per architecture."""
