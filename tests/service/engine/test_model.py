import json
import os
import shutil

import onnx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import onnx_subgraph
from service.engine.card import Card, CardError, read_card
from service.engine.model import (
    Model,
    ModelIncompleteError,
    ModelMismatchError,
    ModelRefusedError,
    ModelUnreadableError,
    load_model,
)
from service.engine.providers import CPU, CUDA
from tests.service import graphs


def test_the_embedded_model_loads(embedded):
    model = load_model(embedded)
    assert model.id == ("shapes", 1)
    assert len(model.card.labels) == 6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"sha256": "short"}, "sha256"),
        ({"name": "other"}, "folder is plain/1"),
        ({"version": 7}, "folder is plain/1"),
        ({"labels": []}, "labels"),
        ({"labels": ["a", "a"]}, "twice"),
        ({"canvases": []}, "canvases"),
        ({"canvases": [[64, 96]]}, "no canvas holds 96 x 64"),
        ({"canvases": [[96, 96]], "resize": {"min_size": 200, "max_size": 97}}, "no canvas holds 97 x 97"),
        ({"resize": {"min_size": 0, "max_size": 96}}, "resize.min_size"),
        ({"resize": {"min_size": 64, "max_size": 96, "antialias": "perhaps"}}, "resize.antialias"),
        ({"score_threshold": 2}, "score_threshold"),
        ({"score_threshold": float("nan")}, "score_threshold"),
        ({"version": -1}, "version"),
        ({"version": True}, "version"),
        ({"score_threshold": True}, "score_threshold"),
        ({"resize": {"min_size": True, "max_size": 96}}, "resize.min_size"),
        ({"canvases": [[True, 96]]}, "canvases"),
        ({"metrics": {"AP": [0.5, float("nan")]}}, "metrics.AP.1 is not a finite number"),
        ({"note": {"limit": float("inf")}}, "note.limit is not a finite number"),
        ({"version": 2**60}, "version"),
        ({"labels": ["a", "  "]}, "label 1 is blank"),
        ({"labels": ["a", ""]}, "label 1 is blank"),
        ({"labels": ["a", " a"]}, "labels 0 and 1"),
        ({"labels": ["\u00e9", "e\u0301"]}, "labels 0 and 1"),  # the same letter, written in two ways
        ({"labels": ["a\nb"]}, "control character"),
        ({"labels": ["a\x00"]}, "control character"),
        ({"labels": ["a" * 201]}, "label 0 has 201 characters"),
        ({"labels": [str(number) for number in range(10_001)]}, "labels"),
        ({"labels": [1, 2]}, "labels"),
        ({"canvases": [[0, 0]]}, "canvases"),
        ({"canvases": [[-5, -5]]}, "canvases"),
        ({"canvases": [[64]]}, "canvases"),
        ({"canvases": [[64, 96.5]]}, "canvases"),
        ({"canvases": [[64, 96], [96, 64], [64, 96]]}, "canvas 64 x 96 occurs twice"),
        ({"canvases": [[96, 100 + number] for number in range(257)]}, "canvases"),
        ({"canvases": [[16_385, 16_385]]}, "canvases"),
        ({"resize": {"min_size": 64, "max_size": 2**40}}, "resize.max_size"),
        ({"resize": {"min_size": 2**40, "max_size": 96}}, "resize.min_size"),
        ({"metrics": {"AP": 2**64}}, "metrics.AP is beyond 64 bits"),
        ({"training": [{"seed": -(2**70)}]}, r"training\.0\.seed is beyond 64 bits"),
        ({"opset": 2**64}, "opset is beyond 64 bits"),
        ({"extra": "x" * 2**20}, "more than 1048576 bytes"),
    ],
)
@pytest.mark.contract("4.1", "4.3")
def test_a_version_with_a_wrong_card_is_refused_with_the_reason(tmp_path, change, reason):
    folder = graphs.publish(tmp_path, card=change)
    with pytest.raises(ModelRefusedError, match=reason):
        load_model(folder)


