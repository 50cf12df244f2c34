"""Other machines as places to time candidates in: which are known, how one is reached, and what runs there."""
