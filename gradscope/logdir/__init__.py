"""What a run leaves on disk: event files that TensorBoard reads too, written and read back."""
