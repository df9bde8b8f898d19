"""Functions written by hand in TIR, for any target."""
