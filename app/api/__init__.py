"""The HTTP API apart from score calls: models, operations, errors, OpenAPI."""
