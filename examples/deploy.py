"""From student to device: export a student, check its files, play with onnxruntime alone, and look at it.

    python examples/deploy.py runs/mine/net17.safetensors pong

Writes ``deployed/net17.*`` and ``deployed/net17.gif`` in about a minute on two CPU cores. Needs the export and plots
extras. Without weights (``-`` instead of a file) the student is untrained, to see how it goes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from torchrl_rtpd import AtariVecEnv, export_student, load_weights, make_actor
from torchrl_rtpd.deploy.check import check_file


def play(session: Any, env: AtariVecEnv, steps: int) -> tuple[float, list[np.ndarray]]:
    """Play with the file alone: its score so far and the screens that it saw."""
    state, score, screens = env.reset(), 0.0, []
    for _ in range(steps):
        pixels = state["pixels"].numpy()
        _, action = session.run(None, {"pixels": pixels})
        state["action"] = env.action_spec.zero()
        state["action"][:] = state["action"].new_tensor(action)
        stepped, state = env.step_and_maybe_reset(state)
        score += float(stepped["next", "raw_reward"].sum())
        screens.append(pixels[0, -1])
        if bool(stepped["next", "done"].any()):
            break
    return score, screens


def main(arguments: list[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="a file of save_weights, or - for an untrained student")
    parser.add_argument("game")
    parser.add_argument("--network", default="net17")
    parser.add_argument("--formats", nargs="+", default=["onnx", "onnx_int8"])
    parser.add_argument("--steps", type=int, default=1000, help="decisions to play at most")
    parser.add_argument("--out", type=Path, default=Path("deployed"))
    given = parser.parse_args(arguments)

    env = AtariVecEnv(given.game, 1, seed=1, clip_rewards=False)
    student = make_actor(given.network, env.action_spec, seed=0)
    if given.weights != "-":
        load_weights(student, given.weights)
    report = export_student(
        student, given.out / given.network, formats=given.formats, metadata={"game": given.game, "frame_skip": 4}
    )
    print(report)
    for file in dict.fromkeys(entry.path for entry in report.files.values()):
        for outcome in check_file(file):
            print(f"{outcome.format}: {'; '.join(outcome.problems) or 'self-check passed'}")

    import onnxruntime  # all that the device needs

    session = onnxruntime.InferenceSession(str(report.files["onnx"].path), providers=["CPUExecutionProvider"])
    score, screens = play(session, env, given.steps)
    print(f"onnxruntime scored {score:g} in {len(screens)} decisions")
    images = [Image.fromarray(screen).resize((168, 168)) for screen in screens[::2]]
    path = given.out / f"{given.network}.gif"
    images[0].save(path, save_all=True, append_images=images[1:], duration=66, loop=0)
    return path


if __name__ == "__main__":
    main()
