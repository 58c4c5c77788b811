"""Files of stable-baselines3 and sb3-contrib: DQN with pixels scaled and not, PPO, QR-DQN.

python tests/peers/make_sb3.py FOLDER [--small]
"""

from __future__ import annotations

import zipfile

import torch
from recording import Recording, Still, balance, draw
from sb3_contrib import QRDQN
from stable_baselines3 import DQN, PPO

RECORDING = Recording("stable-baselines3", "sb3-contrib", "gymnasium")


def save(name, model, network, head, observations, *, reads_bytes=False, policy=True):
    """Save the model, and what lies in its zip as policy.pth, as the RL Zoo's users have it."""
    draw(network, reads_bytes=reads_bytes)
    tensor = model.policy.obs_to_tensor(observations)[0]
    outputs = []
    hook = head.register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    model.policy._predict(tensor, deterministic=True)
    hook.remove()
    balance(head, outputs[0])
    actions, _ = model.predict(observations, deterministic=True)
    model.save(RECORDING.out / f"sb3_{name}.zip")
    if RECORDING.small:
        without_system(RECORDING.out / f"sb3_{name}.zip")
    RECORDING.add(f"sb3_{name}", f"sb3_{name}.zip", actions, observations)
    if policy:
        with zipfile.ZipFile(RECORDING.out / f"sb3_{name}.zip") as archive:
            (RECORDING.out / f"sb3_{name}.pth").write_bytes(archive.read("policy.pth"))
        RECORDING.add(f"sb3_{name}_policy", f"sb3_{name}.pth", actions, observations)


def without_system(path):
    """Leave out what the zip says about the computer, since the small files are published."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != "system_info.txt"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)


def values(kind, name, space, policy, observations, options, *, reads_bytes=False):
    """A method of action values."""
    model = kind(policy, Still(space, RECORDING.actions), buffer_size=1, policy_kwargs=options, device="cpu", seed=0)
    network = model.policy.q_net if kind is DQN else model.policy.quantile_net
    head = (network.q_net if kind is DQN else network.quantile_net)[-1]
    save(name, model, network, head, observations, reads_bytes=reads_bytes, policy=not RECORDING.small)


def pixels():
    """Networks of the Nature DQN's size."""
    space, frames = RECORDING.pixels, RECORDING.frames
    values(DQN, "dqn", space, "CnnPolicy", frames, {})
    values(DQN, "dqn_bytes", space, "CnnPolicy", frames, {"normalize_images": False}, reads_bytes=True)
    values(QRDQN, "qrdqn", space, "CnnPolicy", frames, {"net_arch": []})
    options = {"net_arch": [], "normalize_images": False}
    values(QRDQN, "qrdqn_bytes", space, "CnnPolicy", frames, options, reads_bytes=True)
    actor("ppo", "CnnPolicy", space, frames, {})


def actor(name, policy, space, observations, options):
    """A policy beside its critic."""
    env = Still(space, RECORDING.actions)
    model = PPO(policy, env, n_steps=2, batch_size=2, policy_kwargs=options, device="cpu", seed=0)
    save(name, model, model.policy, model.policy.action_net, observations, policy=not RECORDING.small)


def numbers():
    """Networks on four numbers."""
    values(DQN, "dqn", RECORDING.vectors, "MlpPolicy", RECORDING.numbers, {"net_arch": [16]})
    values(QRDQN, "qrdqn", RECORDING.vectors, "MlpPolicy", RECORDING.numbers, {"net_arch": [16], "n_quantiles": 5})
    actor("ppo", "MlpPolicy", RECORDING.vectors, RECORDING.numbers, {"net_arch": [16]})


torch.set_num_threads(1)
numbers() if RECORDING.small else pixels()
