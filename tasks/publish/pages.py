"""The pages in the bucket that list runs and models, generated from its records.

runs/index.html         all runs, newest first
models/index.html       the promoted models
models/<id>.html        a card for each of them
"""

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tasks.paths import MODELS_PAGE, RUNS_PAGE
from tasks.publish.records import all_promoted, manifest_of, manifest_or_none, manifests
from tasks.report.html import environment
from tasks.store.conditional import refresh
from tasks.store.s3 import Store


def list_runs(store: Store) -> None:
    """Rewrite runs/index.html (see `refresh`), and create models/index.html if there is none.

    Every page links to models/index.html.
    """
    refresh(store, RUNS_PAGE, lambda: _page("runs.html", runs=manifests(store)))
    # A worker may lack permission to write to models/; then the first promotion creates the page.
    with suppress(PermissionError):
        if store.tag(MODELS_PAGE) is None:
            refresh(store, MODELS_PAGE, partial(_models, store))


def list_models(store: Store) -> None:
    """Rewrite models/index.html (see `refresh`) and the cards of the promoted models.

    A promoted run that was deleted gets no card.
    """
    # The cards before the list that links to them. All of them, because a promotion takes the mark
    # `latest` off another card.
    for run in dict.fromkeys(entry["run"] for entry in all_promoted(store)):
        if manifest_or_none(store, run):
            refresh(store, f"models/{run}.html", partial(_card, store, run))
    refresh(store, MODELS_PAGE, partial(_models, store))


def _card(store: Store, run: str) -> bytes:
    # The newest entry, if the run was promoted twice.
    entry = next(entry for entry in all_promoted(store) if entry["run"] == run)
    return _page("card.html", model={**manifest_of(store, run), **entry})


def _models(store: Store) -> bytes:
    promotions = [(manifest_or_none(store, entry["run"]), entry) for entry in all_promoted(store)]
    return _page(
        "models.html",
        models=[
            {**(manifest or {}), **entry, "gone": manifest is None}
            for manifest, entry in promotions
        ],
    )


def _page(template: str, **context: Any) -> bytes:
    templates = environment(Path(__file__).parent / "templates")
    return templates.get_template(template).render(context).encode()
