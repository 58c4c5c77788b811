"""Pixels are scaled once for several networks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from torchrl_rtpd.networks.pixels import pixels_scaled_once, pixels_scaled_so_far, scaled, share_scaled_pixels
from torchrl_rtpd.networks.towers import NatureTower


def test_networks_share_scaled_pixels_inside_the_context_and_nowhere_else() -> None:
    """Inside they are scaled once, and again when they have changed; other threads scale their own."""
    towers = [NatureTower(6, filters=(8, 8, 8), units=64), NatureTower(6, filters=(8, 8, 8), units=64)]
    pixels = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)
    others = torch.zeros_like(pixels)
    with torch.no_grad():
        alone = [tower(pixels) for tower in towers]
        dark = [tower(others) for tower in towers]
        with pixels_scaled_once():
            together = [tower(pixels) for tower in towers]
            first, second = scaled(pixels), scaled(pixels)
            pixels.zero_()
            changed = towers[0](pixels)
            with ThreadPoolExecutor(1) as thread:
                elsewhere = thread.submit(torch.no_grad()(towers[0]), pixels).result()
            other = towers[1](others)
        after = towers[0](pixels)
    assert all(torch.equal(one, two) for one, two in zip(alone, together, strict=True))
    assert first is second and scaled(pixels) is not scaled(pixels)
    assert torch.equal(changed, dark[0])
    assert torch.equal(elsewhere, dark[0]) and torch.equal(after, dark[0]) and torch.equal(other, dark[1])


def test_pixels_are_shared_from_a_call_to_the_end_of_the_next_context() -> None:
    """As from a teacher's loss to its students, with code of others between them."""
    pixels = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)
    share_scaled_pixels()
    before = scaled(pixels)
    with pixels_scaled_once():
        assert scaled(pixels) is before
    assert scaled(pixels) is not before


def test_pixels_scaled_for_a_network_that_cannot_learn_are_not_shared() -> None:
    """A tensor of inference mode cannot be saved for a backward pass."""
    tower = NatureTower(6, filters=(8, 8, 8), units=64)
    pixels = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)
    with pixels_scaled_once():
        with torch.inference_mode():
            tower(pixels)
        tower(pixels).sum().backward()
    assert tower.head.weight.grad.any()


def test_a_context_that_is_never_closed_does_not_fill_the_memory() -> None:
    """Of a hundred tensors a few are kept."""
    share_scaled_pixels()
    kept = [torch.zeros(1, 4, 2, 2, dtype=torch.uint8) for _ in range(100)]
    found = [scaled(pixels) for pixels in kept]
    assert sum(scaled(pixels) is values for pixels, values in zip(kept, found, strict=True)) == 8
    with pixels_scaled_once():
        pass


def test_what_another_thread_shares_is_shared_for_a_while_and_then_ones_own_again() -> None:
    """As where a trainer's thread takes over a student of the minibatch before."""
    mine, theirs = torch.zeros(2, 1, 4, 2, 2, dtype=torch.uint8)
    with ThreadPoolExecutor(1) as thread, pixels_scaled_once():
        before = scaled(mine)

        def share() -> tuple[Any, torch.Tensor]:
            share_scaled_pixels()
            return pixels_scaled_so_far(), scaled(theirs)

        shared, value = thread.submit(share).result()
        with pixels_scaled_once(shared):
            assert scaled(theirs) is value and scaled(mine) is not before
        assert scaled(mine) is before and scaled(theirs) is not value
    assert pixels_scaled_so_far() is None
