"""Observations and actions in words, one `Telling` for each kind of environment."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gymnasium

KNOWN = ("FrozenLake-v1", "CliffWalking-v1", "Taxi-v3", "Blackjack-v1", "CartPole-v1")


@dataclass(frozen=True)
class Telling:
    """How an environment speaks."""

    rules: str
    """What the first turn begins with."""
    actions: tuple[str, ...]
    """The word for each action, in Gymnasium's order."""
    observation: Callable[[Any], str]

    def action(self, reply: str) -> int | None:
        """The action that a reply names: its last word that is one of them; None for none."""
        spoken = [word for word in re.findall(r"[a-z]+", reply.lower()) if word in self.actions]
        return self.actions.index(spoken[-1]) if spoken else None


def telling(env: gymnasium.Env[Any, Any]) -> Telling:
    """How `env` speaks.

    Raises:
        ValueError: an environment that this package has no words for.
    """
    name = env.spec.id.split("-")[0] if env.spec else ""
    if name not in _TELLINGS:
        raise ValueError(f"'{name}' has no words yet; there are some for {', '.join(_TELLINGS)}")
    return _TELLINGS[name](env)


def _frozen_lake(env: gymnasium.Env[Any, Any]) -> Telling:
    squares = [[cell.decode() for cell in row] for row in env.unwrapped.desc]  # type: ignore[attr-defined]
    columns = len(squares[0])

    def seen(state: Any) -> str:
        row, column = divmod(int(state), columns)
        rows = [
            "".join("@" if (r, c) == (row, column) else cell for c, cell in enumerate(line))
            for r, line in enumerate(squares)
        ]
        return "\n".join(rows)

    return Telling(
        "Walk from S to G over ice F, not into holes H. You are @. Say left, down, right or up.",
        ("left", "down", "right", "up"),
        seen,
    )


def _cliff(env: gymnasium.Env[Any, Any]) -> Telling:
    def seen(state: Any) -> str:
        row, column = divmod(int(state), 12)
        rows = ["." * 12, "." * 12, "." * 12, "S" + "C" * 10 + "G"]
        rows[row] = rows[row][:column] + "@" + rows[row][column + 1 :]
        return "\n".join(rows)

    return Telling(
        "Walk from S to G, not onto the cliff C. You are @. Say up, right, down or left.",
        ("up", "right", "down", "left"),
        seen,
    )


def _taxi(env: gymnasium.Env[Any, Any]) -> Telling:
    places = ("red", "green", "yellow", "blue")

    def seen(state: Any) -> str:
        row, column, passenger, goal = env.unwrapped.decode(int(state))  # type: ignore[attr-defined]
        where = "in the taxi" if passenger == 4 else f"at {places[passenger]}"
        return f"Taxi at row {row}, column {column}; passenger {where}, wants to {places[goal]}."

    return Telling(
        "Drive the passenger. red is row 0 column 0, green row 0 column 4, yellow row 4 column 0, "
        "blue row 4 column 3. Say south, north, east, west, pickup or dropoff.",
        ("south", "north", "east", "west", "pickup", "dropoff"),
        seen,
    )


def _blackjack(env: gymnasium.Env[Any, Any]) -> Telling:
    def seen(state: Any) -> str:
        ours, theirs, ace = (int(part) for part in state)
        usable = " with a usable ace" if ace else ""
        return f"You have {ours}{usable}; the dealer shows {theirs}."

    return Telling(
        "Get nearer to 21 than the dealer, not over it. Say stick or hit.", ("stick", "hit"), seen
    )


def _cartpole(env: gymnasium.Env[Any, Any]) -> Telling:
    def seen(state: Any) -> str:
        position, speed, angle, turning = (float(part) for part in state)
        return (
            f"Cart at {position:+.1f}, speed {speed:+.1f}; pole leans {angle:+.2f}, turning "
            f"{turning:+.1f}."
        )

    return Telling("Keep the pole upright. Say left or right.", ("left", "right"), seen)


_TELLINGS: dict[str, Callable[[gymnasium.Env[Any, Any]], Telling]] = {
    "FrozenLake": _frozen_lake,
    "CliffWalking": _cliff,
    "Taxi": _taxi,
    "Blackjack": _blackjack,
    "CartPole": _cartpole,
}
