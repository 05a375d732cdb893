"""Where experts tie, so that rounding decides whom a router sends a token to, PyTorch follows the engine.

Two experts whose router logits differ by less than rounding are equally right; an engine that takes the other
one is far from PyTorch at that token, and behind it, without being wrong. So, after a comparison that failed,
the engine's own router logits are looked at, and the reference runs once more: at tokens whose last chosen
and first dropped expert tie *in the reference*, the logits of those experts are put in the engine's order.
That moves a logit by no more than the tie, so all else is compared as strictly as before; a router that is
wrong beyond rounding finds no tie to hide in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from q2export.compare.verify.activations import ROUTER
from q2export.compare.verify.engine_probe import EngineProbe
from q2export.runtime.backends.base import Float32Array

TIE = 2.0**-16
"""Logits tie that differ by at most this fraction of the token's largest: twice what a healthy stage adds."""

BoolArray = npt.NDArray[np.bool_]

_STEP = 2.0**-21  # tells equal logits apart: some units in the last place of a float32 probability


def router_names(probe: EngineProbe) -> list[str]:
    """The routers whose logits the engine can show."""
    return [one.name for one in probe.activations() if one.name.endswith(f".{ROUTER}")]


class RouterTies:
    """The engine's order of experts that tie; ``followed`` counts the choices of the reference it decided."""

    def __init__(self, engine: Sequence[Mapping[str, Float32Array]], top_k: int) -> None:
        """Remember what the engine's routers say.

        Args:
            engine: per sequence, router logits ``[tokens, num_experts]`` by module path.
            top_k: experts per token.
        """
        self._engine = engine
        self._top_k = top_k
        self.followed = 0
        self._first: dict[int, int] = {}

    def first_token(self, sequence: int) -> int | None:
        """The first token of a sequence that was followed, in any layer; None where none was."""
        return self._first.get(sequence)

    def only(self, sequence: int) -> RouterTies:
        """The same for one of the sequences alone."""
        return RouterTies([self._engine[sequence]], self._top_k)

    def __call__(self, name: str, sequence: int, logits: Float32Array) -> Float32Array:
        """Router logits ``[tokens, num_experts]`` of the reference, with ties in the engine's order.

        Args:
            name: module path of the router. sequence: index of the sequence.
            logits: of the first tokens of it, or of all.
        """
        changed = logits.copy()
        for row in np.flatnonzero(_tied(logits, self._top_k)):
            wanted = _chosen(self._engine[sequence][name][row], self._top_k)
            ordered = _in_order(logits[row], self._top_k, wanted)
            if set(_chosen(ordered, self._top_k)) == set(wanted):  # else the engine's choice is no tie
                changed[row] = ordered
                self.followed += 1
                self._first[sequence] = min(int(row), self._first.get(sequence, int(row)))
        return changed


def _tied(logits: Float32Array, top_k: int) -> BoolArray:
    """Which tokens have a dropped expert that ties with a chosen one."""
    if top_k >= logits.shape[1]:
        return np.zeros(len(logits), dtype=np.bool_)
    ranked = -np.sort(-logits, axis=1)
    scale = np.abs(logits).max(axis=1)
    tied: BoolArray = ranked[:, top_k - 1] - ranked[:, top_k] <= TIE * scale
    return tied


def _chosen(logits: Float32Array, top_k: int) -> list[int]:
    """The experts of one token: the largest float32 probabilities, of equal ones the first."""
    weights = np.exp(logits - logits.max(), dtype=np.float32)
    return [int(index) for index in np.argsort(-(weights / weights.sum()), kind="stable")[:top_k]]


def _in_order(logits: Float32Array, top_k: int, wanted: Sequence[int]) -> Float32Array:
    """One token's logits; those that tie with the last chosen trade places until ``wanted`` come first."""
    scale = float(np.abs(logits).max())
    last = float(-np.sort(-logits)[top_k - 1])
    group = np.flatnonzero(np.abs(logits - last) <= TIE * scale)
    preferred = sorted(group, key=lambda expert: (expert not in wanted, expert))
    changed = logits.copy()
    changed[preferred] = -np.sort(-logits[group])
    changed[[expert for expert in preferred if expert in wanted]] += np.float32(_STEP * max(1.0, scale))
    return changed
