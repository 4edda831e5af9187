"""Push a finished run to the Hub: adapter in all wanted formats, dataset, report, each with its card.

    local-experts push --config configs/runs/quickstart.yaml --repo OWNER/NAME --dry-run
    local-experts push --run runs/quickstart --repo OWNER/NAME --formats ours peft sglang

Reads the run's folder; writes `hub/` in it (exports, cards) and the repositories OWNER/NAME (adapter and
report), OWNER/NAME-data and OWNER/NAME-merged. They are private unless --public is said.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import get_token

from data_recipes.artefact import UserError
from finetune import cli
from finetune.config import BaseConfig, load_run_config
from finetune.hub.contents import FORMATS, WHAT, Repository, Wanted, collect
from finetune.hub.leaks import environment_secrets, machine_folders, refuse_leaks
from finetune.hub.listing import Listed, listed, shown
from finetune.hub.run_folder import HUB_NAME, is_local, read_run
from finetune.hub.send import Outcome, logged_in, send

Contents = list[tuple[Repository, list[Listed]]]


def prepare(
    folder: Path,
    wanted: Wanted,
    base: BaseConfig | None = None,
    hub_base: str | None = None,
    token: str | None = None,
) -> Contents:
    """The repositories of a push with all their files, which were searched for what may not go.

    Raises:
        UserError: the run is not finished, or something of it may not be published.
    """
    run = read_run(folder, wanted.what, base, hub_base)
    repositories = collect(run, wanted)
    places = [Path.home(), Path.cwd(), folder]
    if is_local(run.base.model):
        places.append(Path(run.base.model))
    secrets = environment_secrets(os.environ, token)
    for repository in repositories:
        refuse_leaks(repository.files, secrets, machine_folders(places))
    return [(repository, listed(repository)) for repository in repositories]


def push(
    folder: Path,
    wanted: Wanted,
    *,
    private: bool = True,
    base: BaseConfig | None = None,
    hub_base: str | None = None,
    endpoint: str | None = None,
) -> list[Outcome]:
    """Send a run to the Hub and say what became of each repository.

    `endpoint` None is that of HF_ENDPOINT, or the Hub.

    Raises:
        UserError: as `prepare`, or the Hub refuses.
    """
    api, _ = logged_in(endpoint)
    contents = prepare(folder, wanted, base, hub_base, api.token if isinstance(api.token, str) else None)
    print("\n".join(shown(*one, private) for one in contents))
    outcomes = []
    for outcome in send(api, contents, private):
        outcomes.append(outcome)
        print(_said(outcome), flush=True)
    return outcomes


def _said(outcome: Outcome) -> str:
    if outcome.commit is None:
        return f"push      {outcome.repository}: unchanged, no commit -> {outcome.url}"
    removed = f", {outcome.n_removed} removed" if outcome.n_removed else ""
    return (
        f"push      {outcome.repository}: {outcome.n_sent} files{removed} in commit {outcome.commit[:12]} "
        f"-> {outcome.url}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """`local-experts push`: show what goes, and send it."""
    # intermixed: changes may stand before and after --config
    arguments = _parser().parse_intermixed_args(argv)
    if arguments.run and arguments.overrides:
        raise UserError(f"{arguments.overrides[0]!r} is a change to a config: say --config FILE, not --run")
    if arguments.config:
        config = load_run_config(arguments.config, arguments.overrides)
        folder, base = Path(config.output), config.base
    else:
        folder, base = Path(arguments.run), None
    repo = arguments.repo or folder.resolve().name
    if "/" not in repo and not arguments.dry_run:
        repo = f"{logged_in()[1]}/{repo}"
    if HUB_NAME.fullmatch(repo) is None:
        raise UserError(f"--repo {repo!r} is no name on the Hub: write it as OWNER/NAME")
    wanted = Wanted(
        repo,
        what=tuple(dict.fromkeys(arguments.what)),
        formats=tuple(dict.fromkeys(arguments.formats)),
        check=arguments.check,
        may_publish=tuple(arguments.may_publish),
        licence=arguments.licence,
        dataset=arguments.dataset,
    )
    if arguments.dry_run:
        contents = prepare(folder, wanted, base, arguments.base, get_token())
        print("\n".join(shown(*one, not arguments.public) for one in contents))
        print("dry run: nothing was sent")
        return 0
    push(folder, wanted, private=not arguments.public, base=base, hub_base=arguments.base)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="local-experts push", description="Push a finished run to the Hub.", allow_abbrev=False
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", metavar="FILE", help="of the run, as configs/runs/quickstart.yaml")
    source.add_argument("--run", metavar="FOLDER", help="of the run, as runs/quickstart")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to --config")
    parser.add_argument(
        "--repo", metavar="OWNER/NAME", help="of the adapter; NAME alone is yours; default: the folder's name"
    )
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT), help="default: all three")
    parser.add_argument(
        "--formats", nargs="+", choices=FORMATS, default=["ours", "peft"], help="default: ours peft"
    )
    parser.add_argument("--base", metavar="OWNER/NAME", help="what a base in a local folder is on the Hub")
    parser.add_argument("--dataset", metavar="OWNER/NAME", help="where the rows are on the Hub already")
    parser.add_argument("--licence", metavar="NAME", help="of the adapter, as the Hub calls it: apache-2.0")
    parser.add_argument(
        "--may-publish", nargs="+", default=[], metavar="LICENCE", help="of rows, which you may pass on"
    )
    parser.add_argument(
        "--check", choices=("deltas", "logits"), default="deltas", help="of an export; logits: load the base"
    )
    parser.add_argument("--public", action="store_true", help="new repositories are public")
    parser.add_argument("--dry-run", action="store_true", help="show what would go, and send nothing")
    return parser


if __name__ == "__main__":
    sys.exit(cli.main(["push", *sys.argv[1:]]))
