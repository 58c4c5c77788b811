"""A window that shows frames, uint8 ``[H, W, 3]`` each, where there is a screen."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

__all__ = ["show_frames"]


def show_frames(frames: Sequence[np.ndarray], *, frames_per_second: float, title: str = "torchrl_rtpd") -> int:
    """Show frames in a window at their speed, once; the window's button or Escape closes it before.

    Args:
        frames: ``T`` arrays uint8 ``[H, W, 3]`` of one shape, such as :class:`~torchrl_rtpd.runs.SideBySide`.
        frames_per_second: speed at which they are shown.
        title: of the window.

    Returns:
        Frames that were shown.

    Raises:
        RuntimeError: no screen.
        ImportError: pygame is not installed.

    Examples:
        ``show_frames(frames, frames_per_second=frames.frames_per_second)``; ``examples/play.py --render human`` shows
        it at work.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
    except ImportError as error:
        raise ImportError("a window is opened by pygame: pip install 'torchrl_rtpd[video]'.") from error
    try:
        _open_screen(pygame)
        height, width = frames[0].shape[:2]
        window, clock = pygame.display.set_mode((width, height)), pygame.time.Clock()
        pygame.display.set_caption(title)
        for number, frame in enumerate(frames):
            for event in pygame.event.get():
                if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                    return number
            window.blit(pygame.surfarray.make_surface(frame.swapaxes(0, 1)), (0, 0))
            pygame.display.flip()
            clock.tick(frames_per_second)
        return len(frames)
    finally:
        pygame.display.quit()


def _open_screen(pygame: object) -> None:
    """Refuse what is no screen: without one SDL draws where nobody looks, unless it was told to."""
    try:
        pygame.display.quit()  # type: ignore[attr-defined] # of games that were drawn without a screen
        pygame.display.init()  # type: ignore[attr-defined]
        driver = pygame.display.get_driver()  # type: ignore[attr-defined]
    except pygame.error as error:  # type: ignore[attr-defined]
        driver, reason = None, str(error)
    else:
        reason = f"SDL found only {driver!r}"
    if driver is None or (driver == "offscreen" and "SDL_VIDEODRIVER" not in os.environ):
        raise RuntimeError(f"a window needs a screen: got none ({reason}); write a file instead, or set DISPLAY.")
