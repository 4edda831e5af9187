"""A server on the loopback interface that speaks the Hub's protocol, for pushes and pulls of the real client.

It keeps commits as trees, large files by hash as the Hub's LFS does, and answers as huggingface_hub 2.4
expects: read there in hf_api.py, _commit_api.py and lfs.py. `faults` are what goes wrong. With `xet` it
gives addresses of a Xet storage that does not answer.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

REPO = r"/api/(?P<kind>model|dataset)s/(?P<repo>[\w.-]+/[\w.-]+)"
LFS_SUFFIXES = (".safetensors", ".arrow", ".bin", ".pt")
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


class Blob(NamedTuple):
    """A file of a commit."""

    content: bytes
    is_lfs: bool

    def entry(self, path: str) -> dict[str, Any]:
        """As the tree shows it."""
        sha256 = hashlib.sha256(self.content).hexdigest()
        pointer = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(self.content)}\n"
        )
        stored = pointer.encode() if self.is_lfs else self.content
        found: dict[str, Any] = {
            "type": "file",
            "path": path,
            "size": len(self.content),
            "oid": git_oid(stored),
        }
        if self.is_lfs:
            found["lfs"] = {"oid": sha256, "size": len(self.content), "pointerSize": len(stored)}
        return found


@dataclass
class Repo:
    """A repository: commits in order, each with all its files."""

    private: bool
    commits: list[tuple[str, dict[str, Blob]]] = field(default_factory=list)

    def add(self, tree: dict[str, Blob]) -> str:
        names = sorted((path, hashlib.sha1(blob.content).hexdigest()) for path, blob in tree.items())
        oid = hashlib.sha1(json.dumps([len(self.commits), names]).encode()).hexdigest()
        self.commits.append((oid, tree))
        return oid

    def tree(self, revision: str) -> dict[str, Blob] | None:
        return self.commits[-1][1] if revision == "main" else dict(self.commits).get(revision)


@dataclass
class Fault:
    """What goes wrong at the next requests of this method and path: a status, or the connection is cut."""

    method: str
    path: str  # a regular expression
    # A status; "cut" in the middle of the body, or what is done before that; "deaf": done, but not answered.
    kind: int | str | Callable[[], object]
    times: int = 1


class HubServer(ThreadingHTTPServer):
    """Users by token; what was asked stands in `asked`."""

    daemon_threads = True

    def __init__(self, users: dict[str, str]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.users, self.lock = users, threading.RLock()
        self.role = "write"  # of every token
        self.xet = False
        self.repos: dict[tuple[str, str], Repo] = {}
        self.contents: dict[str, bytes] = {}  # of large files, by their sha256
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.n_bytes_put = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, kind: str, repo: str) -> dict[str, bytes]:
        """The files of the last commit."""
        return {path: blob.content for path, blob in self.repos[kind, repo].commits[-1][1].items()}

    def n_asked(self, method: str, path: str) -> int:
        return sum(1 for m, p, _ in self.asked if m == method and re.search(path, p))

    def fault(self, method: str, path: str) -> int | str | Callable[[], object] | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault.kind
        return None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of the server."""


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"
    # An answer in two packets waits 40 ms for the client's acknowledgement of the first.
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:  # noqa: N802
        self.answer()

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815

    def answer(self) -> None:
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        with self.server.lock:
            self.server.asked.append((self.command, self.path, dict(self.headers)))
        kind = self.server.fault(self.command, path)
        if callable(kind):
            kind()
        if kind == "cut" or callable(kind):
            self.rfile.read(int(self.headers.get("content-length") or 2) // 2)
            self.close_connection = True
            self.connection.close()
            return
        body = self.body()
        if isinstance(kind, int):
            headers = {"Retry-After": "1"} if kind == 429 else {}
            self.reply(kind, {"error": f"made to fail with {kind}"}, headers)
            return
        for method, pattern, function in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method:
                with self.server.lock:
                    done = function(self, body, query, **found.groupdict())
                if kind == "deaf":
                    self.close_connection = True
                    self.connection.close()
                else:
                    self.reply(*done)
                return
        self.reply(404, {"error": f"no such page {path}"})

    def body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def reply(self, status: int, answer: Any = None, headers: dict[str, str] | None = None) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        given = {"content-type": "application/json", "content-length": str(len(content)), **(headers or {})}
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def user(self) -> str | None:
        return self.server.users.get(self.headers.get("authorization", "").removeprefix("Bearer "))

    def refusal(self, kind: str, repo: str, writes: bool) -> tuple[int, Any, dict[str, str]] | None:
        """Why the user may not read or write a repository; None: they may."""
        found, owns = self.server.repos.get((kind, repo)), self.user() == repo.split("/")[0]
        if found is None or (found.private and not owns):
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if writes and not owns:
            return 403, {"error": f"{self.user()} may not write to {repo}"}, {}
        return None

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def whoami(handler: Handler, body: bytes, query: Any) -> tuple[Any, ...]:
    if (name := handler.user()) is None:
        return 401, {"error": "Invalid credentials in Authorization header"}
    token = {"accessToken": {"displayName": "t", "role": handler.server.role}}
    return 200, {"type": "user", "name": name, "orgs": [], "auth": token}


def create(handler: Handler, body: bytes, query: Any) -> tuple[Any, ...]:
    asked = json.loads(body)
    name, user = asked["name"], handler.user()
    owner = asked.get("organization") or user
    key = asked.get("type", "model"), f"{owner}/{name}"
    if user is None:
        return 401, {"error": "Invalid credentials in Authorization header"}
    if owner != user:
        return 403, {"error": f"You don't have the rights to create a model under the namespace {owner}"}
    if key in handler.server.repos:
        return 409, {"error": "You already created this repo"}
    repo = handler.server.repos[key] = Repo(
        asked.get("visibility") == "private" or bool(asked.get("private"))
    )
    repo.add({".gitattributes": Blob(GITATTRIBUTES, False)})
    return 200, {"url": f"{handler.server.url}/{key[1]}", "name": key[1]}


def info(handler: Handler, body: bytes, query: Any, kind: str, repo: str, revision: str | None = None):
    if refused := handler.refusal(kind, repo, writes=False):
        return refused
    found = handler.server.repos[kind, repo]
    if (tree := found.tree(revision or "main")) is None:
        return 404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"}
    sha = found.commits[-1][0] if (revision or "main") == "main" else revision
    siblings = [{"rfilename": path} for path in sorted(tree)]
    return 200, {"id": repo, "sha": sha, "private": found.private, "siblings": siblings, "tags": []}


def validate(handler: Handler, body: bytes, query: Any) -> tuple[Any, ...]:
    import yaml

    text = json.loads(body)["content"]
    try:
        ok = isinstance(yaml.safe_load(text.split("---\n")[1]), dict)
    except (IndexError, yaml.YAMLError):
        ok = False
    return (200, {"errors": [], "warnings": []}) if ok else (400, {"errors": [{"message": "no metadata"}]})


def preupload(handler: Handler, body: bytes, query: Any, kind: str, repo: str, revision: str):
    if refused := handler.refusal(kind, repo, writes=True):
        return refused
    tree = handler.server.repos[kind, repo].tree(revision) or {}
    files = []
    for asked in json.loads(body)["files"]:
        path = asked["path"]
        one = {"path": path, "uploadMode": "lfs" if path.endswith(LFS_SUFFIXES) else "regular"}
        one["shouldIgnore"] = False
        if path in tree:
            entry = tree[path].entry(path)
            one["oid"] = entry["lfs"]["oid"] if tree[path].is_lfs else entry["oid"]
        files.append(one)
    return 200, {"files": files}


def batch(handler: Handler, body: bytes, query: Any, prefix: str, repo: str) -> tuple[Any, ...]:
    if refused := handler.refusal("dataset" if prefix else "model", repo, writes=True):
        return refused
    objects: list[dict[str, Any]] = []
    for asked in json.loads(body)["objects"]:
        url = f"{handler.server.url}/storage/{asked['oid']}"
        actions = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
        is_there = asked["oid"] in handler.server.contents
        objects.append(asked if is_there else asked | {"actions": actions})
    return 200, {"transfer": "basic", "objects": objects}


def store(handler: Handler, body: bytes, query: Any, oid: str) -> tuple[Any, ...]:
    if handler.headers.get("authorization"):
        return 400, {"error": "a signed address and a token: S3 takes one"}
    if hashlib.sha256(body).hexdigest() != oid:
        return 400, {"error": "other bytes than were announced"}
    handler.server.contents[oid] = body
    handler.server.n_bytes_put += len(body)
    return 200, {}


def verify(handler: Handler, body: bytes, query: Any, oid: str) -> tuple[Any, ...]:
    asked = json.loads(body)
    ok = handler.user() and len(handler.server.contents.get(asked["oid"], b"")) == asked["size"]
    return (200, {}) if ok else (404, {"error": "not stored"})


def commit(handler: Handler, body: bytes, query: Any, kind: str, repo: str, revision: str) -> tuple[Any, ...]:
    if refused := handler.refusal(kind, repo, writes=True):
        return refused
    found = handler.server.repos[kind, repo]
    lines = [json.loads(line) for line in body.splitlines()]
    parent = next(line["value"] for line in lines if line["key"] == "header").get("parentCommit")
    if parent not in (None, found.commits[-1][0]):
        return 412, {"error": "A commit has happened since. Please refresh and try again."}
    tree = dict(found.commits[-1][1])
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            tree[value["path"]] = Blob(base64.b64decode(value["content"]), False)
        elif line["key"] == "lfsFile":
            if value["oid"] not in handler.server.contents:
                return 400, {"error": f"{value['path']}: its content was never uploaded"}
            tree[value["path"]] = Blob(handler.server.contents[value["oid"]], True)
        elif line["key"] == "deletedFile":
            del tree[value["path"]]
    oid = found.add(tree)
    return 200, {"commitUrl": f"{handler.server.url}/{repo}/commit/{oid}", "commitOid": oid}


def tree_page(handler: Handler, body: bytes, query: Any, kind: str, repo: str, revision: str):
    if refused := handler.refusal(kind, repo, writes=False):
        return refused
    tree = handler.server.repos[kind, repo].tree(revision)
    if tree is None:
        return 404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"}
    folders = {path.rpartition("/")[0] for path in tree if "/" in path}
    entries = [blob.entry(path) for path, blob in sorted(tree.items())]
    return 200, [*entries, *({"type": "directory", "path": name, "oid": git_oid(b"")} for name in folders)]


def paths_info(handler: Handler, body: bytes, query: Any, kind: str, repo: str, revision: str):
    if refused := handler.refusal(kind, repo, writes=False):
        return refused
    tree = handler.server.repos[kind, repo].tree(revision) or {}
    asked = parse_qs(body.decode())["paths"]
    return 200, [tree[path].entry(path) for path in asked if path in tree]


def resolve(handler: Handler, body: bytes, query: Any, prefix: str, repo: str, revision: str, path: str):
    kind = "dataset" if prefix else "model"
    if refused := handler.refusal(kind, repo, writes=False):
        return refused
    found = handler.server.repos[kind, repo]
    tree = found.tree(revision) or {}
    if path not in tree:
        return 404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"}
    entry = tree[path].entry(path)
    sha = found.commits[-1][0] if revision == "main" else revision
    etag = entry["lfs"]["oid"] if tree[path].is_lfs else entry["oid"]
    return 200, tree[path].content, {"ETag": f'"{etag}"', "X-Repo-Commit": sha}


def xet_token(handler: Handler, body: bytes, query: Any, kind: str, repo: str) -> tuple[Any, ...]:
    if not handler.server.xet:
        return 404, {"error": "no such page"}
    if refused := handler.refusal(kind, repo, writes=True):
        return refused
    answer = {"casUrl": f"{handler.server.url}/xet", "accessToken": "of-the-storage", "exp": 4102444800}
    names = {"X-Xet-Cas-Url": "casUrl", "X-Xet-Access-Token": "accessToken", "X-Xet-Token-Expiration": "exp"}
    return 200, answer, {header: str(answer[key]) for header, key in names.items()}


GIT = r"/(?P<prefix>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)"
ROUTES: list[tuple[tuple[str, ...], str, Any]] = [
    (("GET",), r"/api/whoami-v2", whoami),
    (("POST",), r"/api/repos/create", create),
    (("POST",), r"/api/validate-yaml", validate),
    (("GET",), REPO, info),
    (("GET",), REPO + r"/revision/(?P<revision>[^/]+)", info),
    (("POST",), REPO + r"/preupload/(?P<revision>[^/]+)", preupload),
    (("POST",), REPO + r"/commit/(?P<revision>[^/]+)", commit),
    (("GET",), REPO + r"/tree/(?P<revision>[^/]+)", tree_page),
    (("GET",), REPO + r"/xet-write-token/main", xet_token),
    (("POST",), REPO + r"/paths-info/(?P<revision>[^/]+)", paths_info),
    (("POST",), GIT + r"\.git/info/lfs/objects/batch", batch),
    (("PUT",), r"/storage/(?P<oid>[0-9a-f]{64})", store),
    (("POST",), r"/storage/(?P<oid>[0-9a-f]{64})/verify", verify),
    (("GET", "HEAD"), GIT + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
]


@contextmanager
def hub(users: dict[str, str]) -> Iterator[HubServer]:
    """A server with these users by token, stopped at the end."""
    server = HubServer(users)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
