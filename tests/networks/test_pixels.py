"""Pixels are scaled once for several networks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from torchrl_rtpd.networks.pixels import pixels_scaled_once
from torchrl_rtpd.networks.towers import NatureTower


def test_networks_share_scaled_pixels_inside_the_context_and_nowhere_else() -> None:
    """Inside, pixels that changed against the rule are not seen; outside, and in other threads, they are."""
    towers = [NatureTower(6, filters=(8, 8, 8), units=64), NatureTower(6, filters=(8, 8, 8), units=64)]
    pixels = torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8)
    others = torch.zeros_like(pixels)
    with torch.no_grad():
        alone = [tower(pixels) for tower in towers]
        dark = [tower(others) for tower in towers]
        with pixels_scaled_once():
            together = [tower(pixels) for tower in towers]
            pixels.zero_()
            stale = towers[0](pixels)
            with ThreadPoolExecutor(1) as thread:
                elsewhere = thread.submit(torch.no_grad()(towers[0]), pixels).result()
            other = towers[1](others)
        after = towers[0](pixels)
    assert all(torch.equal(one, two) for one, two in zip(alone, together, strict=True))
    assert torch.equal(stale, alone[0])
    assert torch.equal(elsewhere, dark[0]) and torch.equal(after, dark[0]) and torch.equal(other, dark[1])
