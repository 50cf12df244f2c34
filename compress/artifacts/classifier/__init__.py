"""What reads classes: a file or an artifact, opened as images to probabilities."""
