"""What a guard notices, says and does, in real runs that are made to go wrong."""

import math
import warnings

import pytest
import torch
from parts import bits, small_run
from tensordict import TensorDict

from torchrl_rtpd import Scores
from torchrl_rtpd.runs.guards import DivergenceError, DivergenceGuard

TOTAL = 160


def _guarded(folder, *, parts=("distiller", "monitor", "saver"), total=TOTAL, prioritized=False, **options):
    run = small_run(folder, total, evaluate_every_steps=48, every_steps=40, prioritized=prioritized)
    found = {"distiller": run.hook, "monitor": run.monitor, "saver": run.saver}
    run.guard = DivergenceGuard(**{name: found[name] for name in parts}, **options)
    run.guard.register(run.trainer)
    return run


def _poison(run, part, at, what="gradient", value=math.nan):
    """Spoil one gradient, or all weights, of a part at its ``at``-th update."""
    optimizer = run.trainer.optimizer if part == "teacher" else run.hook.optimizers[part]
    parameter = optimizer.param_groups[0]["params"][0]
    updates = 0

    def spoil(*_):
        nonlocal updates
        updates += 1
        if updates == at:
            (parameter.grad if what == "gradient" else parameter.data)[(0,) * parameter.ndim] = value

    # Before the guard's own hook, as a loss would.
    hooks = optimizer._optimizer_step_pre_hooks
    handle = optimizer.register_step_pre_hook(spoil)
    hooks.move_to_end(handle.id, last=False)


@pytest.mark.parametrize("part", ["teacher", "net17"])
def test_a_gradient_that_is_not_finite_stops_the_run(tmp_path, part):
    """In the batch it comes in, named with step and part; the checkpoints before it stay, its state lies beside."""
    run = _guarded(tmp_path)
    _poison(run, part, at=18)
    with pytest.raises(DivergenceError, match=rf"diverged at step 80, update 18: {part} has weights of size nan"):
        run.trainer.train()
    assert (tmp_path / "checkpoints" / "diverged-000000000080" / "sealed.json").exists()
    assert run.saver.latest().name == "checkpoint-000000000048"


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    run = _guarded(tmp_path)
    run.hook.metrics = {"distill/net17/loss": math.inf}
    run.hook.averages = lambda *_: None
    with pytest.raises(DivergenceError, match=r"net17 has loss of inf"):
        run.guard._judge({}, {"loss": 1.0})
    with pytest.raises(DivergenceError, match=r"teacher has grad_norm of nan, net17 has loss of inf"):
        run.guard._judge({}, {"loss": 1.0, "grad_norm": math.nan})


@pytest.mark.parametrize("part", ["teacher", "net17"])
def test_a_skipped_update_changes_nothing(tmp_path, part):
    """Neither weights nor moments nor step counts; the next one is made as usual, and a warning says what happened."""
    run = _guarded(tmp_path, policy="skip", total=96)
    optimizer = run.trainer.optimizer if part == "teacher" else run.hook.optimizers[part]
    _poison(run, part, at=12)
    states = []

    def keep():
        state = optimizer.state_dict()["state"]
        weights = [parameter.detach().clone() for parameter in optimizer.param_groups[0]["params"]]
        return bits({"state": state, "weights": weights})

    optimizer.register_step_pre_hook(lambda *_: states.append(keep()))
    with pytest.warns(UserWarning, match=rf"update 12: {part} had a gradient that is not finite in 1 updates"):
        run.trainer.train()
    before_11, before_12, after_12 = states[10:13]
    assert before_11 != before_12
    assert before_12 == after_12
    assert run.guard.skipped == 1
    assert run.trainer.collected_frames == 96


def test_finite_updates_keep_their_bits_under_a_guard(tmp_path):
    """Whatever its policy: the run is the one that has no guard."""
    ends = []
    for name, policy in (("none", None), ("stop", "stop"), ("skip", "skip"), ("rollback", "rollback")):
        if policy is None:
            run = small_run(tmp_path / name, 96)
        else:
            run = _guarded(tmp_path / name, policy=policy, total=96)
        run.trainer.train()
        optimizers = [run.trainer.optimizer, *run.hook.optimizers.values()]
        ends.append(bits([[each.state_dict(), *each.param_groups[0]["params"]] for each in optimizers]))
    assert ends[1:] == ends[:1] * 3


def test_an_optimiser_that_is_not_fused_steps_with_a_gradient_of_zero():
    """RMSprop without momentum then leaves its weights where they are."""
    from torchrl_rtpd.runs.guards import _Skipper

    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.RMSprop([parameter], lr=0.1, centered=True)
    skipper = _Skipper(optimizer)
    parameter.grad = torch.tensor([1.0, math.inf, 2.0])
    optimizer.step()
    assert torch.equal(parameter.data, torch.ones(3)) and skipper.count == 1
    parameter.grad = torch.ones(3)
    optimizer.step()
    assert (parameter < 1).all() and skipper.count == 1


def test_weights_that_are_not_finite_stop_also_where_updates_are_skipped(tmp_path):
    run = _guarded(tmp_path, policy="skip")
    _poison(run, "net17", at=18, what="weights")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DivergenceError, match=r"net17 has weights of size nan"):
            run.trainer.train()


def test_a_run_rolls_back_and_goes_on(tmp_path):
    """To the best checkpoint; steps, replay and random numbers go on, and training ends as planned."""
    run = _guarded(tmp_path, policy="rollback")
    _poison(run, "teacher", at=18)
    with pytest.warns(UserWarning, match=r"step 80, update 18: teacher has weights of size nan; back to checkpoint-"):
        run.trainer.train()
    assert run.trainer.collected_frames == TOTAL
    assert all(parameter.isfinite().all() for parameter in run.trainer.loss_module.parameters())


