"""What came of many inputs: accepted, refused by one typed error, or anything else, which has to be nothing."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts; `others` holds the first few inputs that did neither, with what they did."""

    tried: int = 0
    accepted: int = 0
    refused: int = 0
    others: list[str] = field(default_factory=list)

    @property
    def other(self) -> int:
        return self.tried - self.accepted - self.refused

    def wrong(self, data: object, what: object) -> None:
        """Note an input that did what none may do."""
        if len(self.others) < 20:
            self.others.append(f"{what!r} of {data!r}"[:2000])

    def __add__(self, more: Tally) -> Tally:
        return Tally(
            self.tried + more.tried,
            self.accepted + more.accepted,
            self.refused + more.refused,
            self.others + more.others,
        )

    def __str__(self) -> str:
        return f"{self.tried:,} tried, {self.accepted:,} accepted, {self.refused:,} refused, other = {self.other:,}"
