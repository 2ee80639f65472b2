"""SIGTERM, SIGHUP and Ctrl-C: a run that is asked to end saves first."""

import os
import signal
import threading
from dataclasses import replace

import pytest
from helpers import (
    Stopped,
    Table,
    Watched,
    assert_same,
    chain,
    config,
    convnet,
    differences,
    fit,
    images,
    saved_state,
    tensors,
)

import multiexit as mx
from multiexit.training import signals
from multiexit.training.records import checkpoint

ENDS = {signal.SIGTERM: SystemExit, signal.SIGINT: KeyboardInterrupt, signal.SIGHUP: SystemExit}
pytestmark = pytest.mark.usefixtures("foreground")


def sends(*numbers):
    """What `Watched` does: the process gets these signals."""
    return lambda: [os.kill(os.getpid(), number) for number in numbers]


@pytest.mark.parametrize("number", ENDS)
@pytest.mark.parametrize("stop", [0, 3, 7, 9, 10])
def test_the_step_is_finished_saved_and_the_end_is_the_same(number, stop, tmp_path, capsys):
    """CLO-v2 mid-cycle and at an epoch's end, between two readings of the losses."""
    recipe, wanted, mine = mx.recipes.leebert(cycle=3), convnet(), convnet()
    settings = config(output=tmp_path / "whole", epochs=3, log_every=4)
    history = fit(wanted, recipe, settings, Watched(images()))
    settings = config(output=tmp_path / "parts", epochs=3, log_every=4)
    before = signal.getsignal(number)
    with pytest.raises(ENDS[number]) as ended:
        fit(mine, recipe, settings, Watched(images(), stop, sends(number)))
    if number != signal.SIGINT:
        assert ended.value.code == 128 + number
    assert signal.getsignal(number) is before
    said = capsys.readouterr().err.strip().splitlines()
    step = saved_state(tmp_path / "parts")["position"]["step"]
    assert len(said) == 1
    assert f"{number.name}; saved in {tmp_path / 'parts'} after step {step}" in said[0]
    assert "--resume" in said[0]
    mine = convnet(seed=7)
    again = fit(mine, recipe, replace(settings, resume=True), images())
    assert again.steps == history.steps
    assert_same(tensors(mine), tensors(wanted))
    assert not differences(saved_state(tmp_path / "parts"), saved_state(tmp_path / "whole"))


@pytest.mark.parametrize("number", ENDS)
def test_a_signal_to_the_workers_too(number, tmp_path):
    """As from torchrun or a job's end, which reach all of a group."""

    def send():
        for process in (os.getppid(), os.getpid()):
            os.kill(process, number)

    wanted, mine = convnet(), convnet()
    settings = config(output=tmp_path / "whole", epochs=3)
    fit(wanted, "joint", settings, images())
    settings = replace(settings, output=tmp_path / "parts", workers=1)
    with pytest.raises(ENDS[number]):
        fit(mine, "joint", settings, Watched(images(), 2, send))
    mine = convnet(seed=7)
    fit(mine, "joint", replace(settings, resume=True), images())
    assert_same(tensors(mine), tensors(wanted))


@pytest.mark.parametrize("number", ENDS)
def test_a_second_signal_ends_it_at_once(number, tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "ECHO", -1.0)
    train = Watched(Table(), 2, sends(signal.SIGTERM, number))
    with pytest.raises(ENDS[number]):
        fit(chain(), "joint", config(output=tmp_path), train)
    assert train.reads == 2
    assert not checkpoint.names(tmp_path)


def test_a_signal_that_is_passed_on_too_counts_once(tmp_path):
    train = Watched(Table(), 2, sends(signal.SIGTERM, signal.SIGTERM))
    with pytest.raises(SystemExit):
        fit(chain(), "joint", config(output=tmp_path), train)
    assert checkpoint.names(tmp_path)


def test_what_keeps_nothing_ends_at_once():
    train = Watched(Table(), 2, sends(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        fit(chain(), "joint", config(), train)
    assert train.reads == 2


def test_handlers_are_back_after_an_error_and_after_the_end(tmp_path):
    before = [signal.getsignal(number) for number in ENDS]
    with pytest.raises(Stopped):
        fit(chain(), "joint", config(output=tmp_path), Watched(Table(), 2))
    fit(chain(), "joint", config(output=tmp_path), Table())
    assert [signal.getsignal(number) for number in ENDS] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_an_ignored_signal_stays_ignored(number, tmp_path):
    """As in a shell's background, and under nohup."""
    before = signal.signal(number, signal.SIG_IGN)
    history = fit(chain(), "joint", config(output=tmp_path), Watched(Table(), 2, sends(number)))
    signal.signal(number, before)
    assert history.epochs[-1]["epoch"] == config().epochs - 1


def test_outside_the_main_thread_nothing_is_handled(tmp_path):
    found = []

    def run():
        with signals.noted():
            found.append(signal.getsignal(signal.SIGTERM))
        fit(chain(), "joint", config(output=tmp_path, epochs=1), Table())
        found.append("trained")

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM), "trained"]
