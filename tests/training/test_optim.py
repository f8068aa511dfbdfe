"""Optimizers are torch's, the schedule is a function of step and epoch, clipping is exact."""

import math

import pytest
import torch
from torch import nn

from prnn.config import OptimizerConfig, ScheduleConfig
from prnn.errors import UserError
from prnn.training import optim
from prnn.training.progress import Plateau


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adam", lambda p: torch.optim.Adam(p, 0.1, (0.8, 0.9), 1e-6, 0.01)),
        ("adamw", lambda p: torch.optim.AdamW(p, 0.1, (0.8, 0.9), 1e-6, 0.01)),
        ("sgd", lambda p: torch.optim.SGD(p, 0.1, 0.5, weight_decay=0.01)),
        ("rmsprop", lambda p: torch.optim.RMSprop(p, 0.1, 0.7, 1e-6, 0.01, 0.5)),
        ("adagrad", lambda p: torch.optim.Adagrad(p, 0.1, eps=1e-6, weight_decay=0.01)),
    ],
)
def test_every_setting_reaches_torchs_optimizer(name, make):
    weight = torch.linspace(-1, 1, 7)
    mine, theirs = nn.Parameter(weight.clone()), nn.Parameter(weight.clone())
    config = OptimizerConfig(name, 0.1, (0.8, 0.9), alpha=0.7, momentum=0.5, eps=1e-6, weight_decay=0.01)
    optimizers = optim.build(config, [mine]), make([theirs])
    for _ in range(3):
        for parameter, optimizer in zip((mine, theirs), optimizers, strict=True):
            parameter.grad = torch.cos(parameter.detach())
            optimizer.step()
    torch.testing.assert_close(mine, theirs)
    assert not torch.equal(mine, weight)


def factors(config, steps, epoch=0):
    return [optim.lr_factor(config, step, epoch, 20) for step in steps]


def test_constant_with_warmup_rises_to_one_and_stays():
    assert factors(ScheduleConfig("constant", warmup_steps=4), [0, 1, 3, 4, 19]) == [0.25, 0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("name", "half"), [("linear", 0.6), ("cosine", 0.6)])
def test_linear_and_cosine_arrive_at_the_final_factor(name, half):
    config = ScheduleConfig(name, warmup_steps=10, final_factor=0.2)
    assert factors(config, [9, 10, 15, 20, 30]) == pytest.approx([1.0, 1.0, half, 0.2, 0.2])
    quarter = 0.8 if name == "linear" else 1 - 0.8 * (1 - math.cos(math.pi / 4)) / 2
    assert optim.lr_factor(ScheduleConfig(name, final_factor=0.2), 5, 0, 20) == pytest.approx(quarter)


def test_step_decays_at_multiples_of_every_epochs_from_start_epoch_on():
    halved = ScheduleConfig("step", gamma=0.5, every_epochs=5)
    assert [optim.lr_factor(halved, 0, e, None) for e in (0, 4, 5, 9, 10)] == [1, 1, 0.5, 0.5, 0.25]
    char_rnn = ScheduleConfig("step", gamma=0.97, every_epochs=1, start_epoch=10)
    assert [optim.lr_factor(char_rnn, 0, e, None) for e in (9, 10, 11)] == pytest.approx([1, 0.97, 0.97**2])


def test_plateau_applies_gamma_once_a_cut_after_the_warmup():
    config = ScheduleConfig("plateau", gamma=0.25, warmup_steps=4)
    assert [optim.lr_factor(config, step, 0, None, cuts=2) for step in (0, 3, 4)] == [0.25, 1.0, 0.0625]


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_plateau_decides_as_torchs_scheduler(patience):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience - 1, threshold=0.0, eps=0
    )
    losses = (1 + 0.1 * torch.randn(60, generator=torch.Generator().manual_seed(1)) - 0.005 * torch.arange(60)).tolist()
    losses[::7], losses[-1] = [float("nan")] * len(losses[::7]), losses[-2]
    plateau = Plateau()
    for loss in losses:
        plateau.see(loss, patience, 0.0)
        theirs.step(loss)
        assert 0.5**plateau.cuts == optimizer.param_groups[0]["lr"]
    assert plateau.cuts > 3


def test_plateaus_threshold_is_a_part_of_the_lowest_loss():
    plateau, told = Plateau(), []
    for loss in (10.0, 8.9, 8.5, 8.1, 9.0):  # to be better, a loss must be lower by a tenth
        told.append((plateau.see(loss, 2, 0.1), plateau.bad, plateau.cuts, plateau.back))
    assert told == [
        (True, 0, 0, False),
        (True, 0, 0, False),
        (True, 1, 0, False),
        (True, 0, 1, False),  # the second of little gain: cut, but from where it stands, which is the best
        (False, 1, 1, False),
    ]
    assert plateau.see(9.5, 2, 0.1) is False and plateau.back and plateau.best == 8.1
    negative = Plateau(best=-10.0)
    assert negative.see(-10.5, 3, 0.1) and negative.bad == 1
    assert negative.see(-12.0, 3, 0.1) and negative.bad == 0


def test_a_schedule_without_an_end_is_refused():
    with pytest.raises(UserError, match=r"trainer\.max_steps"):
        optim.lr_factor(ScheduleConfig("cosine"), 5, 0, None)


def test_a_schedule_follows_the_time_where_the_last_step_is_not_known():
    config = ScheduleConfig("linear", warmup_steps=4, final_factor=0.2)
    assert optim.lr_factor(config, 1, 0, None, elapsed=0.5) == 0.5  # of the warmup
    assert [optim.lr_factor(config, 9, 0, None, elapsed=share) for share in (0.5, 1.5)] == pytest.approx([0.6, 0.2])
    assert optim.lr_factor(config, 12, 0, 20, elapsed=0.1) == pytest.approx(0.6)  # the steps decide


def test_scale_and_clip():
    grads = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    norm = optim.global_norm(grads)
    assert optim.scale_and_clip(grads, norm, 2.0, clip_norm=5.0, clip_value=None) == pytest.approx(10.0)
    torch.testing.assert_close(torch.cat(grads), torch.tensor([3.0, 0.0, 4.0]))
    assert optim.scale_and_clip(grads, 5.0, 1.0, clip_norm=50.0, clip_value=3.5) == pytest.approx(5.0)
    torch.testing.assert_close(torch.cat(grads), torch.tensor([3.0, 0.0, 3.5]))
