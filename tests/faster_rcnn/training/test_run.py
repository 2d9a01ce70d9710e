"""The record of a training run, how a run begins and resumes, and how a folder is recognised as part of one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from faster_rcnn.detector.checkpoint import NAME, save_state
from faster_rcnn.detector.config import default_config
from faster_rcnn.detector.detector import FasterRCNN
from faster_rcnn.training.run import (
    STEPS,
    RunRecord,
    begin_run,
    check_finished,
    find_record,
    proposals_of_step,
    read_record,
    resume_run,
    step_iterations,
    write_record,
)

MODEL_STORE = Path(__file__).resolve().parents[3] / "model_store"
COMMON_KEYS = {
    "command", "data", "train_split", "val_split", "skip_bad_boxes", "backbone", "weights", "schedule", "versions",
    "device", "config", "options",
}  # fmt: skip
SHAPES = {"data": "shapes", "iterations": 8, "batch_size": 2}


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    torch.manual_seed(0)
    return FasterRCNN(default_config("compact", ("thing",)))


def begin(folder: Path, **options: object) -> RunRecord:
    return begin_run(folder, SHAPES | options, "faster-rcnn train …", "cpu")


@pytest.mark.parametrize(
    ("options", "more_keys"),
    [
        ({}, set()),
        ({"schedule": "alternating"}, {"step_iterations"}),
        (
            {"schedule": "fast-rcnn", "proposals": ["sliding-window"]},
            {"proposals_for_training", "proposals", "proposal_limit", "measure_targets"},
        ),
    ],
)
def test_a_new_record_has_the_documented_keys_and_survives_json(
    options: dict[str, object], more_keys: set[str], tmp_path: Path
) -> None:
    record = begin(tmp_path, **options)
    written = record.to_json()
    assert set(written) == COMMON_KEYS | more_keys
    assert set(written["versions"]) == {"python", "torch", "torchvision"}
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]  # no temporary file remains


def test_keys_of_another_version_are_kept(tmp_path: Path) -> None:
    record = begin(tmp_path).to_json() | {"future": {"key": [1, 2]}, "iteration": 7}
    assert RunRecord.from_json(record).to_json() == record


@pytest.mark.parametrize("model", ["shapes", "bccd"])
def test_the_record_in_a_published_model_can_be_read(model: str) -> None:
    """Those of early versions lack keys, and all lack `config`."""
    training: dict[str, Any] = json.loads((MODEL_STORE / model / "1" / "model.json").read_text())["training"]
    record = RunRecord.from_json(training)
    assert record.data == training["data"]
    assert record.training_options.iterations == training["options"]["iterations"]
    assert record.unknown == {"iteration": training["iteration"]}
    with pytest.raises(ValueError, match="has no config, so this run cannot be trained"):
        _ = record.detector_config


def test_a_file_that_is_not_a_record_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run\.json does not exist; name the folder of a run"):
        read_record(tmp_path)
    for content in ("{", "[]", '{"options": {"iterations": 3}}', '{"options": {"unheard_of": 3}}'):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(
            ValueError, match=r"run\.json is not what faster-rcnn train wrote .*; fix it, or start a new"
        ):
            read_record(tmp_path)


def test_a_new_run_uses_the_users_options_and_defaults_for_the_others(tmp_path: Path) -> None:
    record = begin(tmp_path, learning_rate=0.5, min_size=96, max_size=192, anchor_scales=[32, 64])
    assert record.training_options.learning_rate == 0.5
    assert record.training_options.optimiser == "adamw"  # from scratch
    assert record.training_options.warm_up == 2  # a quarter of eight iterations
    assert record.detector_config.anchor_scales == (32, 64)
    assert (record.detector_config.resize.min_size, record.detector_config.resize.max_size) == (96, 192)


def test_the_steps_of_an_alternating_run_set_its_length(tmp_path: Path) -> None:
    assert begin(tmp_path, schedule="alternating").step_iterations == (3, 1, 3, 1)  # 8 · 2/6 = 2.67, 8 · 1/6 = 1.33
    steps = {"schedule": "alternating", "step_iterations": [5, 6, 7, 8]}
    record = begin_run(tmp_path, {"data": "shapes", "batch_size": 2, **steps}, "", "cpu")
    assert record.step_iterations == (5, 6, 7, 8)
    assert record.training_options.iterations == 26


def test_iterations_are_divided_as_in_the_reference_code() -> None:
    assert step_iterations(240000) == (80000, 40000, 80000, 40000)
    assert step_iterations(1) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"schedule": "fast-rcnn"}, "--proposals SOURCE and --schedule fast-rcnn belong together"),
        ({"proposals": ["sliding-window"]}, "--proposals SOURCE and --schedule fast-rcnn belong together"),
        ({"schedule": "fast-rcnn", "proposals": ["sliding-window"] * 3}, "names one source, or one for training and"),
        ({"schedule": "fast-rcnn", "proposals": ["magic"]}, "'magic' is not a source of proposals; choose one of:"),
        ({"step_iterations": [1, 1, 1, 1]}, "belongs to --schedule alternating"),
        ({"schedule": "alternating", "step_iterations": [1, 1, 1, 1]}, "leave out --iterations"),
        ({"target_normalisation": "measured"}, "needs proposals that do not change during training"),
        ({"trainable_from": "conv9_9"}, "has no stage 'conv9_9'"),
        ({"batch_size": 3, "accumulate": 2}, "choose another --batch-size or --accumulate"),
        ({"data": "voc2012"}, "unknown kind, and not a folder or file that exists"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        begin(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run" / STEPS[0]).mkdir(parents=True)
    begin(tmp_path / "run")
    (tmp_path / "run" / STEPS[0] / NAME).touch()
    with pytest.raises(FileExistsError, match="holds a run already; add --resume to go on with it"):
        begin(tmp_path / "run")


def test_resuming_changes_the_rate_and_the_length_and_records_the_command(tmp_path: Path) -> None:
    record = begin(tmp_path)
    write_record(tmp_path, record)
    assert resume_run(tmp_path, {}, "first") == record
    changed = resume_run(tmp_path, {"iterations": 9, "learning_rate": 0.25}, "second")
    assert changed.options == replace(record.training_options, iterations=9, learning_rate=0.25)
    assert changed.resumed == ("second",)
    write_record(tmp_path, changed)
    assert resume_run(tmp_path, {"workers": 3}, "third").resumed == ("second", "third")


def test_resuming_refuses_changes_to_other_options(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is nothing to resume; leave out --resume"):
        resume_run(tmp_path, {}, "")
    write_record(tmp_path, begin(tmp_path))
    with pytest.raises(ValueError, match="goes on with the run's own options; leave out --batch-size, --seed"):
        resume_run(tmp_path, {"batch_size": 4, "seed": 1}, "")
    with pytest.raises(ValueError, match=r"can only be raised; .* has 8"):
        resume_run(tmp_path, {"iterations": 7}, "")
    write_record(tmp_path, begin(tmp_path, schedule="alternating"))
    with pytest.raises(ValueError, match="start a new run to train longer"):
        resume_run(tmp_path, {"iterations": 9}, "")


def alternating_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    write_record(folder, RunRecord(schedule="alternating", step_iterations=(4, 2, 4, 2)))
    return folder


def test_an_unfinished_alternating_run_names_the_step_to_finish(tmp_path: Path, detector: FasterRCNN) -> None:
    folder = alternating_run(tmp_path / "run")
    remedy = f"go on with faster-rcnn train --out {folder} --resume"
    with pytest.raises(ValueError, match=f"has not finished step 1-rpn yet; {remedy}"):
        check_finished(folder)
    for step, iteration in ((STEPS[0], 4), (STEPS[1], 1)):  # of 4 and of 2
        (folder / step).mkdir()
        save_state(folder / step / NAME, detector, "rpn", iteration)
    with pytest.raises(ValueError, match=f"has not finished step 2-fast-rcnn yet; {remedy}"):
        find_record(folder)
    for step in STEPS:
        (folder / step).mkdir(exist_ok=True)
        save_state(folder / step / NAME, detector, "rpn", 4)
    with pytest.raises(ValueError, match=f"has not assembled its detector yet; {remedy}"):
        find_record(folder)
    save_state(folder / NAME, detector, "joint", 12)
    found = find_record(folder)
    assert found is not None
    assert found.schedule == "alternating"


def test_runs_of_other_schedules_have_no_steps_to_finish(tmp_path: Path) -> None:
    write_record(tmp_path, RunRecord(schedule="joint"))
    assert find_record(tmp_path) == RunRecord(schedule="joint")


def test_the_record_is_found_from_a_checkpoint_and_from_a_step(tmp_path: Path, detector: FasterRCNN) -> None:
    folder = alternating_run(tmp_path / "run")
    (folder / STEPS[1]).mkdir()
    save_state(folder / STEPS[1] / NAME, detector, "fast-rcnn", 2)
    save_state(folder / NAME, detector, "joint", 12)
    for target in (folder, folder / NAME, folder / STEPS[1], folder / STEPS[1] / NAME):
        assert find_record(target) == read_record(folder)
    (folder / NAME).rename(tmp_path / "taken-out.pt")
    assert find_record(tmp_path / "taken-out.pt") is None
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; faster-rcnn train --out .*nowhere writes it"):
        find_record(tmp_path / "nowhere")


def test_only_steps_2_and_4_use_the_proposals_of_the_step_before(tmp_path: Path) -> None:
    found = [proposals_of_step(tmp_path / step) for step in STEPS]
    assert [found[0], found[2], proposals_of_step(tmp_path)] == [None, None, None]
    assert found[1] == (tmp_path / "1-rpn", tmp_path / "1-rpn" / "proposals-val.npz")
    assert found[3] == (tmp_path / "3-rpn", tmp_path / "3-rpn" / "proposals-val.npz")
