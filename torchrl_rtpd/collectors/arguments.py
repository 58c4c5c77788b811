"""Arguments of collectors: checks before anything starts, and environments made ready for the networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tensordict import TensorDictBase
from torchrl.data import TensorSpec, TensorStorage
from torchrl.envs import EnvBase, InitTracker

from torchrl_rtpd.collectors.policy import TeacherStudentPolicy
from torchrl_rtpd.networks.memory import START_KEY
from torchrl_rtpd.replay.storage import FrameStackStorage

__all__ = [
    "check_actions",
    "check_random_steps",
    "check_shared_storage",
    "lacks_starts",
    "taken_capture",
    "transition_writer",
    "workers_env",
]


def check_random_steps(policy: TeacherStudentPolicy, collector_kwargs: Mapping[str, Any]) -> None:
    """Refuse to record random steps, which run no network.

    Raises:
        ValueError: both were asked for.
    """
    random_frames = collector_kwargs.get("init_random_frames") or 0
    if policy.record and random_frames > 0:
        raise ValueError(
            "record=True needs the networks at every step, and random steps would be recorded as zeros: got "
            f"init_random_frames={random_frames}; warm up with an exploration of probability 1 instead."
        )


def check_actions(policy: TeacherStudentPolicy, env: EnvBase) -> None:
    """Compare the actions that networks declare with the environment's.

    Raises:
        ValueError: another number of actions, or other numbers for several choices.
    """
    wanted = _num_actions(env.action_spec)
    for role, network in {"teacher": policy.teacher, **policy.students}.items():
        spec = getattr(network, "spec", None)
        action_spec = None if spec is None else spec.get("action", None)
        found = None if action_spec is None else _num_actions(action_spec)
        if None not in (found, wanted) and found != wanted:
            raise ValueError(
                f"the {role} has {found} actions, the environment {wanted}; build it from env.action_spec."
            )


def _num_actions(spec: TensorSpec) -> int | list[int] | None:
    """Number of actions, of several choices one number each; None for continuous ones."""
    if getattr(spec, "nvec", None) is None:
        return getattr(spec, "n", None)
    choices = spec.nvec
    return list(choices) if isinstance(choices, (list, tuple)) else choices.reshape(-1, choices.shape[-1])[0].tolist()


def check_shared_storage(replay_buffer: Any) -> None:
    """Refuse a buffer that worker processes cannot write.

    Raises:
        ValueError: a storage for one writer, or one that is made in each process by itself.
    """
    storage = getattr(replay_buffer, "storage", None)
    if isinstance(storage, FrameStackStorage):
        raise ValueError(
            "a FrameStackStorage is written in order, by one writer: got workers that write on their own; let the "
            "trainer write what the collector yields, or collect with backend='direct'."
        )
    if isinstance(storage, TensorStorage) and not storage.initialized and not getattr(storage, "shared_init", False):
        raise ValueError(
            "a storage that workers write must be known to all of them before its first entry: got "
            f"{type(storage).__name__} without shared_init; build it with shared_init=True."
        )


def transition_writer(collector_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the argument that makes a collector write transitions, where TorchRL's default are rows of a batch."""
    replay_buffer = collector_kwargs.get("replay_buffer")
    one_dimension = getattr(getattr(replay_buffer, "storage", None), "ndim", 1) == 1
    whole_games = collector_kwargs.get("trajs_per_batch") is not None
    if replay_buffer is None or whole_games or not one_dimension or collector_kwargs.get("postproc") is not None:
        return {}
    return {"postproc": _transitions}


def _transitions(batch: TensorDictBase) -> TensorDictBase:
    """``[N, T]`` to ``[N * T]``, slot by slot."""
    return batch.reshape(-1)


def taken_capture(collector_kwargs: dict[str, Any]) -> bool:
    """Take ``cudagraph_policy`` out of the arguments, and return True if the policy's step is to be captured.

    TorchRL's own capture waits for the device at every step, and so does its numbering of trajectories, which is then
    left out unless it was asked for.

    Raises:
        TypeError: anything but True and False, such as options of TorchRL's own capture.
    """
    captured = collector_kwargs.pop("cudagraph_policy", None) or False
    if not isinstance(captured, bool):
        raise TypeError(f"cudagraph_policy must be True or False: got {captured!r}; the capture here has no options.")
    if captured:
        collector_kwargs.setdefault("track_traj_ids", False)
    return captured


def lacks_starts(policy: TeacherStudentPolicy, env: EnvBase) -> bool:
    """Return True if a network must know where games begin and the environment does not say so."""
    entries = {*env.full_observation_spec.keys(True, True), *env.full_state_spec.keys(True, True)}
    return START_KEY not in entries and policy.needs_starts(entries)


def workers_env(make_env: Callable[..., EnvBase], seed: int | None, tells_starts: bool, /, **kwargs: Any) -> EnvBase:
    """Make the environment of a worker.

    Args:
        make_env: the caller's function.
        seed: of the environment; None leaves it as it was made.
        tells_starts: whether to add ``"is_init"``.
        kwargs: of ``make_env``.
    """
    env = make_env(**kwargs)
    if seed is not None:
        env.set_seed(seed)
    return env.append_transform(InitTracker()) if tells_starts else env