@pytest.mark.parametrize("what", ["gradient", "weights"])
@pytest.mark.parametrize("part", ["teacher", "net17"])
@pytest.mark.parametrize("at", [17, 18])
def test_one_divergence_is_one_rollback(tmp_path, at, part, what):
    """The first or the last update of a batch spoils the teacher, or the student, and all that learns from it then."""
    run = _guarded(tmp_path, policy="rollback", max_rollbacks=1, prioritized=True)
    _poison(run, part, at=at, what=what)
    with pytest.warns(UserWarning, match="back to checkpoint-") as said:
        run.trainer.train()
    assert [str(each.message).count("1 of at most 1 times") for each in said] == [1]
    assert run.trainer.collected_frames == TOTAL
    everything = (run.trainer.loss_module.state_dict(), run.hook.students["net17"].state_dict())
    assert all(tensor.isfinite().all() for state in everything for tensor in state.values())
    assert run.buffer.sampler._sum_tree[torch.arange(96)].isfinite().all()


def test_all_that_gave_a_divergence_away_is_named_once(tmp_path):
    """The teacher's weights and means, and the weights of the student that learned from it in the same batch."""
    run = _guarded(tmp_path)
    _poison(run, "teacher", at=17)
    names = r"teacher has weights of size nan, net17 has weights of size nan, teacher has loss of nan"
    with pytest.raises(DivergenceError, match=rf"diverged at step 80, update 18: {names}, .*; its state is kept"):
        run.trainer.train()


def test_a_rollback_takes_back_what_a_stepper_has_learned(tmp_path):
    """Whatever the name under which the students' hook, or a stepper that holds it, is registered."""
    run = _guarded(tmp_path, policy="rollback")
    run.trainer.register_module("another_name", run.hook)
    run.saver.save()
    before = bits(run.hook.students["net17"].state_dict())
    with torch.no_grad():
        for parameter in run.hook.students["net17"].parameters():
            parameter.fill_(math.nan)
    del run.trainer._modules["real_time_distill"]
    run.trainer.checkpoint._components.pop("trainer_module.real_time_distill")
    run.saver.restore_learning(run.saver.latest())
    assert bits(run.hook.students["net17"].state_dict()) == before


def test_rollbacks_come_to_an_end(tmp_path):
    run = _guarded(tmp_path, policy="rollback", max_rollbacks=0)
    _poison(run, "teacher", at=18)
    with pytest.raises(DivergenceError, match="teacher has weights of size nan"):
        run.trainer.train()


def test_an_exploding_student_loss_is_noticed_and_named(tmp_path):
    """A hundredfold of the usual; nothing is known to be usual before ten batches."""
    run = _guarded(tmp_path)

    def judge(loss):
        run.hook.metrics = {"distill/net17/loss": loss}
        run.guard._judge({}, {})

    for _ in range(9):
        judge(0.5)
    judge(49.0)  # the tenth: still learning what is usual
    judge(49.0)
    with pytest.raises(DivergenceError, match=r"net17 has loss of 51, 102 times the usual 0.5"):
        judge(51.0)


def _evaluations(run, scores, first=0):
    """Let the teacher score so in evaluation after evaluation; a random player's is 0."""
    run.monitor._random_return = 0.0
    for step, score in enumerate(scores, first):
        run.monitor.evaluated_steps = step
        run.monitor.last_scores = {"teacher": Scores((score, score), 0, 0)}
        run.guard.look_at_scores()
        run.guard.look_at_scores()  # no new evaluation


def test_a_collapsed_teacher_is_noticed_after_three_evaluations(tmp_path):
    """It surely scored 100; three times 10 in a row are surely below a fifth of that."""
    run = _guarded(tmp_path)
    _evaluations(run, (100.0, 100.0, 100.0, 10.0, 10.0, 30.0, 10.0, 10.0))
    with pytest.raises(DivergenceError, match=r"teacher has scores of 10\.0 over 3 evaluations after 100\.0 at least"):
        _evaluations(run, (10.0,), first=8)


def test_a_lucky_network_among_bad_ones_is_no_collapse(tmp_path):
    """As happened early in a real run: 875 once, then nothing."""
    run = _guarded(tmp_path)
    _evaluations(run, (0.0, 875.0, 0.0, 0.0, 0.0, 0.0, 0.0))


def test_a_guard_looks_at_the_device_once_a_batch(tmp_path):
    """All values come in one tensor."""
    run = _guarded(tmp_path, total=96)
    looks = []
    original = torch.Tensor.tolist

    def counted(tensor):
        looks.append(tensor.shape)
        return original(tensor)

    look = run.guard.look

    def watched(*args):
        torch.Tensor.tolist = counted
        try:
            return look(*args)
        finally:
            torch.Tensor.tolist = original

    run.trainer.collected_frames, run.trainer._optim_count = 96, 10
    watched(10, TensorDict({"loss": torch.tensor(1.0), "grad_norm": torch.tensor(2.0)}))
    assert looks == [torch.Size([4])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "panic"}, "got 'panic'"),
        ({"policy": "rollback"}, "got saver=None"),
        ({"explosion": 1.0}, r"explosion must lie in \(1, inf\]: got 1.0"),
        ({"collapse": 1.0}, r"collapse must lie in \[0, 1\): got 1.0"),
        ({"collapse_evaluations": 0}, r"collapse_evaluations must lie in \[1, inf\): got 0"),
        ({"max_rollbacks": -1}, r"max_rollbacks must lie in \[0, inf\): got -1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DivergenceGuard(**options)
