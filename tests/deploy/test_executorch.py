"""The commands that docs/deploy.md gives for ExecuTorch, run with it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torchrl.data import Categorical

from torchrl_rtpd.deploy.check import open_file
from torchrl_rtpd.deploy.export import export_student
from torchrl_rtpd.networks.towers import make_actor

PAGE = Path(__file__).parents[2] / "docs" / "deploy.md"
RUN = """
import sys
import numpy as np, torch
from executorch.runtime import Runtime
method = Runtime.get().load_program("deployed/net17.pte").load_method("forward")
pixels = torch.from_numpy(np.load("pixels.npy"))
outputs = [method.execute([frame[None]]) for frame in pixels]
np.savez("found.npz", *(torch.cat(parts).numpy() for parts in zip(*outputs)))
"""


@pytest.mark.peers
def test_the_documented_commands_make_a_file_that_executorch_runs(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="needs executorch")
    (tmp_path / "deployed").mkdir()
    network = make_actor("net17", Categorical(6), seed=0)
    report = export_student(network, tmp_path / "deployed" / "net17", formats=["pt2", "numpy"])
    pixels = np.random.default_rng(0).integers(256, size=(3, 4, 84, 84), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (commands,) = [block for block in blocks if "executorch" in block]
    for program in (commands, RUN):
        subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=280)
    ((_, _, run),) = open_file(report.files["numpy"].path)
    with np.load(tmp_path / "found.npz") as found:
        for own, wanted in zip(found.values(), run(pixels), strict=True):
            np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "deployed" / "net17.pte").stat().st_size < 200_000
