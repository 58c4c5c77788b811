"""A small training run for tests, with all that a real one has, on games that can be saved and restored.

``N`` slots; a game is a dot that walks on a screen of 84 x 84 until it meets an edge.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import torch
from tensordict import TensorDict
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.modules import EGreedyModule
from torchrl.objectives import DQNLoss, HardUpdate
from torchrl.trainers import LRSchedulerHook
from torchrl.trainers.algorithms.dqn import DQNTrainer

from torchrl_rtpd import (
    BoundedHistory,
    CudaGraphStepper,
    DormancyCheck,
    DualNetworkCollector,
    Evaluator,
    FrameStackStorage,
    KeepWarmupData,
    LinearSchedule,
    RealTimeDistillTrainer,
    RecyclingCheck,
    StudentDQNLoss,
    UnitRecycler,
    make_actor,
    make_replay_buffer,
)
from torchrl_rtpd.files.verified import StateAdapter, VerifiedCheckpoint
from torchrl_rtpd.runs.checkpoints import SaveCheckpoints
from torchrl_rtpd.runs.monitor import RunMonitor

SLOTS, ROLLOUT = 2, 4
BATCH_STEPS = SLOTS * ROLLOUT


class WalkEnv(EnvBase):
    """A dot that one of three actions moves; a step to the right scores 1. Its games can be saved."""

    def __init__(self, slots: int = SLOTS, seed: int = 0) -> None:
        super().__init__(batch_size=[slots])
        size, flag = (slots, 4, 84, 84), (slots, 1)
        self.observation_spec = Composite(
            pixels=Unbounded(shape=size, dtype=torch.uint8),
            episode_reward=Unbounded(shape=flag),
            end_of_life=Binary(shape=flag, dtype=torch.bool),
            shape=[slots],
        )
        self.action_spec = Categorical(3, shape=(slots,))
        self.action_spec_unbatched = Categorical(3)
        self.reward_spec = Unbounded(shape=flag)
        flags = {name: Binary(shape=flag, dtype=torch.bool) for name in ("done", "terminated", "truncated")}
        self.done_spec = Composite(**flags, shape=[slots])
        self.generator = torch.Generator()
        self.places = torch.zeros(slots, dtype=torch.int64)
        self.stacks = torch.zeros(size, dtype=torch.uint8)
        self.scores = torch.zeros(flag)
        self.set_seed(seed)

    def _set_seed(self, seed: int | None) -> None:
        self.generator.manual_seed(0 if seed is None else int(seed))

    def _show(self, begins: torch.Tensor) -> None:
        frames = torch.full((len(self.places), 84, 84), 10, dtype=torch.uint8)
        for slot, place in enumerate(self.places.tolist()):
            frames[slot, 40:44, 4 * place : 4 * place + 4] = 255
        older = torch.where(begins.view(-1, 1, 1, 1), torch.zeros_like(self.stacks), self.stacks)
        self.stacks = torch.cat([older[:, 1:], frames[:, None]], 1)

    def _entries(self, end: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixels": self.stacks.clone(), "episode_reward": self.scores.clone(), "end_of_life": end}

    def _reset(self, tensordict: TensorDict | None = None, **_: object) -> TensorDict:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        begins = torch.ones(len(self.places), dtype=torch.bool) if mask is None else mask.view(-1)
        fresh = torch.randint(5, 15, self.places.shape, generator=self.generator)
        self.places = torch.where(begins, fresh, self.places)
        self.scores = torch.where(begins[:, None], torch.zeros_like(self.scores), self.scores)
        before = self.stacks
        self._show(begins)
        self.stacks = torch.where(begins.view(-1, 1, 1, 1), self.stacks, before)
        return TensorDict(self._entries(torch.zeros_like(self.scores, dtype=torch.bool)), self.batch_size)

    def _step(self, tensordict: TensorDict) -> TensorDict:
        wind = torch.randint(-1, 2, self.places.shape, generator=self.generator)
        moved = (self.places + tensordict["action"] - 1 + wind).clamp(0, 20)
        reward = (moved > self.places).float()[:, None]
        self.places = moved
        self.scores = self.scores + reward
        over = ((moved == 0) | (moved == 20))[:, None]
        self._show(torch.zeros(len(moved), dtype=torch.bool))
        flags = {"done": over, "terminated": over, "truncated": torch.zeros_like(over)}
        return TensorDict({**self._entries(over), "reward": reward, **flags}, self.batch_size)

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, torch.Tensor]:
        tensors = {"places": self.places, "stacks": self.stacks, "scores": self.scores}
        return {**{name: tensor.clone() for name, tensor in tensors.items()}, "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, torch.Tensor], **kwargs: object) -> None:
        if state_dict:  # TorchRL's collector hands over an empty one
            self.generator.set_state(state_dict["generator"])
            self.places, self.stacks, self.scores = (state_dict[name] for name in ("places", "stacks", "scores"))


class ForgetfulEnv(WalkEnv):
    """The same, like ALE: what it is about to show cannot be saved."""

    state_dict = torch.nn.Module.state_dict


def small_run(
    folder,
    total_steps: int = 160,
    *,
    env: EnvBase | None = None,
    slots: int = SLOTS,
    replay: bool = True,
    every_steps: int = 40,
    prioritized: bool = False,
    evaluate_every_steps: int = 48,
    learning_rate: float = 1e-3,
    logger=None,
    device: str = "cpu",
    captured: bool = False,
) -> SimpleNamespace:
    """Build a run with teacher, student and everything that has a state; nothing is trained yet.

    Networks and replay lie on ``device``, games on the CPU; ``captured`` updates are one CUDA graph there.
    """
    torch.manual_seed(0)
    env = WalkEnv(slots) if env is None else env
    networks = {
        name: make_actor(tower, env.action_spec, seed=seed, device=device)
        for seed, (name, tower) in enumerate({"teacher": "net3", "net17": "net17"}.items())
    }
    exploration = EGreedyModule(spec=env.action_spec_unbatched, annealing_num_steps=300, device=device)
    collector = DualNetworkCollector(
        env,
        networks["teacher"],
        networks["net17"],
        acting=0.25,
        acting_seed=3,
        exploration=exploration,
        frames_per_batch=BATCH_STEPS,
        total_frames=total_steps,
        init_random_frames=16,
        policy_device=device,
        env_device="cpu",
        storing_device=device,
    )
    storage = FrameStackStorage(96, num_envs=slots, steps_per_write=BATCH_STEPS // slots, n_step=3, device=device)
    buffer = make_replay_buffer(storage, batch_size=4, prioritized=prioritized, seed=7)
    loss = DQNLoss(networks["teacher"], action_space="categorical")
    loss.set_keys(terminated="end_of_life")
    loss.make_value_estimator(gamma=0.99)
    optimizer = torch.optim.Adam(loss.parameters(), lr=learning_rate, fused=True)
    trainer = DQNTrainer(
        collector=collector,
        total_frames=total_steps,
        frame_skip=1,
        optim_steps_per_batch=2,
        loss_module=loss,
        optimizer=optimizer,
        logger=logger,
        log_interval=16,
        progress_bar=False,
        replay_buffer=buffer,
        target_net_updater=HardUpdate(loss, value_network_update_interval=5),
        greedy_module=exploration,
        episode_reward_key="episode_reward",
    )
    BoundedHistory().register(trainer)
    KeepWarmupData(buffer).register(trainer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda batch: 0.9**batch)
    LRSchedulerHook(schedule).register(trainer, name="lr_scheduler.teacher")
    student = StudentDQNLoss(networks["net17"], teacher_temperature="auto")
    student.set_keys(terminated="end_of_life")
    student.make_value_estimator(gamma=0.99)
    hook = RealTimeDistillTrainer(
        {"net17": student},
        optimizer=partial(torch.optim.Adam, lr=learning_rate, fused=True),
        schedules={"distill_coeff": LinearSchedule(1.0, 0.5, end_updates=30)},
        checks=[DormancyCheck(every_updates=5), RecyclingCheck(UnitRecycler(every_updates=7, seed=1))],
    )
    if captured:
        CudaGraphStepper(hook).register(trainer)
    else:
        hook.register(trainer)
    evaluator = Evaluator(partial(WalkEnv, SLOTS), episodes=SLOTS, max_steps=30, seed=100)
    monitor = RunMonitor(
        networks,
        evaluator,
        folder,
        distiller=hook,
        evaluate_every_steps=evaluate_every_steps,
        log_every_steps=16,
        logger=logger,
        progress_bar=False,
    )
    monitor.register(trainer)
    saver = SaveCheckpoints(
        folder / "checkpoints", every_steps=every_steps, keep_last=9, replay=replay, monitor=monitor
    )
    saver.register(trainer)
    return SimpleNamespace(**locals())


def bits(value):
    """A state as nested plain values, so that ``==`` compares it bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().cpu().contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return value


def whole_state(run) -> dict:
    """Everything a run has at its end, as its last checkpoint holds it; without clocks and the time spent saving."""
    path = run.saver.latest()
    components = VerifiedCheckpoint.verify(path)["components"]
    state = {name: StateAdapter(name).read(path / record["path"])[1] for name, record in components.items()}
    for clock in ("clock", "metrics"):
        state["trainer_module.run_monitor"].pop(clock)
    state.pop("trainer_module.save_checkpoints")
    state.pop("replay_buffer", None)  # its files hold places that were never written
    state["replay"] = run.buffer[:].to_dict()
    return bits(state)


def entry(name, parameters, latency, score):
    """A network of results.json with a standard error of 1."""
    return {
        "name": name,
        "parameters": parameters,
        "latency_ms": latency,
        "score_mean": score,
        "score_standard_error": 1.0,
    }


FLEET = {
    "game": "pong",
    "random_score": -20.0,
    "networks": [
        entry("teacher", 100, 2.0, 9.0),
        entry("large", 50, 1.0, 5.0),
        entry("dominated", 60, 1.0, 5.0),
        entry("small", 10, 1.0, 7.0),
        entry("quick", 20, 0.5, 6.0),
    ],
}
