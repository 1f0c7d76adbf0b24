"""A stand-in for the Hub over HTTP, as far as huggingface_hub talks to it about models.

``with serving() as hub: hub.url`` is its address. Repositories live in memory: branches, commits, files, LFS objects.
What it was asked is in ``hub.asked``. ``hub.fail("POST", "/commit/", 503)`` makes the next such request fail by a
status, or with ``DROP`` by a closed connection; ``hub.spoil`` may change a file as it is committed.
"""

import base64
import hashlib
import json
import os
import re
import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

DROP = "drop"
TOKEN, STRANGER = "hf_ThisIsNoTokenOfAnybody0123", "hf_ThisIsNoTokenOfAStranger01"
LFS = (".safetensors", ".png", ".bin")
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


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


class Hub:
    """What the stand-in holds, and the script of its faults."""

    def __init__(self):
        self.users = {TOKEN: ("me", ["team"]), STRANGER: ("stranger", [])}
        self.roles = {}  # of a token, or of a member of an organization; write where nothing is said
        self.repos, self.objects, self.asked, self.faults = {}, {}, [], []
        self.url, self.spoil = "", lambda path, content: content
        self.lock = threading.RLock()

    def fail(self, method, part, status, message="", times=1):
        """The next requests of this method with ``part`` in their path fail."""
        self.faults.append([method, part, status, message, times])

    def files(self, repo, revision="main"):
        """The files of a repository by path."""
        found = self.repos[repo]
        return found.commits[found.resolve(revision)]

    def fault(self, method, path):
        for fault in self.faults:
            if fault[0] == method and fault[1] in path and fault[4] > 0:
                fault[4] -= 1
                return fault[2], fault[3]
        return None

    def count(self, method, part):
        """How often such a request came."""
        return sum(m == method and part in p for m, p in self.asked)


