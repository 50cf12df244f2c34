"""Functions that take turns: each goes on until it waits, one at a time, and all of them are under way.

By hand: of two functions that each say a, wait, and say b, a is heard twice in the first round, and b twice in the second.

Each runs in a thread of its own, as a forward pass cannot be left and gone on with otherwise.
"""

from collections.abc import Callable, Sequence
from threading import Semaphore, Thread
from types import TracebackType


class Abandoned(Exception):
    """Whoever waits is not to go on."""


class Turns:
    """As the module says; inside of ``with``, at whose end what still waits is abandoned.

    ``current``: the number of the function whose turn it is.
    """

    def __init__(self, functions: Sequence[Callable[[], None]]) -> None:
        self.current = 0
        self._over = False
        self._error: BaseException | None = None
        self._all, self._own = Semaphore(0), [Semaphore(0) for _ in functions]
        self._under_way = {at: Thread(target=self._run, args=(at, function), daemon=True) for at, function in enumerate(functions)}

    def round(self) -> bool:
        """Give each a turn; whether one is still under way. Raises what one of them raised."""
        for number in [*self._under_way]:
            self.current = number
            self._own[number].release()
            self._all.acquire()
            if self._error is not None:
                raise self._error
        return bool(self._under_way)

    def wait(self) -> None:
        """Called by the one whose turn it is: until its next one. Raises :class:`Abandoned` where there is none."""
        number = self.current
        self._all.release()
        self._own[number].acquire()
        if self._over:
            raise Abandoned

    def _run(self, number: int, function: Callable[[], None]) -> None:
        self._own[number].acquire()
        try:
            if not self._over:
                function()
        except Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001  # it is raised where the turn was given
            self._error = error
        finally:
            self._under_way.pop(number, None)
            self._all.release()

    def __enter__(self) -> "Turns":
        for thread in self._under_way.values():
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over, left = True, [*self._under_way.items()]
        for number, _ in left:
            self._own[number].release()
        for _, thread in left:
            thread.join()
