"""What a user can get wrong about a measurement."""


class BenchmarkError(ValueError):
    """An unusable file, setting or result; the message says the name, the value, the rule and the next step."""
