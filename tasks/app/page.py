"""The page: upload, settings, results with a slider, candidates and downloads.

    with served(Path.cwd(), "cpu", "127.0.0.1", None) as address: ...

One event does the work and is the API, `/upscale` (gradio_client); the others only show its
results. The module imports Gradio, the extra `app`, and is imported by nothing but the command.
"""

import html
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import gradio as gr

from gdpo.config.fields import ColorFix
from gdpo.errors import one_line
from gdpo.metrics.table import METRICS
from gdpo.model.card import read_identity
from gdpo.pictures.write import FORMATS
from tasks.app.examples import write_examples
from tasks.app.models import local_models, strength
from tasks.app.work import (
    JUDGE,
    MOST_BYTES,
    MOST_SEEDS,
    Cancelled,
    Request,
    best,
    upscaled,
)
from tasks.tools.upscale_jobs import READABLE

TITLE = "GDPO-SR: enlarge photographs"
WAITING = 16  # requests that may wait for their turn
KEPT_S = 3600  # seconds that uploads and results are kept
NO_STRENGTH = "this model has no such setting"
# Nothing from elsewhere: the fonts of the reader's system, no analytics.
FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
PROGRESS = gr.Progress()  # as a default, this tells Gradio that the function reports
Update = dict[str, Any]