@pytest.mark.parametrize("missing", ["model.json", "model.onnx"])
def test_a_missing_file_is_named(tmp_path, missing):
    folder = graphs.publish(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(ModelIncompleteError, match=missing) as refused:
        load_model(folder)
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("name", ["model.json", "model.onnx"])
@pytest.mark.contract("4.3")
def test_a_file_that_cannot_be_read_now_may_be_readable_later(tmp_path, monkeypatch, name):
    folder = graphs.publish(tmp_path)
    real = os.open

    def as_another_user(path, *how, **more):
        if str(path).endswith(name):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *how, **more)

    monkeypatch.setattr(os, "open", as_another_user)
    with pytest.raises(ModelUnreadableError, match=r"cannot be read now \(permission denied\)") as refused:
        load_model(folder)
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("name", ["model.json", "model.onnx"])
def test_a_folder_or_a_pipe_in_place_of_a_file_is_refused_and_never_waited_for(tmp_path, name):
    folder = graphs.publish(tmp_path)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(ModelRefusedError, match="not a file"):
        load_model(folder)
    (folder / name).rmdir()
    os.mkfifo(folder / name)
    with pytest.raises(ModelRefusedError, match=name):
        load_model(folder)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.contract("4.2")
def test_a_file_that_is_cut_short_may_still_be_arriving(tmp_path, share):
    folder = graphs.publish(tmp_path)
    for name in ("model.onnx", "model.json"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ModelIncompleteError, match=name.replace(".", r"\.")):
            load_model(folder)


def test_space_that_a_copy_reserved_but_did_not_fill_counts_as_cut_short(tmp_path):
    folder = graphs.publish(tmp_path)
    size = (folder / "model.onnx").stat().st_size
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[: size // 2].ljust(size, b"\0"))
    with pytest.raises(ModelIncompleteError):
        load_model(folder)


def test_another_whole_graph_is_a_mismatch(tmp_path):
    folder = graphs.publish(tmp_path)
    (folder / "model.onnx").write_bytes(graphs.graph(work=1).SerializeToString())
    with pytest.raises(ModelMismatchError, match="SHA-256"):
        load_model(folder)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("{", "ends too early"),
        ("[]", "the document"),
        ("null", "the document"),
        ("\ufeff{}", "byte order mark"),
        ('{"a": }', "is not valid JSON at line 1 column 7"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' + "[" * 190 + "]" * 190 + "}", "model.json"),
        ('{"name": "\\ud800"}', "is not valid JSON"),
        ('{"' + "x" * 10_000 + '": 1}', "model.json"),
    ],
)
def test_a_broken_card_is_refused_in_one_short_line(tmp_path, text, reason):
    folder = graphs.publish(tmp_path)
    (folder / "model.json").write_text(text)
    with pytest.raises(ModelRefusedError, match=r"model\.json") as refused:
        load_model(folder)
    assert reason in str(refused.value)
    assert len(str(refused.value)) <= 300
    assert "\n" not in str(refused.value)


CARD = {
    "name": "plain",
    "version": 1,
    "labels": graphs.LABELS,
    "canvases": graphs.CANVASES,
    "resize": graphs.RESIZE,
    "score_threshold": 0.5,
    "sha256": "0" * 64,
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*Card.model_fields, "extra"]), JSON)
@settings(deadline=None)
@pytest.mark.contract("4.3")
def test_any_value_in_a_card_is_refused_in_one_line_or_can_be_shown(member, value):
    data = json.dumps(CARD | {member: value}).encode()
    try:
        card = read_card(data)
    except CardError as error:
        reason = str(error)
    else:
        assert orjson.loads(orjson.dumps(card.model_dump(mode="json")))["name"] == card.name
        return
    assert 0 < len(reason) <= 300
    assert "\n" not in reason


