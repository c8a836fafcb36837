"""What a training step costs: methods side by side, in seconds, arithmetic and memory (``blockkd bench``)."""
