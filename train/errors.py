"""What a user can get wrong about data or training."""


class TrainError(ValueError):
    """Unusable data or training settings; the message says the name, the value, the rule and the next step."""
