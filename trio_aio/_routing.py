"""What a device was found to do, so that the next request takes the lane that suits it.

Which filesystem serves RWF_NOWAIT, and on which a direct request is really asynchronous, depends on the filesystem, its options and the
kernel's version. No table of names can be right, so we watch: a request that the kernel would not serve without sleeping, or that was
already done when io_submit returned, is a strike against its device (and direction); a few in a row, and the requests after it make a
detour over the workers, until one is sent to try again.
"""

from __future__ import annotations

__all__ = ("Detour", "Route", "Routes")

STRIKES = 4  # in a row, before a detour: one may be an accident (a busy lock, a timestamp that was due)
DETOUR = 64  # requests, before one tries again


class Detour:
    """A way that is left for `length` requests after `limit` strikes in a row; then one is sent to try it again, and decides."""

    __slots__ = ("detour", "length", "limit", "strikes")

    def __init__(self, limit: int, length: int) -> None:
        self.limit: int = limit
        self.length: int = length
        self.strikes: int = 0
        self.detour: int = 0  # requests that it is left for yet

    def is_open(self) -> bool:
        """Whether the next request may take it; counts that request."""
        if self.detour:
            self.detour -= 1
            return False
        return True

    def strike(self) -> None:
        """Note that a request did badly here."""
        self.strikes += 1
        if self.strikes >= self.limit:
            self.strikes = self.limit - 1  # the one that tries again decides
            self.detour = self.length

    def clear(self) -> None:
        """Note that a request did well here."""
        self.strikes = 0


class Route(Detour):
    """The kernel lane (direct files) or the inline lane (buffered reads) of one device in one direction.

    A strike is a request that was not asynchronous.
    """

    __slots__ = ("nowait",)

    def __init__(self) -> None:
        super().__init__(STRIKES, DETOUR)
        self.nowait: bool = True  # the filesystem knows RWF_NOWAIT

    def strike(self) -> None:
        """Note that a request was not asynchronous here."""
        self.limit = STRIKES if self.nowait else 1  # without NOWAIT a strike is time that the event loop lost
        super().strike()


class Routes:
    """All routes, by device and kind."""

    def __init__(self) -> None:
        self._routes: dict[tuple[int, bool, bool], Route] = {}

    def find(self, device: int, *, direct: bool, writing: bool) -> Route:
        """Give the route of `device`, the same one each time."""
        key = (device, direct, writing)
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = Route()
        return route
