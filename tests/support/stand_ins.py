"""What several tests put in the place of something else."""


class Silent:
    """A console that remembers what was said and checks what it is shown of the progress."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, label: str, done: int, total: int) -> None:
        assert 0 <= done <= total
