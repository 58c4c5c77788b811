"""Names of Atari games, and answers to those that are none."""

from __future__ import annotations

import difflib
import re

import gymnasium
from ale_py import roms

__all__ = ["check_game"]


def check_game(game: str) -> None:
    """Refuse a game that ALE does not know, or on which it would end the process.

    Args:
        game: ALE's snake-case name.

    Raises:
        ValueError: another name; the message holds the nearest ones.

    Examples:
        >>> check_game("road_runer")
        Traceback (most recent call last):
        ValueError: unknown game 'road_runer': names are ALE's, in snake case, such as ms_pacman; ...
    """
    names = roms.get_all_rom_ids()
    registered = [spec for spec in gymnasium.registry.values() if spec.kwargs.get("game") in names]
    single_player = {spec.kwargs["game"] for spec in registered if spec.namespace == "ALE"}
    if game in single_player:
        return
    if game in names:
        raise ValueError(f"{game!r} has no single-player game, and ALE would end the process; choose one that has.")
    for spec in (spec for spec in registered if spec.id == game):
        skip, sticky = spec.kwargs["frameskip"], spec.kwargs["repeat_action_probability"]
        skip = f"frame_skip={skip}" if isinstance(skip, int) else f"a frame skip drawn from {skip}, not offered here"
        raise ValueError(
            f"games have ALE's names: got gymnasium's {spec.id!r}; use {spec.kwargs['game']!r}, to which that "
            f"environment adds sticky_actions={sticky} and {skip} (0.0 and 4 unless given)."
        )
    stem = re.sub(r"^ALE/|(-ram)?(Deterministic|NoFrameskip)?-v\d+$", "", str(game))  # as gymnasium or Gym called it
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in stem).lstrip("_")
    near = difflib.get_close_matches(snake, single_player, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "ale_py.roms.get_all_rom_ids() lists all names."
    raise ValueError(f"unknown game {game!r}: names are ALE's, in snake case, such as ms_pacman; {hint}")