@pytest.mark.contract("4.1")
def test_unknown_members_of_the_card_are_kept(tmp_path):
    folder = graphs.publish(tmp_path, card={"tools": {"torch": "2.15.0"}})
    assert load_model(folder).card.model_dump()["tools"] == {"torch": "2.15.0"}


def test_a_model_can_be_copied_to_another_store(embedded, tmp_path):
    copy = tmp_path / "elsewhere" / "shapes" / "1"
    shutil.copytree(embedded, copy)
    assert load_model(copy).card.sha256 == json.loads((embedded / "model.json").read_text())["sha256"]


def test_images_are_resized_with_antialiasing_by_default(tmp_path):
    assert load_model(graphs.publish(tmp_path, version=1)).card.geometry.antialias
    without = {"resize": {"min_size": 64, "max_size": 96, "antialias": False}}
    assert not load_model(graphs.publish(tmp_path, version=2, card=without)).card.geometry.antialias


# --- versions with several graphs ------------------------------------------------------------------------------------

ENTRY = {"file": "model.cuda.onnx", "sha256": "0" * 64, "bytes": 10}


def several(tmp_path, **entry):
    """A version with a second graph for CUDA, which returns 0.5 in the optional output and refers to the first."""
    folder = graphs.publish(tmp_path)
    portable = (folder / "model.onnx").read_bytes()
    second = graphs.graph(left_out=0.5)
    weight = next(one.name for one in second.graph.initializer if list(one.dims) == [3, 4])
    graphs.add_graph(folder, graphs.referring(portable, second, weight), **entry)
    return folder


@pytest.mark.contract("4.8")
def test_cuda_gets_the_graph_for_it_and_every_other_provider_the_portable_one(tmp_path):
    model = load_model(several(tmp_path))
    assert model.graph_for(CPU) == model.graph == (tmp_path / "plain" / "1" / "model.onnx").read_bytes()
    found = onnx.load_from_string(model.graph_for(CUDA))
    assert {output.name for output in found.graph.output} >= {"boxes", "left_out"}
    onnx_subgraph.refuse_external_data(model.graph_for(CUDA))
    assert model.graph_for(CUDA) is model.graph_for(CUDA, "tf32")  # read once


@pytest.mark.parametrize(
    ("names", "precision", "expected"),
    [
        ((), "strict", None),
        (("cuda",), "strict", "cuda"),
        (("cuda",), "tf32", "cuda"),
        (("cuda",), "fp16", "cuda"),
        (("cuda", "cuda-fp16"), "strict", "cuda"),
        (("cuda", "cuda-fp16"), "tf32", "cuda"),
        (("cuda", "cuda-fp16"), "fp16", "cuda-fp16"),
        (("cuda-fp16",), "strict", None),
        (("later",), "fp16", None),
    ],
)
@pytest.mark.contract("4.8")
def test_the_graph_of_the_wanted_precision_is_chosen(names, precision, expected):
    described = {
        name: {
            "file": f"model.{name}.onnx",
            "sha256": "0" * 64,
            "bytes": 1,
            "precision": "fp16" if "fp16" in name else "fp32",
        }
        for name in names
    }
    model = Model(Card(**CARD, graphs=described), b"")
    chosen = model.other_graph(CUDA, precision)
    assert (chosen and chosen.file) == (expected and f"model.{expected}.onnx")
    assert model.precision_for(CUDA, precision) == ("fp16" if expected == "cuda-fp16" else "fp32")
    assert model.other_graph(CPU, precision) is None
    for_the_cpu_alone = Model(Card(**CARD, graphs=described, provider="cpu", precision="int8"), b"")
    assert for_the_cpu_alone.other_graph(CUDA, precision) is None
    assert for_the_cpu_alone.precision_for(CUDA, precision) == "int8"


def remove(file):
    file.unlink()


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def lengthen(file):
    file.write_bytes(file.read_bytes() + b"\0")


