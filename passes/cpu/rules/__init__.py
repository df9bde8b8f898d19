"""Schedule rules of the CPU target: ``rule(func, target) -> Schedule | None``, one file each."""
