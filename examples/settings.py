"""Keys of the main example and of its twin: type, default, range and help of each, in this one place.

YAML files in config/ hold values, ``python examples/rtpd_atari.py --help`` prints what stands here. Steps are agent
decisions, updates are gradient steps; a frame is a step divided by the frame skip of 4. A key without a default gets
its value from a preset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from algorithms import ALGORITHMS
from learning import TEACHERS
from methods import METHODS

from torchrl_rtpd.deploy.formats import FORMATS
from torchrl_rtpd.objectives.discrete import DIVERGENCES
from torchrl_rtpd.runs.config import setting
from torchrl_rtpd.runs.guards import POLICIES

MANY, SHARE = "[1, 1e12]", "[0, 1]"
RENAMED = {"teacher.checkpoint": "teacher_checkpoint"}  # keys of earlier versions


@dataclass
class Config:
    """Keys that the command line of rtpd_atari.py and rtpd_classic.py takes."""

    method: str = setting("rtpd", "what is trained, see methods.py", choices=list(METHODS))
    teacher: str = setting(
        "dqn", "algorithm by which the network that acts learns, see algorithms.py", choices=list(ALGORITHMS)
    )
    game: str = setting(help="ALE's name in snake case; in rtpd_classic.py a key of its GAMES")
    students: Any = setting(
        [],
        "names in torchrl_rtpd.TOWERS or sizes such as 8-8-8-64, in rtpd_classic.py such as mlp16; teacher trains one "
        "of the teacher's size; auto is a ladder of sixteen sizes with search=true",
    )
    search: bool = setting(
        False,
        "drop students on the way, until the smallest that will do is left; evaluations are every eighth of the run",
    )
    min_share: float = setting(
        0.95, "of the teacher's level that this one holds, with 95 % confidence", within="(0, 1]"
    )
    max_latency_ms: float | None = setting(None, "search: of a student's decision, by onnxruntime", within="(0, 1e12]")
    max_bytes: int | None = setting(None, "search: of a student's ONNX file", within=MANY)
    norm: str | None = setting(None, "LayerNorm over channels before each ReLU of all networks", choices=["layer"])
    seed: int = setting(0, "of networks, games and exploration", within="[0, 1e6]")
    output_dir: str | None = setting(None, "folder of the run; null makes a new one in outputs/")
    tensorboard: bool = setting(True, "write events for TensorBoard", may_change=True)
    progress_bar: bool = setting(True, "show progress and scores", may_change=True)
    video: bool = setting(True, "write play.gif at the end: teacher and student side by side", may_change=True)

    # Where and how fast
    device: str = setting("cpu", "where the networks learn: cpu | cuda | cuda:<number>", may_change=True)
    threads: Any = setting(
        "auto",
        "of torch, twice if concurrent; auto takes the processors that others leave free; a number repeats a run",
        within=MANY,
        choices=["auto"],
        may_change=True,
    )
    concurrent: Any = setting(
        "auto",
        "students learn in a thread beside the teacher's, the same bits; auto: where threads=auto finds two, for "
        "batch_size up to 64 with several students, 16 with one",
        choices=["auto", "true", "false"],
        may_change=True,
    )
    env_threads: int | None = setting(
        None, "of ALE; null is those of torch, and on a GPU a thread for each processor", within=MANY, may_change=True
    )
    amp: bool = setting(False, "bfloat16 below the heads; slower than float32 on a CPU without instructions for it")
    compile: bool = setting(
        False, "torch.compile the networks: a minute or more before the first update, for a GPU", may_change=True
    )
    cudagraph: bool = setting(
        False, "replay each update as one CUDA graph: several times as fast, for a GPU", may_change=True
    )
    overlap: bool = setting(
        False, "play the first step of a batch while learning from the one before; use with rollout_steps=1"
    )
    single_frames: bool = setting(
        False, "the environment shows single frames, stacked for the network that acts: less to copy, for many games"
    )

    # The loss of the students
    divergence: str = setting("forward_kl", "from teacher to student", choices=DIVERGENCES)
    temperature: Any = setting(
        0.1,
        "of both networks, in units of the action values; auto follows the teacher's values",
        within="(0, 1e12]",
        choices=["auto"],
    )
    student_temperature: float | None = setting(
        None, "of the students where it is to differ; null is the same", within="(0, 1e12]"
    )
    imitation: bool = setting(
        True, "dqn: the teacher chooses the action of the students' targets (Eq. 5); otherwise they do (Eq. 2)"
    )
    td_coeff: float = setting(
        1.0, "weight of the students' own TD error (paper: 1); 0 saves its target network", within="[0, 1e12]"
    )
    distill_coeff: float = setting(
        1.0, "weight of the divergence (paper: 1); 0 leaves the TD error, on the teacher's games", within="[0, 1e12]"
    )
    student_updates: int = setting(1, "updates of each student on a minibatch (paper: 1)", within=MANY)
    learn_from: str = setting(
        "latest", "version of the teacher to learn from; best is that of the best evaluation", choices=list(TEACHERS)
    )
    acting: Any = setting(
        "teacher", "who plays, or the probability that a student does", within=SHARE, choices=["teacher", "student"]
    )
    teacher_checkpoint: str | None = setting(None, "begin with the teacher's weights in this file or folder")
    teacher_from: str | None = setting(
        None, "method=two_stage: output_dir of an earlier run whose last teacher to distil; null trains it first"
    )
    two_stage_epsilon: float = setting(
        0.05, "random actions while the frozen teacher plays (Rusu et al. 2015)", within=SHARE
    )

    # Collecting and learning
    total_steps: int = setting(
        help="steps of the run; resume=PATH total_steps=MORE trains for longer", within=MANY, may_change=True
    )
    warmup_steps: int | None = setting(None, "dqn: random play before the first update", within="[0, 1e12]")
    num_envs: int = setting(help="games side by side", within=MANY, may_change=True)
    rollout_steps: int = setting(help="steps of each game between two rounds of updates", within=MANY)
    batch_size: int = setting(help="transitions in a minibatch", within=MANY)
    steps_per_update: int | None = setting(None, "dqn: steps between two updates (Nature: 4)", within=MANY)
    n_step: int | None = setting(None, "dqn: steps of a return before it is bootstrapped", within=MANY)
    num_epochs: int | None = setting(None, "pqn: passes over each rollout", within=MANY)
    lmbda: float | None = setting(
        None, "pqn: 0 bootstraps a return at every step, 1 where the rollout ends", within=SHARE
    )
    gamma: float = setting(help="discount factor of a step", within=SHARE)
    replay_capacity: int | None = setting(None, "dqn: transitions kept to learn from", within=MANY)
    teacher_optimizer: str = setting(
        "adam", "rmsprop is the paper's, centred; radam that of PQN's", choices=["adam", "rmsprop", "radam"]
    )
    teacher_learning_rate: float = setting(help="before it settles", within=SHARE)
    student_learning_rate: float = setting(help="before it settles", within=SHARE)
    teacher_settles: list[float] | None = setting(
        None, "shares of the run between which the learning rate falls to a hundredth, such as [0.6, 0.9]; null: never"
    )
    student_settles: list[float] | None = setting(None, "likewise")
    recycle_every_updates: int | None = setting(
        None, "give dormant units of students a new start, until their rate settles; null: never", within=MANY
    )
    target_every_updates: int | None = setting(
        None, "dqn: updates between two copies to the target networks", within=MANY
    )
    epsilon_end: float = setting(help="share of random actions at last", within=SHARE)
    epsilon_steps: int = setting(help="steps over which the share of random actions falls from 1", within=MANY)
    loss_function: str = setting("smooth_l1", "of the TD errors", choices=["smooth_l1", "l2", "l1"])

    # Evaluation
    evaluate_every_steps: int | None = setting(
        help="0: only at the end, null: never", within="[0, 1e12]", may_change=True
    )
    evaluate_from_steps: int = setting(0, "no evaluation before", within="[0, 1e12]", may_change=True)
    keep_from_steps: int = setting(
        0,
        "no network is kept from an evaluation before, but for the last one: until all settle scores say little",
        within="[0, 1e12]",
        may_change=True,
    )
    evaluation_episodes: int = setting(help="games of each network at each evaluation", within=MANY)
    final_episodes: int = setting(help="games of each kept network at the end", within=MANY)
    evaluation_epsilon: float = setting(0.05, "random actions in evaluation (paper: 0.05)", within=SHARE)
    max_episode_steps: int = setting(help="bound on a game in evaluation; cut games are reported", within=MANY)
    evaluation_seconds: float | None = setting(3_600.0, "give up longer evaluations; null: never", within="(0, 1e12]")

    export: Any = setting(
        [],
        "write the students for devices at the end, into deployed/: some of " + ", ".join(FORMATS) + "; auto is onnx "
        "where the export extra is installed",
        may_change=True,
    )

    # What a run survives; docs/promises.md says more
    resume: str | None = setting(None, "a checkpoint, or a run's folder, to go on from as that run was configured")
    schedules: str = setting(
        "stretch",
        "a resumed run with other total_steps: schedules keep their steps, or stretch to the same shares of the run",
        choices=["keep", "stretch"],
        may_change=True,
    )
    schedule_steps: int | None = setting(
        None, "length of run that learning rates settle over; null is total_steps", within=MANY
    )
    checkpoint_every_steps: int = setting(help="steps between two checkpoints", within=MANY, may_change=True)
    checkpoint_keep: int = setting(
        2, "newest checkpoints kept, in addition to the one of the best students", within=MANY, may_change=True
    )
    checkpoint_replay: bool = setting(
        False,
        "dqn: save the replay, 7 kB a transition of Atari; otherwise a resumed run plays warmup_steps to fill it again",
        may_change=True,
    )
    on_divergence: str = setting("stop", "what to do where training diverges", choices=POLICIES, may_change=True)
    stop_after_evaluations: int | None = setting(
        None, "end when the students held 90 % of the teacher's score so often in a row; null: never", within=MANY
    )
