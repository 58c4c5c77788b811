"""An exported student as a policy: the file plays where the network itself would."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from torchrl_rtpd.deploy.check import open_file

__all__ = ["load_exported"]


def load_exported(path: str | os.PathLike) -> TensorDictModule:
    """Return the policy in a file of :func:`~torchrl_rtpd.deploy.export_student`, run by the file's own runtime.

    It reads the student's entries, runs on one thread of the CPU and writes ``action_value`` ``[*B, A]`` and ``action``
    ``[*B]``, the number of the greedy action. It holds no parameters and does not learn.

    Args:
        path: the file of one format, such as ``deployed/net17.onnx``; where a file holds several, the first is taken.

    Raises:
        FileNotFoundError: no such file, or no card beside it.
        ValueError: no file of an exported student; one whose student remembers, which has more to hand on.
        ImportError: its runtime is not installed.

    Examples:
        >>> import tempfile
        >>> from tensordict import TensorDict
        >>> from torchrl.data import Categorical
        >>> from torchrl_rtpd.deploy import export_student
        >>> from torchrl_rtpd.networks import make_actor
        >>> student = make_actor("net1", Categorical(6), seed=0)
        >>> place = tempfile.mkdtemp() + "/net1"
        >>> _ = export_student(student, place, formats=["numpy"])
        >>> step = TensorDict({"pixels": torch.zeros(1, 4, 84, 84, dtype=torch.uint8)}, [1])
        >>> load_exported(place + ".npz")(step.clone())["action"].equal(student(step)["action"])
        True
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no exported student at {path}: give a file that export_student wrote.")
    threads = torch.get_num_threads()
    _, card, run = next(open_file(path))
    torch.set_num_threads(threads)  # the runtime of a .pt2 is torch itself
    inputs, outputs = ([entry["name"] for entry in card[kind]] for kind in ("inputs", "outputs"))
    if len(outputs) != 2:
        raise ValueError(
            f"an exported policy gives values and an action: got {outputs} in {path.name}, of a student that "
            "remembers; play the student's weights instead."
        )
    return TensorDictModule(_Runtime(run), inputs, outputs)


class _Runtime(nn.Module):
    """A function of arrays as a module of tensors."""

    def __init__(self, run: object) -> None:
        super().__init__()
        self._run = run

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self._run(*(tensor.cpu().contiguous().numpy() for tensor in inputs))  # type: ignore[operator]
        return tuple(torch.as_tensor(array) for array in found)
