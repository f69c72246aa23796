"""What the engine's benchmark measures."""
