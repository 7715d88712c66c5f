"""Turn a TorchScript file from elsewhere into an artifact."""
