"""Tasks other than classes: data and a score that functions of the user's own give."""