def alter(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def replace_by_a_folder(file):
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        (remove, ModelIncompleteError, r"model\.cuda\.onnx is missing"),
        (cut, ModelIncompleteError, r"model\.cuda\.onnx has \d+ bytes, model\.json says \d+"),
        (lengthen, ModelMismatchError, r"model\.cuda\.onnx has SHA-256"),
        (alter, ModelMismatchError, r"model\.cuda\.onnx has SHA-256"),
        (replace_by_a_folder, ModelRefusedError, r"model\.cuda\.onnx is not a file"),
    ],
)
@pytest.mark.contract("4.8")
def test_a_wrong_file_is_refused_where_it_would_run_and_nowhere_else(tmp_path, change, kind, reason):
    folder = several(tmp_path)
    change(folder / "model.cuda.onnx")
    model = load_model(folder)
    assert model.graph_for(CPU) == model.graph
    with pytest.raises(kind, match=reason) as refused:
        model.graph_for(CUDA)
    assert str(tmp_path) not in str(refused.value)


@pytest.mark.contract("4.8")
def test_a_wrong_reference_is_refused_with_the_name_of_the_file(tmp_path):
    folder = graphs.publish(tmp_path)
    portable = (folder / "model.onnx").read_bytes()
    second = graphs.graph()
    weight = next(one.name for one in second.graph.initializer if list(one.dims) == [3, 4])
    graphs.add_graph(folder, graphs.referring(portable, second, weight, location="/etc/passwd"))
    with pytest.raises(ModelRefusedError, match=r"^model\.cuda\.onnx: tensor 'constant\d+' is stored in another file"):
        load_model(folder).graph_for(CUDA)


@pytest.mark.parametrize(
    ("listed", "where"),
    [
        ({"cuda": ENTRY | {"file": "../2/model.onnx"}}, r"graphs\.cuda\.file"),
        ({"cuda": ENTRY | {"file": "/etc/passwd"}}, r"graphs\.cuda\.file"),
        ({"cuda": ENTRY | {"file": "model.cuda.onnx/../../x.onnx"}}, r"graphs\.cuda\.file"),
        ({"cuda": ENTRY | {"file": "model.onnx"}}, r"graphs\.cuda\.file"),
        ({"cuda": ENTRY | {"file": "model.cuda.onnx\n"}}, r"graphs\.cuda\.file"),
        ({"cuda": ENTRY | {"file": "model." + "x" * 200 + ".onnx"}}, r"graphs\.cuda\.file"),
        ({"cuda": ENTRY | {"sha256": "short"}}, r"graphs\.cuda\.sha256"),
        ({"cuda": ENTRY | {"bytes": 0}}, r"graphs\.cuda\.bytes"),
        ({"cuda": ENTRY | {"bytes": True}}, r"graphs\.cuda\.bytes"),
        ({"cuda": ENTRY | {"bytes": 2**70}}, r"graphs\.cuda\.bytes"),
        ({"cuda": ENTRY | {"precision": "fp64"}}, r"graphs\.cuda\.precision"),
        ({"cuda": {"file": "model.cuda.onnx", "bytes": 10}}, r"graphs\.cuda\.sha256"),
        ({"cu da": ENTRY}, r"graphs\.cu da"),
        ({"cuda": ENTRY, "cuda-fp16": ENTRY}, "graphs: two graphs have the same file"),
        ({f"g{n}": ENTRY | {"file": f"model.g{n}.onnx"} for n in range(17)}, "graphs"),
        ("cuda", "graphs"),
    ],
)
@pytest.mark.contract("4.8")
def test_a_card_with_a_wrong_list_of_graphs_is_refused(tmp_path, listed, where):
    with pytest.raises(ModelRefusedError, match=f"model.json: {where}"):
        load_model(graphs.publish(tmp_path, card={"graphs": listed}))


def test_other_members_of_a_graphs_entry_are_kept(tmp_path):
    verification = {"boxes_compared": 7}
    folder = several(tmp_path, verification=verification)
    assert load_model(folder).card.model_dump()["graphs"]["cuda"]["verification"] == verification
