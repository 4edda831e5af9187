"""Send repositories to the Hub: each in one commit, none when nothing changed, and checked afterwards.

What was uploaded before a push broke off is not sent again: the Hub keeps contents by their hash.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import huggingface_hub.constants
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage]  of its HTTP client, whichever that is
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from data_recipes.artefact import UserError
from finetune.hub.contents import Repository
from finetune.hub.listing import Listed, is_there

GO_ON = (
    "No repository is left half written, and those told as pushed above are done: push again, and what was "
    "uploaded is not sent again."
)
REASONS = {
    400: "the Hub refuses what is sent",
    401: "the Hub does not know your token: log in again with `hf auth login`, or set HF_TOKEN",
    402: "the Hub asks for a paid plan (for the size of private storage, as a rule)",
    403: "it is somebody else's, or your token may not write there: choose another --repo, or make a token "
    "with the role write in the Hub's settings and `hf auth login` with it",
    404: "the Hub does not find it, or does not show it to your token",
    409: "the repository was changed by somebody else in the meantime",
    412: "the repository was changed by somebody else in the meantime",
    413: "a file is too large for the Hub",
    429: "too many requests: wait some minutes",
}


class Outcome(NamedTuple):
    """What became of one repository."""

    repository: str
    url: str
    commit: str | None  # None: nothing had changed
    n_sent: int
    n_removed: int


def logged_in(endpoint: str | None = None) -> tuple[HfApi, str]:
    """The Hub and the user's name there; asks the Hub who the token belongs to.

    Raises:
        UserError: offline by the user's own wish, no token, or one that the Hub does not know.
    """
    if huggingface_hub.constants.is_offline_mode():
        raise UserError(
            "HF_HUB_OFFLINE is set, so nothing can be pushed: unset it (HF_HUB_OFFLINE=0 local-experts push "
            "...), or look at what would go with --dry-run"
        )
    token = get_token()
    if token is None:
        raise UserError(
            "there is no Hub token: log in with `hf auth login`, or set HF_TOKEN to one with the role write "
            "(huggingface.co/settings/tokens); --dry-run needs none"
        )
    api = HfApi(endpoint=endpoint, token=token, library_name="local-experts")
    with explained("the Hub", api):
        who = api.whoami()
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise UserError(
            f"the token of {who['name']} may only read: make one with the role write "
            "(huggingface.co/settings/tokens) and `hf auth login` with it"
        )
    return api, who["name"]


def send(
    api: HfApi, contents: Sequence[tuple[Repository, Sequence[Listed]]], private: bool
) -> Iterator[Outcome]:
    """Make the repositories where they are not there, then commit to each; yields each when it is done.

    Raises:
        UserError: the Hub refuses, a repository is of the other visibility, or the connection broke.
    """
    heads = [_opened(api, repository, private) for repository, _ in contents]
    for (repository, files), head in zip(contents, heads, strict=True):
        with explained(repository.name, api), _protocol(api, repository):
            outcome = _commit(api, repository, files, head)
        yield outcome


def _opened(api: HfApi, repository: Repository, private: bool) -> str | None:
    """The last commit of a repository, which is made when it is not there."""
    name, refused = repository.name, None
    with explained(name, api):
        try:
            api.create_repo(name, repo_type=repository.kind, private=private)
        except HfHubHTTPError as error:
            # A token for this one repository may write to it and make none.
            if error.response.status_code not in (401, 402, 403, 409):
                raise
            refused = error if error.response.status_code != 409 else None
        try:
            info: Any = api.repo_info(name, repo_type=repository.kind)
        except HfHubHTTPError as error:
            raise refused or error from error
        if bool(info.private) == private:
            return info.sha
        if refused:
            raise refused
    is_now, wanted = ("private", "public") if info.private else ("public", "private")
    way_out = "leave --public out" if info.private else "say --public"
    raise UserError(
        f"{name} is {is_now} on the Hub and would have to be {wanted}: {way_out}, change it in its settings "
        "there, or choose another --repo; nothing was sent"
    )


def _commit(api: HfApi, repository: Repository, files: Sequence[Listed], head: str | None) -> Outcome:
    url = f"{api.endpoint}/{'datasets/' if repository.kind == 'dataset' else ''}{repository.name}"
    there = _tree(api, repository, head)
    if ".gitignore" in there:
        raise UserError(
            f"{repository.name} has a .gitignore, by which the Hub leaves files out without a word: remove "
            "it there"
        )
    names = {file.name for file in files}
    changed = [file for file in files if not is_there(file, there.get(file.name))]
    gone = [name for name in there if name.startswith(repository.owned) and name not in names]
    if not changed and not gone:
        return Outcome(repository.name, url, None, 0, 0)
    operations = [
        *(CommitOperationAdd(file.name, str(file.path)) for file in changed),
        *(CommitOperationDelete(name) for name in gone),
    ]
    made = api.create_commit(
        repository.name,
        operations,
        commit_message="Push from local-experts",
        repo_type=repository.kind,
        parent_commit=head,
    )
    there = _tree(api, repository, made.oid)
    if wrong := [file.name for file in files if not is_there(file, there.get(file.name))]:
        raise UserError(
            f"{repository.name}: after the push the Hub has other bytes than were listed for "
            f"{', '.join(wrong)}: a file changed while it was sent; push again"
        )
    return Outcome(repository.name, url, made.oid, len(changed), len(gone))


def _tree(api: HfApi, repository: Repository, commit: str | None) -> dict[str, Any]:
    """The files of a commit by path."""
    entries = api.list_repo_tree(repository.name, recursive=True, revision=commit, repo_type=repository.kind)
    return {entry.path: entry for entry in entries if hasattr(entry, "blob_id")}


@contextmanager
def _protocol(api: HfApi, repository: Repository) -> Iterator[None]:
    """Upload large files by Xet where the server has it, else by LFS.

    huggingface_hub 2.4 asks nobody: with hf_xet installed it knows no other way, and fails on a server
    without (a mirror, a Hub of one's own).
    """
    constants: Any = huggingface_hub.constants
    before = constants.HF_HUB_DISABLE_XET
    url = f"{api.endpoint}/api/{repository.kind}s/{repository.name}/xet-write-token/main"
    if not before:
        answer = get_session().get(url, headers=build_hf_headers(token=api.token))
        if answer.status_code not in (404, 405, 501):
            hf_raise_for_status(answer)
        constants.HF_HUB_DISABLE_XET = answer.status_code != 200
    try:
        with warnings.catch_warnings():
            # huggingface_hub 2.4 uploads with an argument that its HTTP client deprecates.
            warnings.filterwarnings("ignore", "Use 'content=<...>'", DeprecationWarning)
            yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


@contextmanager
def explained(what: str, api: HfApi) -> Iterator[None]:
    """Turn what the Hub or the network says into one message, in which no token stands."""
    try:
        yield
    except (HTTPError, OfflineModeIsEnabled, RuntimeError, ValueError, ConnectionError) as error:
        message = _message(what, error)
        if message is None:
            raise
        token = api.token if isinstance(api.token, str) else ""
        raise UserError(message.replace(token, "<token>") if token else message) from error


def _message(what: str, error: BaseException) -> str | None:
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for one in chain:
        if isinstance(one, HfHubHTTPError):
            status = one.response.status_code
            reason = REASONS.get(status, "the Hub failed" if status >= 500 else "the Hub refuses")
            said = f" It says: {one.server_message}" if one.server_message else ""
            return f"{what}: {reason} ({status}).{said} {GO_ON}"
    for one in chain:
        if isinstance(one, HTTPError | ConnectionError):
            # The plain one is hf_xet's, of its storage.
            other_way = " HF_HUB_DISABLE_XET=1 sends by LFS." if type(one) is ConnectionError else ""
            return f"{what}: the connection broke ({type(one).__name__}: {one}).{other_way} {GO_ON}"
    if str(error).startswith(("Invalid metadata", "LFS batch", "Malformed")):
        return f"{what}: {error}. {GO_ON}"
    return None
