"""The stages: each reads one artifact and writes another."""
