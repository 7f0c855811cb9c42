"""Steps of a task that a test listens to."""

from collections.abc import Callable


class Calling:
    """Calls a function with every count, of new work and of what was found."""

    def __init__(self, function: Callable[[int], None]) -> None:
        self.found = self.warm = function

    def __call__(self, count: int) -> None:
        self.found(count)

    def within(self, count: float) -> None:
        pass
