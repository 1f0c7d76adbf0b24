"""A stand-in for the Hub over HTTP, for the requests of huggingface_hub about models.

``with serving() as hub`` serves at ``hub.url``. Repositories are in memory: branches, commits, files, LFS objects.
``hub.requests`` lists the requests. After ``hub.fail("POST", "/commit/", 503)`` the next such request fails with this
status, or with ``DROP`` by a closed connection; ``hub.spoil`` may change a file as it is committed.
"""

import base64
import hashlib
import json
import os
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvicorn
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

DROP = "drop"
TOKEN, STRANGER = "hf_ThisIsNoTokenOfAnybody0123", "hf_ThisIsNoTokenOfAStranger01"
LFS = (".safetensors", ".png", ".bin")


@dataclass
class Repo:
    """Branches by name, commits by their number: ``{path: content}``."""

    private: bool
    branches: dict = field(default_factory=dict)
    commits: dict = field(default_factory=dict)
    messages: list = field(default_factory=list)

    def commit(self, branch, files, message):
        sha = hashlib.sha1(f"{branch}{len(self.commits)}{message}{sorted(files)}{id(self)}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.messages.append(message)
        return sha

    def resolve(self, revision):
        return self.branches.get(revision, revision if revision in self.commits else None)


def refusal(status, message, code=""):
    headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
    return HTTPException(status, message, {name: value for name, value in headers.items() if value})


def oid(path, content):
    """The Hub's digest of a file: SHA-256 in LFS, else git's SHA-1."""
    if path.endswith(LFS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """The state of the stand-in and its ASGI application."""

    def __init__(self):
        self.users = {TOKEN: ("me", ["team"]), STRANGER: ("stranger", [])}
        self.roles = {}  # of a token, or of a member of an organization; the default is write
        self.repos, self.objects, self.requests, self.faults = {}, {}, [], []
        self.url, self.spoil = "", lambda path, content: content
        model = "/api/models/{repo:path}"
        routes = {
            "GET /api/whoami-v2": self.whoami,
            "POST /api/repos/create": self.create,
            "POST /api/validate-yaml": self.validate,
            f"PUT {model}/settings": self.settings,
            f"POST {model}/branch/{{branch:path}}": self.branch,
            f"POST {model}/preupload/{{revision:path}}": self.preupload,
            f"POST {model}/commit/{{revision:path}}": self.commit,
            f"GET {model}/tree/{{revision:path}}": self.tree,
            f"GET {model}/revision/{{revision:path}}": self.info,
            f"GET {model}": self.info,
            "POST /{repo:path}.git/info/lfs/objects/batch": self.batch,
            "PUT /lfs/{name}": self.put,
            "GET /objects/{name}": self.get_object,
            "GET /{repo:path}/resolve/{revision}/{path:path}": self.resolve,
        }
        self.app = Starlette(
            routes=[Route(key.split()[1], endpoint, methods=[key.split()[0]]) for key, endpoint in routes.items()]
        )

    def fail(self, method, part, status, message="", times=1):
        """The next requests of this method with ``part`` in their path fail."""
        self.faults.append([method, part, status, message, times])

    def files(self, repo, revision="main"):
        """The files of a repository by path."""
        return self.repos[repo].commits[self.repos[repo].resolve(revision)]

    def count(self, method, part):
        """The number of such requests."""
        return sum(m == method and part in p for m, p in self.requests)

    async def __call__(self, scope, receive, send):
        method, path, response = scope["method"], scope["path"], self.app
        self.requests.append((method, path))
        for fault in self.faults:
            if fault[0] == method and fault[1] in path and fault[4] > 0:
                fault[4] -= 1
                await Request(scope, receive).body()
                if fault[2] == DROP:  # uvicorn closes the connection after an exception in the body
                    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
                    raise ConnectionError
                headers = {"X-Error-Message": fault[3]} if fault[3] else {}
                response = JSONResponse({"error": fault[3]}, fault[2], headers)
                break
        await response(scope, receive, send)

    def names(self, request):
        """The namespaces that the token of a request may write to."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.users:
            raise refusal(401, "Invalid credentials in Authorization header")
        name, groups = self.users.get(token, (None, []))
        return [name, *groups] if name else []

    def repo(self, request, *, write=False):
        name, names = request.path_params["repo"], self.names(request)
        repo, owned = self.repos.get(name), name.split("/")[0] in names
        if repo is None or (repo.private and not owned):
            raise refusal(404 if names else 401, "Repository not found", "RepoNotFound")
        if write and not owned:
            raise refusal(403, "You don't have the rights to write to this repository")
        return repo

    def at(self, request):
        """The commit and files at the revision of a request."""
        repo, revision = self.repo(request), request.path_params.get("revision", "main")
        sha = repo.resolve(revision)
        if sha is None:
            raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, repo.commits[sha]

    async def whoami(self, request):
        names = self.names(request)
        if not names:
            raise refusal(401, "Invalid username or password.")
        role = self.roles.get(request.headers["Authorization"].removeprefix("Bearer "), "write")
        orgs = [{"type": "org", "name": name, "roleInOrg": self.roles.get(name, "write")} for name in names[1:]]
        auth = {"type": "access_token", "accessToken": {"displayName": "t", "role": role}}
        return JSONResponse({"type": "user", "name": names[0], "orgs": orgs, "auth": auth})

    async def create(self, request):
        body, names = await request.json(), self.names(request)
        owner = body.get("organization") or (names or [""])[0]
        name = f"{owner}/{body['name']}"
        if owner not in names:
            raise refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if name in self.repos:
            return JSONResponse({"error": "You already created this model repo", "url": f"{self.url}/{name}"}, 409)
        self.repos[name] = Repo(body.get("visibility") == "private" or bool(body.get("private")))
        self.repos[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return JSONResponse({"url": f"{self.url}/{name}", "name": name})

    async def info(self, request):
        (sha, files), name = self.at(request), request.path_params["repo"]
        fields = {"_id": "0", "id": name, "modelId": name, "sha": sha, "private": self.repos[name].private, "tags": []}
        return JSONResponse({**fields, "siblings": [{"rfilename": name} for name in sorted(files)]})

    async def settings(self, request):
        repo, body = self.repo(request, write=True), await request.json()
        repo.private = body.get("visibility", "private" if body.get("private") else "public") == "private"
        return JSONResponse({"private": repo.private})

    async def branch(self, request):
        repo, branch = self.repo(request, write=True), request.path_params["branch"]
        if branch in repo.branches:
            raise refusal(409, f"Reference refs/heads/{branch} already exists")
        repo.branches[branch] = repo.branches["main"]
        return JSONResponse({})

    async def tree(self, request):
        entries = []
        for path, content in sorted(self.at(request)[1].items()):
            entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            if path.endswith(LFS):
                entry["lfs"] = {"oid": oid(path, content), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return JSONResponse(entries)

    async def preupload(self, request):
        self.repo(request, write=True)
        files, entries = self.at(request)[1], []
        for path in (entry["path"] for entry in (await request.json())["files"]):
            mode, present = "lfs" if path.endswith(LFS) else "regular", path in files
            digest = oid(path, files[path]) if present else None
            entries.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": digest})
        return JSONResponse({"files": entries})

    async def batch(self, request):
        self.repo(request, write=True)
        entries = []
        for digest, size in ((entry["oid"], entry["size"]) for entry in (await request.json())["objects"]):
            actions = {"actions": {"upload": {"href": f"{self.url}/lfs/{digest}"}}}
            entries.append({"oid": digest, "size": size, **({} if digest in self.objects else actions)})
        return JSONResponse({"transfer": "basic", "objects": entries})

    async def put(self, request):
        content, name = await request.body(), request.path_params["name"]
        if hashlib.sha256(content).hexdigest() != name:
            raise refusal(400, "the content does not have this digest")
        self.objects[name] = content
        return JSONResponse({})

    async def get_object(self, request):
        """From another host, as on the Hub, which must never see a token."""
        assert "Authorization" not in request.headers
        name = request.path_params["name"]
        return Response(self.objects[name], headers={"ETag": f'"{name}"'})

    async def commit(self, request):
        repo, revision = self.repo(request, write=True), request.path_params["revision"]
        if revision not in repo.branches:
            raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files, header = dict(repo.commits[repo.branches[revision]]), {}
        for line in (await request.body()).splitlines():
            key, value = (json.loads(line)[name] for name in ("key", "value"))
            if key == "header":
                header = value
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                lfs = key == "lfsFile"
                files[value["path"]] = self.objects[value["oid"]] if lfs else base64.b64decode(value["content"])
        files = {path: self.spoil(path, content) for path, content in files.items()}
        self.objects |= {oid(path, content): content for path, content in files.items() if path.endswith(LFS)}
        sha = repo.commit(revision, files, header["summary"])
        url = f"{self.url}/{request.path_params['repo']}/commit/{sha}"
        return JSONResponse({"success": True, "commitOid": sha, "commitUrl": url})

    async def resolve(self, request):
        (sha, files), path = self.at(request), request.path_params["path"]
        headers = {"X-Repo-Commit": sha}
        if path not in files:
            return JSONResponse({}, 404, {**headers, "X-Error-Code": "EntryNotFound"})
        content = files[path]
        headers["ETag"] = f'"{oid(path, content)}"'
        if not path.endswith(LFS):
            return Response(content, headers=headers)
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        url = self.url.replace("127.0.0.1", "localhost")
        return RedirectResponse(f"{url}/objects/{oid(path, content)}", 302, headers)

    async def validate(self, request):
        """The Hub's own check of a card before an upload."""
        try:
            data = yaml.safe_load((await request.json())["content"].split("---\n")[1])
            assert isinstance(data["license"], str)
            if "model-index" in data:
                model_index_to_eval_results(data["model-index"])
        except Exception as error:
            return JSONResponse({"errors": [{"message": f"{type(error).__name__}: {error}"}], "warnings": []}, 400)
        return JSONResponse({"errors": [], "warnings": []})


@contextmanager
def serving():
    """A stand-in that listens on this machine."""
    hub, listener = Hub(), socket.create_server(("127.0.0.1", 0))
    hub.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = uvicorn.Server(uvicorn.Config(hub, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def environment(hub, home, token=TOKEN):
    """The environment of a process that uses the stand-in; huggingface_hub reads it when it is imported."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE"))}
    variables |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    variables |= {"HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    return variables | ({"HF_TOKEN": token} if token else {})
