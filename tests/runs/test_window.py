"""A window shows each frame, and is refused where nobody could see it."""

from __future__ import annotations

import sys
import time

import numpy as np
import pytest

from torchrl_rtpd.runs import show_frames

FRAMES = [np.full((20, 30, 3), shade, np.uint8) for shade in (10, 20, 30)]


def test_frames_are_shown_at_their_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On SDL's own stand-in for a screen, whose surface is read while it is open: three frames of 50 ms."""
    pygame = pytest.importorskip("pygame", reason="needs the video extra")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    seen, flip = [], pygame.display.flip

    def look() -> None:
        flip()
        seen.append(pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1))

    monkeypatch.setattr(pygame.display, "flip", look)
    start = time.perf_counter()
    assert show_frames(FRAMES, frames_per_second=20) == 3
    assert time.perf_counter() - start >= 0.1
    assert all(np.array_equal(one, other) for one, other in zip(seen, FRAMES, strict=True))
    assert not pygame.display.get_init()


def test_escape_closes_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    pygame = pytest.importorskip("pygame", reason="needs the video extra")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    flip = pygame.display.flip

    def press() -> None:
        flip()
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_ESCAPE))

    monkeypatch.setattr(pygame.display, "flip", press)
    assert show_frames(FRAMES, frames_per_second=1_000) == 1


@pytest.mark.parametrize("driver", [None, "x11"])
def test_no_screen_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch, driver: str | None) -> None:
    pytest.importorskip("pygame", reason="needs the video extra")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    if driver is not None:
        monkeypatch.setenv("SDL_VIDEODRIVER", driver)
    with pytest.raises(RuntimeError, match=r"a window needs a screen: got none \(.+\); write a file instead"):
        show_frames(FRAMES, frames_per_second=20)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(ImportError, match=r"a window is opened by pygame: pip install 'torchrl_rtpd\[video\]'"):
        show_frames(FRAMES, frames_per_second=20)
