"""The document at /openapi.json, and its examples, which must work when pasted."""

import json
import subprocess

import httpx
from PIL import Image

from tests.end_to_end.conftest import scene


def document(server) -> dict:
    return server.http.get("/openapi.json").json()


def test_the_json_example_works_when_pasted(server):
    paths = document(server)["paths"]
    for path in ("/detect", "/proposals"):
        example = paths[path]["post"]["requestBody"]["content"]["application/json"]["example"]
        response = server.http.post(path, content=json.dumps(example), headers={"Content-Type": "application/json"})
        assert response.status_code == 200
        assert (response.json()["image"]["width"], response.json()["image"]["height"]) == (160, 120)


def test_the_curl_lines_work_when_pasted(server, tmp_path):
    scene(640, 480).save(tmp_path / "image.jpg")
    for path in ("/detect", "/proposals"):
        for sample in document(server)["paths"][path]["post"]["x-codeSamples"]:
            command = sample["source"].replace("http://127.0.0.1:8000", server.url)
            said = subprocess.run(f"{command} --fail -sS", shell=True, cwd=tmp_path, capture_output=True, check=True)
            if "drawn.png" not in command:
                assert json.loads(said.stdout)["boxes"]
    assert Image.open(tmp_path / "drawn.png").size == (640, 480)


def test_all_three_kinds_of_upload_are_documented(server):
    for path in ("/detect", "/proposals"):
        content = document(server)["paths"][path]["post"]["requestBody"]["content"]
        assert {"multipart/form-data", "application/json", "image/jpeg", "application/octet-stream"} <= set(content)


def test_every_media_type_of_an_answer_and_every_parameter_is_documented(server):
    paths = document(server)["paths"]
    forms = {"application/json", "application/x-npz"}
    assert set(paths["/detect"]["post"]["responses"]["200"]["content"]) == forms | {"image/png", "image/jpeg"}
    for method in ("get", "post"):
        assert set(paths["/proposals"][method]["responses"]["200"]["content"]) == forms
        found = {each["name"]: each for each in paths["/proposals"][method]["parameters"]}
        assert found["priority"]["schema"]["enum"] == ["interactive", "bulk"]
        assert found["timeout"]["schema"]["exclusiveMinimum"] == 0
        assert "proposals" not in found


def test_every_reference_resolves_and_every_error_is_a_problem(server):
    found = document(server)
    for reference in set(json.dumps(found).split('"$ref": "')[1:]):
        name = reference.split('"')[0].rpartition("/")[2]
        assert name in found["components"]["schemas"]
    responses = found["paths"]["/detect"]["post"]["responses"]
    assert {"200", "400", "404", "413", "415", "422", "429", "500", "503", "504"} <= set(responses)
    for status, response in responses.items():
        assert ("application/problem+json" in response["content"]) == (status != "200")
    assert "HTTPValidationError" not in json.dumps(found)


def test_answers_have_the_documented_headers(server):
    paths = document(server)["paths"]
    example = paths["/detect"]["post"]["requestBody"]["content"]["application/json"]["example"]
    for path in ("/detect", "/proposals"):
        responses = paths[path]["post"]["responses"]
        assert {status for status, each in responses.items() if "Retry-After" in each["headers"]} == {"429", "503"}
        for status, query, body in (
            ("200", "", example),
            ("400", "", {"image": "aGVsbG8="}),
            ("422", "?max_proposals=0", example),
        ):
            answer = server.http.post(path + query, json=body)
            assert str(answer.status_code) == status
            documented = {name.lower() for name in responses[status]["headers"]} - {
                "image-warnings",
                "answer-truncated",
            }
            assert documented == {"x-request-id", "image-id", "server-timing", "retry-after"} & set(answer.headers)
        stages = responses["200"]["headers"]["Server-Timing"]["description"]
        timing = server.http.post(path, json=example).headers["server-timing"]
        assert all(stage.split(";")[0] in stages for stage in timing.split(", "))
    for operations in paths.values():
        for operation in operations.values():
            assert all("X-Request-ID" in each["headers"] for each in operation["responses"].values())


def test_answers_have_the_documented_members(server):
    schemas = document(server)["components"]["schemas"]
    example = document(server)["paths"]["/detect"]["post"]["requestBody"]["content"]["application/json"]["example"]
    answer = server.http.post("/detect?proposals=true", json=example).json()
    assert set(answer) == set(schemas["DetectAnswer"]["properties"])
    assert set(answer["timing"]) == set(schemas["Timing"]["properties"])
    ready = server.http.get("/readyz").json()
    assert set(ready) == set(schemas["ReadyAnswer"]["properties"])
    models = server.http.get("/models").json()
    assert set(models) == set(schemas["ModelsAnswer"]["properties"])


def test_the_documentation_is_served(server):
    assert httpx.get(f"{server.url}/docs").status_code == 200
