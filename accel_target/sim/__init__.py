"""The simulator: values, time, events."""
