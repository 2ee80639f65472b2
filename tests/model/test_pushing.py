"""Models on the hub: pushed to a stand-in for its HTTP, and loaded from what lies there."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch
from transformers import BertConfig, BertModel

import multiexit as mx
from multiexit.model import hub

SHA = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as pushing and loading a model asks for."""

    def log_message(self, *_):
        pass

    def answer(self, data, status=200, **headers):
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        store = self.server.store
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        store["asked"].append((self.path, self.headers.get("Authorization")))
        if self.path == "/api/repos/create":
            store["repo"] = json.loads(body)
            self.answer({"url": f"{self.server.address}/me/tiny", "id": "me/tiny"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in files
                    ]
                }
            )
        elif "/branch/" in self.path:
            store["branch"] = self.path.rpartition("/")[2]
            self.answer({})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    content = base64.b64decode(item["value"]["content"])
                    store["files"][item["value"]["path"]] = content
            url = f"{self.server.address}/me/tiny/commit/{SHA}"
            self.answer({"commitOid": SHA, "commitUrl": url, "success": True})
        else:
            self.answer({"error": "no"}, 404)

    def do_GET(self):
        store = self.server.store
        if "/tree/" in self.path:
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": SHA}
                for name, content in store["files"].items()
            ]
            self.answer(listed)
            return
        if self.path.startswith("/api/models/me/tiny"):
            files = [{"rfilename": name} for name in store["files"]]
            self.answer({"id": "me/tiny", "sha": SHA, "siblings": files})
            return
        name = self.path.partition("/resolve/")[2].partition("/")[2]
        if name not in store["files"]:
            self.answer({"error": "no"}, 404, X_Error_Code="EntryNotFound")
            return
        content = store["files"][name]
        self.answer(content, X_Repo_Commit=SHA, ETag=f'"{abs(hash(content))}"')

    do_HEAD = do_GET


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.store = {"asked": [], "files": {}}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server.store
    server.shutdown()
    server.server_close()


def tiny():
    torch.manual_seed(0)
    model = mx.MultiExitModel(mx.cifar_resnet(20, in_channels=1, size=8), 3, exits=[2, 8]).eval()
    model.policy = mx.MaxProb(0.8)
    model.preprocessing = {"kind": "image", "data": {"data": "/home/me/secret.csv"}}
    return model


def test_what_is_pushed_is_loaded_again(stand_in):
    model, x = tiny(), torch.rand(2, 1, 8, 8)
    options = {"token": "hf_x", "private": True, "revision": "draft"}
    assert model.push_to_hub("me/tiny", **options).endswith(SHA)
    assert stand_in["repo"].get("private") or stand_in["repo"].get("visibility") == "private"
    assert stand_in["branch"] == "draft"
    assert {token for _, token in stand_in["asked"]} == {"Bearer hf_x"}
    assert b"secret" not in b"".join(stand_in["files"].values())
    again = mx.MultiExitModel.from_pretrained("me/tiny", token="hf_x")
    assert torch.equal(again(x), model(x))
    assert again.policy == model.policy


def test_a_folder_that_is_no_model_is_not_pushed(tmp_path, stand_in):
    with pytest.raises(ValueError, match="not a saved MultiExitModel"):
        hub.push(tmp_path, "me/tiny")
    assert not stand_in["asked"]


def test_a_hub_that_refuses_is_one_sentence(stand_in, monkeypatch):
    monkeypatch.setattr(Hub, "do_POST", lambda self: self.answer({"error": "quota"}, 403))
    with pytest.raises(OSError, match=r"me/tiny was not pushed: .*403"):
        tiny().push_to_hub("me/tiny")
    with pytest.raises(ValueError, match="no name of a repository"):
        tiny().push_to_hub("me/ti/ny")


def test_the_place_of_a_backbone_stays_here(stand_in, tmp_path):
    config = BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    BertModel(config).save_pretrained(tmp_path / "encoder")
    model = mx.MultiExitModel(mx.wrap(str(tmp_path / "encoder")), 2).eval()
    model.push_to_hub("me/tiny")
    assert str(tmp_path).encode() not in b"".join(stand_in["files"].values())
    ids = torch.tensor([[2, 3]])
    assert torch.equal(mx.MultiExitModel.from_pretrained("me/tiny")(input_ids=ids), model(ids))
