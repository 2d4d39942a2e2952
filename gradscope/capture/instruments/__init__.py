"""What adds columns of its own to the frames: one instrument, one file, and what it needs to read."""
