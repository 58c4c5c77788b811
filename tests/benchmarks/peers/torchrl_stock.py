"""TorchRL's stock way on the main benchmark's work, the teacher alone.

    python tests/benchmarks/peers/torchrl_stock.py --game road_runner --steps 4000 --start 1000

``GymWrapper`` around ALE's vector environment, ``Collector``, a replay buffer of whole stacks and ``DQNTrainer``, with
as many games, updates and threads as ``bench_loop.py`` gives ours. Prints ``{"steps_per_second": ...}``, agent steps a
second from the first update on.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings

import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import GymWrapper
from torchrl.modules import EGreedyModule, QValueModule
from torchrl.objectives import DQNLoss, HardUpdate
from torchrl.trainers.algorithms.dqn import DQNTrainer


class NatureNetwork(nn.Module):
    """The Nature network as one writes it: pixels scaled inside, memory left as it is."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(4, 32, 8, 4), nn.ReLU()),
            *(nn.Conv2d(32, 64, 4, 2), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(64 * 49, 512), nn.ReLU(), nn.Linear(512, num_actions)),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Action values ``[*B, A]`` of stacks ``[*B, 4, 84, 84]``."""
        return self.layers(pixels.float() / 255)


def main() -> None:
    """Train, print the speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="road_runner")
    numbers = {"steps": 4_000, "start": 1_000, "envs": 8, "batch": 32, "every": 4, "threads": 2, "seed": 0}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rollout_steps", type=int, default=8)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    env = GymWrapper(
        AtariVectorEnv(
            options.game,
            options.envs,
            num_threads=options.threads,
            episodic_life=True,
            autoreset_mode=AutoresetMode.SAME_STEP,
        ),
        categorical_action_encoding=True,
    )
    spec = env.action_spec_unbatched
    network = TensorDictModule(NatureNetwork(spec.space.n), in_keys=["observation"], out_keys=["action_value"])
    actor = TensorDictSequential(network, QValueModule(spec=spec))
    exploration = EGreedyModule(spec, eps_init=1.0, eps_end=0.01, annealing_num_steps=options.steps)
    batch = options.envs * options.rollout_steps
    collector = Collector(
        env, TensorDictSequential(actor, exploration), frames_per_batch=batch, total_frames=options.steps
    )
    loss = DQNLoss(actor, action_space=spec, loss_function="smooth_l1", delay_value=True)
    loss.make_value_estimator(gamma=0.99)
    storage = LazyTensorStorage(options.steps, device="cpu")
    trainer = DQNTrainer(
        collector=collector,
        total_frames=options.steps,
        frame_skip=1,
        optim_steps_per_batch=batch // options.every,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), lr=1e-4),
        clip_norm=10.0,
        progress_bar=False,
        replay_buffer=TensorDictReplayBuffer(storage=storage, batch_size=options.batch),
        target_net_updater=HardUpdate(loss, value_network_update_interval=200),
        greedy_module=exploration,
        log_rewards=False,
    )
    begin = {"at": time.perf_counter(), "steps": 0}

    def warm_up() -> None:
        # The trainer has no pause before learning of its own: it makes no updates until then.
        learning = trainer.collected_frames > options.start
        trainer.optim_steps_per_batch = batch // options.every if learning else 0
        if not learning:
            begin.update(at=time.perf_counter(), steps=trainer.collected_frames)

    trainer.register_op("pre_optim_steps", warm_up)
    trainer.train()
    speed = (trainer.collected_frames - begin["steps"]) / (time.perf_counter() - begin["at"])
    print(json.dumps({"steps_per_second": speed, "updates": trainer._optim_count}))


if __name__ == "__main__":
    main()
