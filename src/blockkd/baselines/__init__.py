"""What Block-KD is compared to, each a Distiller over the same interface."""
