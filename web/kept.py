"""What was made lately, up to so many characters; what a page needs stays until it is shown."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """A cache by text that forgets what was not used for longest."""

    def __init__(self, characters: int, size: Callable[[T], int]) -> None:
        self._most, self._size, self._characters = characters, size, 0
        self._made: OrderedDict[str, T] = OrderedDict()
        self._held: dict[str, T] = {}
        self._holders: Counter[str] = Counter()

    def __contains__(self, text: str) -> bool:
        return text in self._made

    def get(self, text: str) -> T | None:
        if (made := self._made.get(text)) is not None:
            self._made.move_to_end(text)
            return made
        return self._held.get(text)

    def put(self, text: str, made: T) -> None:
        if (before := self._made.pop(text, None)) is not None:
            self._characters -= len(text) + self._size(before)
        self._made[text] = made
        self._characters += len(text) + self._size(made)
        while self._characters > self._most and len(self._made) > 1:
            old, gone = self._made.popitem(last=False)
            self._characters -= len(old) + self._size(gone)

    def hold(self, text: str, made: T) -> None:
        """Keep it until `release`, also where it is not to be kept any longer."""
        self._held[text] = made
        self._holders[text] += 1

    def release(self, text: str) -> None:
        self._holders[text] -= 1
        if not self._holders[text]:
            del self._holders[text], self._held[text]
