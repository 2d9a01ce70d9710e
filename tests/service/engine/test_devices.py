import pytest

from service.engine import devices
from service.engine.providers import CPU, CUDA


@pytest.mark.parametrize(
    ("cores", "thread_counts"),
    [(1, (1,)), (2, (1, 2)), (4, (1, 4)), (8, (1, 2, 8)), (16, (1, 4, 16)), (64, (1, 16, 64))],
)
def test_a_run_uses_one_core_or_all_and_on_large_machines_also_a_quarter(monkeypatch, cores, thread_counts):
    monkeypatch.setattr(devices, "usable_cores", lambda: cores)
    (device,) = devices.find(CPU, None, None, None, None)
    assert (device.name, device.runs, device.thread_counts, device.decodes) == ("cpu:0", cores, thread_counts, True)


def test_engines_on_the_cpu_share_the_cores(monkeypatch):
    monkeypatch.setattr(devices, "usable_cores", lambda: 8)
    found = devices.find(CPU, 2, None, None, 1)
    assert [device.name for device in found] == ["cpu:0", "cpu:1"]
    assert {device.runs for device in found} == {4}
    assert {device.thread_counts for device in found} == {(1,)}
    assert {device.runs for device in devices.find(CPU, 16, None, None, None)} == {1}


@pytest.mark.parametrize(("gpus", "engines", "expected"), [(4, None, 4), (4, 2, 2), (1, 8, 1)])
def test_every_gpu_has_an_engine_unless_the_settings_ask_for_fewer(monkeypatch, gpus, engines, expected):
    monkeypatch.setattr(devices, "cuda_devices", lambda: gpus)
    found = devices.find(CUDA, engines, None, 5_000_000, None)
    assert [device.name for device in found] == [f"cuda:{index}" for index in range(expected)]
    assert {(device.runs, device.thread_counts, device.decodes, device.budget.pixels) for device in found} == {
        (1, (1,), False, 5_000_000)
    }


@pytest.mark.parametrize(("engines", "names"), [(None, ["cuda:1", "cuda:3"]), (1, ["cuda:1"])])
def test_only_gpus_that_passed_the_check_have_an_engine(engines, names):
    assert [device.name for device in devices.find(CUDA, engines, None, None, None, [1, 3])] == names


@pytest.mark.parametrize("runs", [1, 3])
def test_a_gpu_has_two_threads_for_each_run_and_a_cpu_one(runs):
    (gpu, *_), (cpu,) = devices.find(CUDA, 1, runs, None, None), devices.find(CPU, None, runs, None, None)
    assert (gpu.lanes, gpu.prepares_ahead) == (2 * runs, True)
    assert (cpu.lanes, cpu.prepares_ahead) == (runs, False)
    for device in (gpu, cpu):
        turns = [device.turn.acquire(blocking=False) for _ in range(runs + 1)]
        assert turns == [True] * runs + [False]


@pytest.mark.parametrize(("pixels", "depth"), [(None, devices.DEEP_QUEUE), (1_000_000, 1)])
def test_a_cpu_forms_batches_only_from_a_deep_queue_unless_the_settings_ask_for_batches(pixels, depth):
    (device,) = devices.find(CPU, None, None, pixels, None)
    assert device.depth == depth


def test_a_reduced_budget_doubles_until_it_is_fully_restored():
    now = 0.0
    budget = devices.Budget(1000, lambda: now)
    budget.shrink(250)
    budget.shrink(700)  # no effect, because the budget is already smaller
    budget.recover()
    assert budget.pixels == 250
    for expected in (500, 1000, 1000):
        now += devices.RECOVERY_SECONDS + 1
        budget.recover()
        assert budget.pixels == expected
