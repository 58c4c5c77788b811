"""Watch a run's teacher and student play the same game side by side.

    python examples/play.py outputs/mine
    python examples/play.py outputs/mine --student net1 outputs/mine/deployed/net1.onnx --seed 7
    python examples/play.py outputs/mine --format mp4 --seconds 60
    python examples/play.py outputs/mine --render human

The folder is one of rtpd_atari.py or rtpd_classic.py. Networks play as in the run's evaluations, from the same seed, at
the game's speed and in its own colours, with their scores and the share of states so far in which a student's choice is
the teacher's. Writes ``play.gif`` there, at most 2 MB, in some ten seconds on one CPU core; both scripts do so
themselves at the end of a run. Needs the video extra, for a GIF of an Atari game only Pillow of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rtpd_atari import ATARI
from rtpd_classic import CLASSIC, GAMES
from scoreboard import begin
from showing import SECONDS, record, saved_run, sentence, write

from torchrl_rtpd.runs import SideBySide, show_frames


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output_dir of a run")
    parser.add_argument(
        "--student",
        nargs="+",
        default=[],
        help="names of the run's students, or exported files; the smallest that holds 90 %% of the teacher's score",
    )
    parser.add_argument("--seed", type=int, help="of the game; that of the run's final games")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the game, from its start")
    parser.add_argument("--format", choices=["gif", "mp4"], help="gif, or that of --out")
    parser.add_argument("--out", type=Path, help="file to write; play.gif in the folder of the run")
    parser.add_argument("--render", choices=["file", "human"], default="file", help="human opens a window instead")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> Path | None:
    """Returns the file that was written; None after a window."""
    given = parsed(arguments)
    if given.out is not None and given.format is not None and given.out.suffix != f".{given.format}":
        raise ValueError(f"--out must end in .{given.format}, as --format says: got {given.out}.")
    begin()
    config = saved_run(given.folder)
    task = CLASSIC if config.game in GAMES else ATARI
    games = record(given.folder, config, task, given.student, given.seed, given.seconds)
    if given.render == "file":
        return write(games, given.out or given.folder / f"play.{given.format or 'gif'}")
    frames = SideBySide(games)
    show_frames(frames, frames_per_second=frames.frames_per_second, title=config.game)
    print(f"{sentence(games)}.")
    return None


if __name__ == "__main__":
    try:
        main()
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(2) from error
