"""Programs of the accelerator from Relax programs."""
