"""What a network looks at: gates, and what of an image speaks for a class."""
