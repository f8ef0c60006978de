"""Other libraries' checkpoints: what their tensors and configurations are called and how they lie."""
