"""What a user can get wrong about a reference network."""


class ModelError(ValueError):
    """An unusable network configuration; the message says the name, the value, the rule and the next step."""
