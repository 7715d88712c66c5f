"""What lies on disk between training and serving: manifest, program, golden examples, store."""
