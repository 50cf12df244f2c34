"""Channel groups: found, scored, cut."""
