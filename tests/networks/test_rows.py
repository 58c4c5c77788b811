"""Recurrent layers by themselves, beside TorchRL's modules: the same outputs, gradients and memory, to the last bit."""

from __future__ import annotations

import pytest
import torch
from recurrent_parts import layer_of, memory_of, recurrent_actor, rows
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.modules import GRUModule, set_recurrent_mode

from torchrl_rtpd.networks.memory import next_key
from torchrl_rtpd.networks.rows import begins_within, run_rows, through_rows

KINDS = [("lstm", 1), ("gru", 1), ("lstm", 2), ("gru", 2)]


def unbroken(actor: TensorDictSequential, *, stored: bool) -> TensorDict:
    """Rows in which games begin at first steps alone."""
    batch = rows(remembers=(actor,) if stored else ()).exclude("teacher")
    batch["is_init"][:, 1:] = False
    return batch


@pytest.mark.parametrize("stored", [False, True], ids=["zeros", "stored"])
@pytest.mark.parametrize("groups", [False, True], ids=["rows", "groups"])
@pytest.mark.parametrize(("kind", "layers"), KINDS)
def test_a_layer_gives_what_its_module_gives(kind: str, layers: int, groups: bool, stored: bool) -> None:
    """Outputs, gradients, and the memory after the last step; of rows [4, T] or [2, 2, T]."""
    actor = recurrent_actor(kind, 3, layers=layers).double()
    batch = unbroken(actor, stored=stored)
    batch = batch.reshape(2, 2, 7) if groups else batch
    gradients, outputs = [], []
    for parts in (list(actor)[:2], [TensorDictSequential(*list(actor)[:2])]):  # inside of a sequence it is not seen
        with set_recurrent_mode(True):
            found, reached = through_rows(parts, batch.copy())
        gradients.append(torch.autograd.grad(found["action_value"].square().sum(), list(layer_of(actor).parameters())))
        outputs.append(found)
        if reached:
            last = reached
    assert set(last) == set(memory_of(actor))
    assert torch.equal(outputs[0]["action_value"], outputs[1]["action_value"])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    for key, value in last.items():
        assert torch.equal(value, outputs[1][next_key(key)].select(batch.ndim - 1, -1))
        assert next_key(key) not in outputs[0].keys(True)


def test_rows_within_which_games_begin_are_left_to_the_module() -> None:
    """Which writes the memory of every step, here nothing else tells."""
    actor = recurrent_actor("gru", 3).double()
    assert begins_within(rows()) and not begins_within(unbroken(actor, stored=False))
    with set_recurrent_mode(True):
        found, reached = through_rows(list(actor)[:2], rows())
    assert not reached and ("next", "recurrent_state") in found.keys(True)


@pytest.mark.parametrize("why", ["hook", "reader", "scan"])
def test_modules_that_do_more_are_run_themselves(why: str) -> None:
    """One that is watched, one whose memory another part reads, and one that looks at beginnings by itself."""
    actor = recurrent_actor("gru", 3).double()
    parts, calls = list(actor)[:2], []
    if why == "hook":
        parts[0].register_forward_hook(lambda *_: calls.append(1))
    elif why == "reader":
        parts.append(TensorDictModule(nn.Identity(), in_keys=[("next", "recurrent_state")], out_keys=["again"]))
    else:
        parts[0].recurrent_backend = "scan"
        parts[0]._gru = lambda *args, **kwargs: (
            calls.append(1) or GRUModule._gru(parts[0], *args, **{**kwargs, "is_init": None, "backend": "pad"})
        )
    with set_recurrent_mode(True):
        found, reached = through_rows(parts, unbroken(actor, stored=False))
    assert not reached and ("next", "recurrent_state") in found.keys(True)
    assert calls == ([] if why == "reader" else [1])


def test_the_rows_go_on_from_their_memory() -> None:
    """Of the whole, the last three steps from the memory after the first four."""
    actor = recurrent_actor("lstm", 3).double()
    whole = unbroken(actor, stored=False)
    first, rest = whole[:, :4].clone(), whole[:, 4:].clone()
    run_rows(actor[0], whole)
    for key, value in run_rows(actor[0], first).items():
        rest[key] = value.unsqueeze(1).expand(4, 3, 1, 3)
    run_rows(actor[0], rest)
    torch.testing.assert_close(rest["features"], whole["features"][:, 4:])
