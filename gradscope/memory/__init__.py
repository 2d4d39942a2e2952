"""What of a run's frames and pulses stays in memory, live and when its record is read."""
