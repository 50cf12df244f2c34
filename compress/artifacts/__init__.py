"""What lies between two stages, and how it is read and written."""
