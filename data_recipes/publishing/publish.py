"""Write all that is published beside the rows of a dataset.

Reads the Arrow files in the dataset's folder, which must be there already, and the dicts of the manifest and
of the samples.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_recipes.publishing.card import write_card
from data_recipes.publishing.croissant import write_croissant
from data_recipes.publishing.data_report import write_data_report


def publish(folder: str | Path, manifest: Mapping[str, Any], samples: Mapping[str, Any]) -> list[Path]:
    """Write README.md, LICENSE.md where needed, croissant.json and report.html; return their paths.

    Args:
        folder: the dataset's folder, still under its temporary name or not.
        manifest: the body of manifest.json.
        samples: the body of samples.json.

    Raises: UserError when an Arrow file is missing or nothing can be written.
    """
    return [
        write_card(folder, manifest),
        write_croissant(folder, manifest),
        write_data_report(folder, manifest, samples),
    ]
