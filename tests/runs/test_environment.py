"""Command, versions, hardware and commit that stand beside results."""

from torchrl_rtpd.runs.environment import run_environment


def test_environment_names_versions_hardware_and_command():
    """Everything needed to place a number is there."""
    environment = run_environment()
    assert environment["versions"]["torchrl"].startswith("0.14")
    assert environment["cpu"] and environment["threads"] >= 1 and environment["device"] == "cpu"
    assert environment["command"].startswith("python ")


def test_commit_is_unknown_outside_a_checkout(tmp_path, monkeypatch):
    """A run elsewhere has no commit rather than an error."""
    monkeypatch.chdir(tmp_path)
    assert run_environment()["commit"] is None
