"""Who runs, and in which slots. Those that generate are in the first ones: a step over them is one call."""

from __future__ import annotations

from collections.abc import Iterator

from q2export.runtime.scheduler.arena import Arena
from q2export.runtime.scheduler.request import Request
from q2export.runtime.scheduler.slots import Resident, Slots


class Lineup:
    """The sequences that run.

    Args:
        arena: that they run in.
    """

    def __init__(self, arena: Arena) -> None:
        self.slots = Slots(arena)
        self.prefilling: list[Resident] = []
        """Whose prompts are being computed, in any slots."""
        self.decoding: list[Resident] = []
        """Those that generate, each in the slot of its place."""

    def __len__(self) -> int:
        return len(self.prefilling) + len(self.decoding)

    def __iter__(self) -> Iterator[Resident]:
        yield from self.decoding
        yield from self.prefilling

    @property
    def last(self) -> Resident:
        """The one that goes first when some must go."""
        return max(self, key=lambda each: each.running.rank)

    def begin(self, request: Request) -> Resident:
        """Give a request a slot, and what there is of its tokens; the rest is to be computed."""
        resident = self.slots.settle(request, len(self.decoding))
        self.prefilling.append(resident)
        return resident

    def join(self, resident: Resident) -> Resident | None:
        """Let a sequence whose prompt is computed generate, in the slot behind the others.

        Returns:
            who is in that slot and can go nowhere; nothing has changed then.
        """
        slot = len(self.decoding)
        there = self.slots[slot]
        if there is not None and there is not resident and not self.slots.move_away(there):
            if there.request is not None:
                return there
            self.slots.drop(there)
        if resident.slot != slot:
            self.slots.move(resident, slot)
        self.prefilling.remove(resident)
        self.decoding.append(resident)
        return None

    def leave(self, resident: Resident, keep: bool) -> None:
        """Take a sequence away; what it leaves stays as a prefix, if ``keep`` and if it may."""
        kept, slot, last = keep and self.slots.keep(resident), resident.slot, resident
        if resident in self.prefilling:
            self.prefilling.remove(resident)
        else:
            last = self.decoding.pop()  # it takes the slot, unless it is the one itself
        if not kept or (last is not resident and not self.slots.move_away(resident)):
            self.slots.drop(resident)
        if last is not resident:
            self.slots.move(last, slot)
            self.decoding[slot] = last

    def free(self) -> None:
        """Let go of the arena."""
        self.slots.free()

    def clear(self) -> None:
        """Forget everything."""
        self.prefilling.clear()
        self.decoding.clear()
        self.slots.clear()
