"""From a TorchScript file made elsewhere to an artifact."""
