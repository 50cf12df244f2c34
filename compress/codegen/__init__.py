"""C from graphs: what to compute (`read`), where it lies (`plan`), and the text (`emit`); `program` is the face."""
