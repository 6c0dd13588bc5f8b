"""Random lives and faults of many sessions on a virtual clock, every promise checked exactly."""