@dataclass(frozen=True)
class Page:
    """The page over the models of a folder.

    models: by the name that is shown, the default first. device: as in `gdpo-sr upscale`.
    """

    models: dict[str, Path]
    device: str
    examples: list[Path]
    # By browser tab (session): set when the tab cancels its request or is closed.
    _unwanted: dict[str, threading.Event] = field(default_factory=dict)

    def blocks(self) -> gr.Blocks:
        """The page, ready to be launched."""
        keep = (KEPT_S // 6, KEPT_S)
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=keep) as blocks:
            gr.Markdown(f"# {TITLE}\nPhotographs stay on the machine that serves this page.")
            with gr.Row():
                with gr.Column(min_width=300):
                    photos, settings, go, cancel = self._inputs()
                with gr.Column(scale=2, min_width=300):
                    slider, gallery, files, text, records, enlarged = _outputs()
            shown = [slider, text]
            results = [gallery, enlarged, records]
            job = go.click(self._wanted, queue=False, api_visibility="private").then(
                self._run,
                [photos, *settings],
                results,
                api_name="upscale",
                concurrency_limit=1,
                show_progress_on=[slider],
            )
            job.then(_show_best, results, [*shown, files], api_visibility="private")
            gallery.select(_show, results, shown, api_visibility="private")
            cancel.click(self._stop, queue=False, api_visibility="private")
            blocks.unload(self._stop)
        return blocks.queue(max_size=WAITING)

    def _inputs(self) -> tuple[gr.File, list[Any], gr.Button, gr.Button]:
        """Photographs, settings in the order of `_run`, and the two buttons."""
        kinds = sorted({*READABLE, *FORMATS})
        photos = gr.File(label="Photographs", file_count="multiple", file_types=kinds, height=140)
        gr.Examples(
            [[[str(path)]] for path in self.examples],
            [photos],
            label="Examples: photographs degraded as in training",
            example_labels=[path.stem for path in self.examples],
            api_visibility="private",
        )
        first = next(iter(self.models))
        model = gr.Dropdown(list(self.models), value=first, label="Model")
        t_add = gr.Slider(
            0, 500, value=250, step=10, label="closer to the photograph ↔ more detail (t_add)"
        )
        count = gr.Slider(
            1, MOST_SEEDS, value=1, step=1, label=f"Candidates; the best {_judge()} is marked"
        )
        with gr.Accordion("More", open=False):
            scale = gr.Slider(1, 8, value=4, step=0.5, label="Scale; models learn 4")
            color_fix = gr.Radio(["wavelet", "adain", "none"], value="wavelet", label="Colour fix")
            seed = gr.Number(0, precision=0, minimum=0, label="Seed of the first candidate")
        model.change(self._offer, [model], [t_add], api_visibility="private")
        with gr.Row():
            go = gr.Button("Upscale", variant="primary", elem_id="go", min_width=120)
            cancel = gr.Button("Cancel", elem_id="cancel", min_width=120)
        return photos, [model, scale, t_add, color_fix, seed, count], go, cancel

    def _offer(self, model: str) -> Update:
        """The slider of t_add for a model."""
        value = strength(read_identity(self.models[model]))
        return gr.update(
            value=250 if value is None else value,
            interactive=value is not None,
            info=NO_STRENGTH if value is None else "",
        )

    def _wanted(self, request: gr.Request) -> None:
        self._unwanted[str(request.session_hash)] = threading.Event()

    def _stop(self, request: gr.Request) -> None:
        event = self._unwanted.get(str(request.session_hash))
        if event is not None:
            event.set()

    def _run(
        self,
        photos: list[str] | None,
        model: str,
        scale: float,
        t_add: float,
        color_fix: str,
        seed: float,
        count: float,
        request: gr.Request,
        progress: gr.Progress = PROGRESS,
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Upscale photographs: candidates, their bicubic enlargements, and how each was made.

        Yields after every candidate; the last value has all of them.
        """
        session = str(request.session_hash)
        unwanted = self._unwanted.setdefault(session, threading.Event())
        files: list[str] = []
        enlarged: list[str] = []
        records: list[dict[str, Any]] = []
        wish = Request(
            photos=[Path(photo) for photo in photos or []],
            model=self.models[model],
            device=self.device,
            scale=scale,
            t_add=int(t_add),
            color_fix=cast(ColorFix, color_fix),  # one of the radio's
            seed=int(seed),
            count=int(count),
        )
        try:
            # The folder may go at the end: Gradio copies yielded files before it resumes this
            # generator.
            with tempfile.TemporaryDirectory() as folder:
                for result in upscaled(wish, Path(folder), progress, unwanted.is_set, _warn):
                    files.append(str(result.file))
                    enlarged.append(str(result.enlarged))
                    records.append(result.record)
                    yield list(zip(files, _captions(records), strict=True)), enlarged, records
        except Cancelled:
            gr.Info("Cancelled; what was ready is kept.")
        except (ValueError, OSError) as error:
            raise gr.Error(html.escape(one_line(error)), print_exception=False) from error
        finally:
            self._unwanted.pop(session, None)


def _outputs() -> tuple[Any, ...]:
    slider = gr.ImageSlider(
        label="Bicubic | upscaled", format="png", interactive=False, elem_id="compare"
    )
    gallery = gr.Gallery(
        label=f"Candidates with {_judge()}; choose one to compare it",
        columns=4,
        height=220,
        allow_preview=False,
        interactive=False,
        buttons=["download_all"],
        elem_id="candidates",
    )
    files = gr.File(
        label="Download: the best of each photograph, and how they were made",
        file_count="multiple",
        interactive=False,
    )
    text = gr.Textbox(label="Prompt", lines=1, interactive=False, elem_id="text")
    with gr.Accordion("How each was made", open=False):
        records = gr.JSON(show_label=False)
    enlarged = gr.Gallery(visible=False)
    return slider, gallery, files, text, records, enlarged


def _show(
    gallery: list[Any] | None,
    enlarged: list[Any] | None,
    records: list[dict[str, Any]] | None,
    chosen: gr.SelectData,
) -> tuple[Any, ...]:
    """The slider and the text of the candidate that was chosen."""
    if not gallery or not enlarged or not records:
        return gr.skip(), gr.skip()
    return _compared(gallery, enlarged, records, chosen.index)


def _show_best(
    gallery: list[Any] | None, enlarged: list[Any] | None, records: list[dict[str, Any]] | None
) -> Iterator[tuple[Any, ...]]:
    """The best candidate of the first photograph, and the files to download."""
    if not gallery or not enlarged or not records:
        yield None, "", None
        return
    chosen = best(records)
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "how-they-were-made.json"
        notes.write_text(json.dumps([records[place] for place in chosen], indent=1) + "\n")
        files = [gallery[place][0] for place in chosen]
        yield *_compared(gallery, enlarged, records, chosen[0]), [*files, str(notes)]


def _compared(
    gallery: list[Any], enlarged: list[Any], records: list[dict[str, Any]], place: int
) -> tuple[Any, ...]:
    record = records[place]
    words = "Chain of thought" if record["kind"] == "vlcot" else "Prompt"
    lines = max(1, len(record["text"].splitlines()))
    text = gr.update(value=record["text"], label=words, lines=lines)
    title = f"Bicubic | {record['model']}: {record['photograph']}, seed {record['seed']}"
    return gr.update(value=(enlarged[place][0], gallery[place][0]), label=title), text


def _judge() -> str:
    return METRICS[JUDGE].label


def _captions(records: list[dict[str, Any]]) -> list[str]:
    """What stands below each candidate; the best of a photograph is marked if it has several."""
    ahead, numbers = best(records), [record["number"] for record in records]
    captions = []
    for place, record in enumerate(records):
        score = "" if record[JUDGE] is None else f"{record[JUDGE]:.2f} "
        mark = "best " if place in ahead and numbers.count(record["number"]) > 1 else ""
        captions.append(f"{score}{mark}seed {record['seed']} {record['photograph']}")
    return captions


def _warn(line: str) -> None:
    gr.Warning(html.escape(line))


@contextmanager
def served(folder: Path, device: str, host: str, port: int | None) -> Iterator[str]:
    """Serve the page over the models of `folder`; yields its address.

    Uploads and results are in a temporary folder, which is removed at the end. port: None: the
    first that is free from 7860 on. Errors: OSError if the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="gdpo-sr-app-") as scratch:
        # Gradio copies a file into its own folder only if the file lies outside of it.
        work, uploads = Path(scratch) / "work", Path(scratch) / "uploads"
        work.mkdir()
        tempfile.tempdir, os.environ["GRADIO_TEMP_DIR"] = str(work), str(uploads)
        blocks = Page(local_models(folder), device, write_examples(work)).blocks()
        try:
            _, address, _ = blocks.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                pwa=False,
                run_history=False,
                enable_monitoring=False,
                max_file_size=MOST_BYTES,
                theme=gr.themes.Default(font=FONTS, font_mono=("ui-monospace", "monospace")),
                footer_links=["api"],
            )
            yield address
        finally:
            blocks.close(verbose=False)
            tempfile.tempdir = None