class Refused(Exception):
    """An answer that is no success: status, the Hub's word for it, a sentence."""

    def __init__(self, status, code="", message=""):
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def oid(path, content):
    """What the Hub calls a file: SHA-256 of one in LFS, git's SHA-1 of any other."""
    if path.endswith(LFS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = 1 << 16, True
    hub = None

    def do_ANY(self):
        size = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(size) if size else b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(iter(self.chunk, b""))
        self.where = urlsplit(self.path)
        path = unquote(self.where.path)
        with self.hub.lock:
            self.hub.asked.append((self.command, path))
            fault = self.hub.fault(self.command, path)
            try:
                if fault and fault[0] == DROP:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                if fault:
                    raise Refused(fault[0], "", fault[1])
                self.route(path)
            except Refused as refused:
                headers = {"X-Error-Code": refused.code} if refused.code else {}
                headers |= {"X-Error-Message": refused.message} if refused.message else {}
                self.answer({"error": refused.message}, refused.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_ANY  # noqa: N815

    def chunk(self):
        size = int(self.rfile.readline().strip() or b"0", 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def log_message(self, *args):
        """Nothing."""

    def answer(self, told, status=200, headers=()):
        data = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **dict(headers)}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def route(self, path):
        for method, pattern, name in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method:
                getattr(self, name)(**found.groupdict())
                return
        raise Refused(404, "", f"no such place: {self.command} {path}")

    def me(self):
        """The names that the token of this request may write to."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if not token:
            return []
        if token not in self.hub.users:
            raise Refused(401, "", "Invalid credentials in Authorization header")
        name, groups = self.hub.users[token]
        return [name, *groups]

    def owns(self, repo):
        return repo.split("/")[0] in self.me()

    def found(self, repo, *, write=False):
        there = self.hub.repos.get(repo)
        if there is None or (there.private and not self.owns(repo)):
            raise Refused(404 if self.me() else 401, "RepoNotFound", "Repository not found")
        if write and not self.owns(repo):
            raise Refused(403, "", "You don't have the rights to write to this repository")
        return there

    def at(self, repo, revision):
        there = self.found(repo)
        sha = there.resolve(revision)
        if sha is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, there.commits[sha]

    def whoami(self):
        names = self.me()
        if not names:
            raise Refused(401, "", "Invalid username or password.")
        roles, token = self.hub.roles, self.headers["Authorization"].removeprefix("Bearer ")
        orgs = [{"type": "org", "name": name, "roleInOrg": roles.get(name, "write")} for name in names[1:]]
        auth = {"type": "access_token", "accessToken": {"displayName": "t", "role": roles.get(token, "write")}}
        self.answer({"type": "user", "name": names[0], "orgs": orgs, "auth": auth})

    def create(self):
        asked = json.loads(self.body)
        owner = asked.get("organization") or (self.me() or [""])[0]
        repo = f"{owner}/{asked['name']}"
        if not self.me():
            raise Refused(401, "", "Invalid username or password.")
        if not self.owns(repo):
            raise Refused(403, "", f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if repo in self.hub.repos:
            body = {"error": "You already created this model repo", "url": f"{self.hub.url}/{repo}"}
            self.answer(body, 409)
            return
        made = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        made.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self.hub.repos[repo] = made
        self.answer({"url": f"{self.hub.url}/{repo}", "name": repo})

    def info(self, repo, revision="main"):
        sha, files = self.at(repo, revision)
        told = {"_id": "0", "id": repo, "modelId": repo, "sha": sha, "private": self.hub.repos[repo].private}
        self.answer({**told, "tags": [], "siblings": [{"rfilename": name} for name in sorted(files)]})

    def settings(self, repo):
        there, asked = self.found(repo, write=True), json.loads(self.body)
        there.private = asked.get("visibility", "private" if asked.get("private") else "public") == "private"
        self.answer({"private": there.private})

    def branch(self, repo, branch):
        there = self.found(repo, write=True)
        if branch in there.branches:
            raise Refused(409, "", f"Reference refs/heads/{branch} already exists")
        there.branches[branch] = there.branches["main"]
        self.answer({})

    def tree(self, repo, revision):
        _, files = self.at(repo, revision)
        told = []
        for path, content in sorted(files.items()):
            entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            if path.endswith(LFS):
                entry["lfs"] = {"oid": oid(path, content), "size": len(content), "pointerSize": 134}
            told.append(entry)
        self.answer(told)

    def preupload(self, repo, revision):
        self.found(repo, write=True)
        _, files = self.at(repo, revision)
        told = []
        for asked in json.loads(self.body)["files"]:
            path, mode = asked["path"], "lfs" if asked["path"].endswith(LFS) else "regular"
            here = oid(path, files[path]) if path in files else None
            told.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": here})
        self.answer({"files": told})

    def batch(self, repo):
        self.found(repo, write=True)
        told = []
        for asked in json.loads(self.body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{asked['oid']}"},
                    "verify": {"href": f"{self.hub.url}/lfs-verify"},
                }
            told.append(entry)
        self.answer({"transfer": "basic", "objects": told})

    def put(self, name):
        if hashlib.sha256(self.body).hexdigest() != name:
            raise Refused(400, "", "the content is not what its name says")
        self.hub.objects[name] = self.body
        self.answer({})

    def verify(self):
        if json.loads(self.body)["oid"] not in self.hub.objects:
            raise Refused(404, "", "no such object")
        self.answer({})

    def get_object(self, name):
        """From another host, as the Hub's objects are, which must never see a token."""
        assert "Authorization" not in self.headers
        self.answer(self.hub.objects[name], headers={"ETag": f'"{name}"'})

    def commit(self, repo, revision):
        there = self.found(repo, write=True)
        if revision not in there.branches:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files, header = dict(there.commits[there.branches[revision]]), {}
        for line in self.body.splitlines():
            key, value = (json.loads(line)[name] for name in ("key", "value"))
            header = value if key == "header" else header
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if key == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            if key == "deletedFile":
                del files[value["path"]]
        files = {path: self.hub.spoil(path, content) for path, content in files.items()}
        for path, content in files.items():
            if path.endswith(LFS):
                self.hub.objects[oid(path, content)] = content
        sha = there.commit(revision, files, header["summary"])
        self.answer({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})

    def resolve(self, repo, revision, path):
        sha, files = self.at(repo, revision)
        headers = {"X-Repo-Commit": sha}
        if path not in files:
            self.answer({}, 404, {**headers, "X-Error-Code": "EntryNotFound"})
            return
        content = files[path]
        headers["ETag"] = f'"{oid(path, content)}"'
        if not path.endswith(LFS):
            self.answer(content, headers=headers)
            return
        linked = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        place = f"{self.hub.url.replace('127.0.0.1', 'localhost')}/objects/{oid(path, content)}"
        self.answer(b"", 302, {**headers, **linked, "Location": place})

    def validate(self):
        """The Hub's own look at a card before anything is uploaded."""
        text = json.loads(self.body)["content"]
        try:
            data = yaml.safe_load(text.split("---\n")[1])
            assert isinstance(data["license"], str)
            if "model-index" in data:
                model_index_to_eval_results(data["model-index"])
        except Exception as error:
            self.answer({"errors": [{"message": f"{type(error).__name__}: {error}"}], "warnings": []}, 400)
            return
        self.answer({"errors": [], "warnings": []})

    def refs(self, repo):
        there = self.found(repo)
        told = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in there.branches.items()]
        self.answer({"branches": told, "tags": [], "converts": []})


ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("PUT", rf"/api/models/{REPO}/settings", "settings"),
    ("POST", rf"/api/models/{REPO}/branch/(?P<branch>.+)", "branch"),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>.+)", "preupload"),
    ("POST", rf"/api/models/{REPO}/commit/(?P<revision>.+)", "commit"),
    ("GET", rf"/api/models/{REPO}/tree/(?P<revision>.+)", "tree"),
    ("GET", rf"/api/models/{REPO}/refs", "refs"),
    ("GET", rf"/api/models/{REPO}/revision/(?P<revision>.+)", "info"),
    ("GET", rf"/api/models/{REPO}", "info"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/lfs/(?P<name>\w+)", "put"),
    ("POST", r"/lfs-verify", "verify"),
    (("GET", "HEAD"), r"/objects/(?P<name>\w+)", "get_object"),
    (("GET", "HEAD"), rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
)


@contextmanager
def serving():
    """A stand-in that answers on a port of this machine."""
    hub = Hub()
    handler = type("Bound", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(hub, home, token=TOKEN):
    """What a process needs to take the stand-in for the Hub; huggingface_hub reads it when it is imported."""
    told = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING_FACE"))}
    told |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    told |= {"HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    return told | ({"HF_TOKEN": token} if token else {})
