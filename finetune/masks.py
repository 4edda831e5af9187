"""Show which tokens of the training rows are trained, and audit all rows, before anything is trained.

Reads `<output>/data` and the base's tokenizer, no weights; writes nothing. Run it with
`local-experts masks --config configs/runs/quickstart.yaml --rows 3`.
"""

from collections.abc import Sequence

from transformers import GenerationConfig

from data_recipes.artefact import UserError
from data_recipes.chats.chat_template import read_template, stop_token_ids
from data_recipes.chats.mask_audit import AuditOptions, AuditReport, audit
from data_recipes.chats.mask_view import show
from data_recipes.dataset import read_split
from finetune.config import BaseConfig, RunConfig, config_parser, load_run_config
from finetune.model import load_tokenizer, resolve_model_path


def masks_stage(config: RunConfig, n_rows: int = 3) -> AuditReport:
    """Print `n_rows` rows, evenly spread over the training split, with their masks, and the audit of all.

    Raises:
        UserError: no dataset, no tokenizer, or rows that must not be trained on, with all reasons together.
    """
    rows = [
        dict(row) for split in ("train", "validation") for row in read_split(f"{config.output}/data", split)
    ]
    tokenizer = load_tokenizer(config.base)
    stop_ids = stop_token_ids(_generation_config(config.base), tokenizer)
    template = read_template(tokenizer)
    for number in range(min(n_rows, len(rows))):
        row = rows[number * len(rows) // n_rows]
        try:
            print(f"{show(template, row)}\n")
        except UserError as error:
            print(f"row {row['id']}: {error}\n")
    limit = config.train.max_length_tokens
    report = audit(rows, tokenizer, AuditOptions(max_length_tokens=limit, stop_ids=stop_ids))
    print("\n".join(report.summary_lines()))
    report.refuse()
    print("no problems")
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """`local-experts masks --config FILE [--rows N] [key=value ...]`."""
    parser = config_parser("masks", "show which tokens are trained")
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="rows to show (default: 3)")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.rows < 0:
        raise UserError(f"--rows {arguments.rows}: give the number of rows to show, 0 for the audit alone")
    masks_stage(load_run_config(arguments.config, arguments.overrides), arguments.rows)


def _generation_config(base: BaseConfig) -> GenerationConfig | None:
    """The base's generation config; None where it has none, and only the tokenizer says what ends a text."""
    try:
        path, revision = resolve_model_path(base.model), base.revision or "main"
        return GenerationConfig.from_pretrained(path, revision=revision)
    except OSError:
        return None
