"""The page of ``trilemma demo`` in gradio. The only module that imports gradio; what it shows is computed elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from trilemma.config.chains import ENERGIES, PRESETS
from trilemma.config.registry import SAMPLERS, STARTS
from trilemma.demo import compute, markup
from trilemma.demo.compute import Chosen, Frame, Plane
from trilemma.demo.pictures import read_picture
from trilemma.demo.stopping import Beat, Done, Jobs, StoppedError
from trilemma.demo.subject import Subject
from trilemma.errors import ConfigError, MissingExtraError, UserError
from trilemma.figures.style import DARK, LIGHT
from trilemma.pages.words import norm_words
from trilemma.storing import temporary_folder
from trilemma.threat import NORMS

# Read by gradio when it is imported: no usage statistics, and no connection to its hub.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
try:
    import gradio as gr
    from starlette.middleware import Middleware
except ImportError as error:
    raise MissingExtraError(
        f"demo: needs gradio, which cannot be imported ({error}); pip install -e '.[demo]' in the clone"
    ) from error

HOST = "127.0.0.1"
# Largest file that the page takes.
LARGEST_FILE = "100mb"
DEFAULT_RADIUS = "8/255"
OF_PRESET = ("of the preset", "")
NO_PRESET = ("as in training", "")
# A browser loads nothing from elsewhere, whatever a template of gradio refers to. Gradio compiles its templates.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-src 'none'"
PICK = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('.pick');
  if (!button) return;
  element.querySelectorAll('.pick').forEach((other) => other.setAttribute('aria-pressed', other === button));
  trigger('select', {index: Number(button.dataset.index)});
});
"""
RELEASE = (
    "() => document.querySelectorAll('.pick').forEach((pick) => pick.setAttribute('aria-pressed', false))"
)


class LocalOnly:
    """ASGI middleware that adds the content security policy to every answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", []), (b"content-security-policy", POLICY.encode())]
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, with_policy)


class Page:
    """Builds the page.

    Args:
        subject: the classifier that it shows.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.jobs = Jobs()
        self._planes: dict[tuple[str, str, int], Plane] = {}
        with gr.Blocks(title="trilemma demo", analytics_enabled=False) as self.blocks:
            gr.HTML(markup.header(subject))
            # What belongs to one browser tab: the chosen image; by name, the last image made and what it was made from.
            self.chosen, self.made = gr.State(None), gr.State({})
            self._choice()
            with gr.Tabs():
                with gr.Tab("Attack"):
                    self._attack()
                with gr.Tab("Generate"):
                    self._generate()
                with gr.Tab("Counterfactual"):
                    self._counterfactual()
                with gr.Tab("Energy plane"):
                    self._plane()
            self.blocks.unload(self._leave)

    def _leave(self, request: gr.Request) -> None:
        self.jobs.stop(str(request.session_hash))

    # The image.

    def _choice(self) -> None:
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                picks = gr.HTML(markup.offered(self.subject), js_on_load=PICK, elem_id="picks")
            with gr.Column(scale=2, min_width=260):
                shown = gr.HTML(markup.sentence("No image chosen yet.", "note"), elem_id="chosen")
                upload = gr.UploadButton("Upload an image", size="sm", elem_id="upload")
        picks.select(self._pick, None, [self.chosen, shown], show_progress="hidden")
        upload.upload(self._upload, upload, [self.chosen, shown], show_progress="hidden")
        upload.upload(None, js=RELEASE)

    def _pick(self, event: gr.EventData) -> tuple[Any, ...]:
        index = int(event.index)
        pixels, label = self.subject.offered_image(index)
        note = f"Test image {index + 1}, {self.subject.clf.class_names[label]}."
        return Chosen(pixels, label, note), markup.chosen_image(pixels, note)

    def _upload(self, path: str | None) -> tuple[Any, ...]:
        try:
            if path is None:
                raise UserError("no file was uploaded")
            read = read_picture(path, self.subject.shape)
        except UserError as error:
            return None, markup.alert(str(error))
        return Chosen(read.pixels, None, read.note), markup.chosen_image(read.pixels, read.note)

    # The tabs.

    def _attack(self) -> None:
        with gr.Row():
            with gr.Column(scale=2, min_width=260):
                norm, radius = self._threat("attack")
                name = gr.Dropdown(compute.attack_names(), value=compute.PLANE_ATTACK, label="attack")
                steps = gr.Number(20, label="steps or queries")
                start_button, stop_button = self._buttons("Attack", "attack")
            outputs = self._outputs("attack")

        def run(
            chosen: Any, made: Any, norm: str, radius: str, name: str, steps: Any, request: gr.Request
        ) -> Any:
            def work(report: Any) -> tuple[str, Any]:
                result = compute.attack(self.subject, chosen, norm, radius, name, steps)
                pair = (result.original, result.adversarial)
                return markup.attacked(self.subject, result), {**made, "attacked": pair}

            yield from self._run(request, work, made=True)

        inputs = [self.chosen, self.made, norm, radius, name, steps]
        self._connect(start_button, stop_button, outputs, run, inputs, made=True)

    def _generate(self) -> None:
        names = self.subject.clf.class_names
        with gr.Row():
            with gr.Column(scale=2, min_width=260):
                label = gr.Dropdown(self._classes(), value=min(3, len(names) - 1), label="class")
                preset = gr.Dropdown([NO_PRESET, *PRESETS], value="", label="preset")
                start = gr.Dropdown(
                    [OF_PRESET, *STARTS.rows()], value="uniform", label="start", allow_custom_value=True
                )
                with gr.Row():
                    energy = gr.Dropdown([OF_PRESET, *ENERGIES], value="", label="energy", min_width=120)
                    sampler = gr.Dropdown(
                        [OF_PRESET, *SAMPLERS.names()], value="", label="sampler", min_width=120
                    )
                with gr.Row():
                    # Without a placeholder, an empty field would be 0.
                    steps = gr.Number(
                        200, label="steps", placeholder="preset", elem_id="generate-steps", min_width=80
                    )
                    images = gr.Number(8, label="images", elem_id="generate-images", min_width=80)
                    seed = gr.Number(0, label="seed", min_width=80)
                start_button, stop_button = self._buttons("Generate", "generate")
            outputs = self._outputs("generate")

        def run(
            label: int, preset: str, start: str, energy: str, sampler: str, steps: Any, images: Any, seed: Any,
            request: gr.Request,
        ) -> Any:  # fmt: skip
            frames: list[Frame] = []

            def work(report: Callable[[str], None]) -> tuple[str]:
                def show(frame: Frame) -> None:
                    frames.append(frame)
                    report(markup.live(self.subject, label, frames))

                result = compute.generate(
                    self.subject, label, images, start or None, energy or None, sampler or None, preset or None,
                    steps, seed, show,
                )  # fmt: skip
                return (markup.generated(self.subject, result),)

            yield from self._run(request, work)

        self._connect(
            start_button,
            stop_button,
            outputs,
            run,
            [label, preset, start, energy, sampler, steps, images, seed],
        )

    def _counterfactual(self) -> None:
        last = len(self.subject.clf.class_names) - 1
        with gr.Row():
            with gr.Column(scale=2, min_width=260):
                target = gr.Dropdown(self._classes(), value=last, label="towards the class")
                norm = gr.Radio(
                    [(norm_words(n), n) for n in ("l2", "linf")], value="l2", label="norm of the distance"
                )
                search = gr.Radio(
                    ["least distance", "within a budget"], value="least distance", label="search for"
                )
                budget = gr.Textbox("1.5", label="budget", info="only within a budget; such as 1.5 or 8/255")
                energy = gr.Radio(
                    [("cross-entropy", "ce"), ("E(x, class)", "joint")], value="ce", label="lower the"
                )
                start_button, stop_button = self._buttons("Move", "counterfactual")
            outputs = self._outputs("counterfactual")

        def run(
            chosen: Any,
            made: Any,
            target: int,
            norm: str,
            search: str,
            budget: str,
            energy: str,
            request: gr.Request,
        ) -> Any:
            def work(report: Any) -> tuple[str, Any]:
                limit = None if search == "least distance" else budget
                result = compute.counterfactual(self.subject, chosen, target, norm, limit, energy)
                pair = (result.originals[0], result.images[0])
                both = compute.answers(
                    self.subject.clf, torch.stack(pair), result.target_labels.repeat_interleave(2)
                )
                text = markup.counterfactual(self.subject, result, both)
                return text, {**made, "counterfactual": pair}

            yield from self._run(request, work, made=True)

        self._connect(
            start_button,
            stop_button,
            outputs,
            run,
            [self.chosen, self.made, target, norm, search, budget, energy],
            made=True,
        )

    def _plane(self) -> None:
        most = compute.largest_cloud(self.subject)
        with gr.Row():
            with gr.Column(scale=2, min_width=260):
                norm, radius = self._threat("plane")
                images = gr.Number(
                    min(100, most),
                    label="images per cloud",
                    elem_id="plane-images",
                    info=f"2 to {most}",
                )
                start_button, stop_button = self._buttons("Draw", "plane")
            outputs = self._outputs("plane")

        def run(chosen: Any, made: Any, norm: str, radius: str, images: Any, request: gr.Request) -> Any:
            def work(report: Any) -> tuple[str]:
                key = (norm, radius.strip(), images)
                if key not in self._planes:
                    self._planes[key] = compute.plane(self.subject, norm, radius, images)
                marks = compute.marks(self.subject, chosen, made)
                return (markup.plane(self._planes[key], marks),)

            yield from self._run(request, work)

        self._connect(start_button, stop_button, outputs, run, [self.chosen, self.made, norm, radius, images])

    # Parts that the tabs share.

    def _classes(self) -> list[tuple[str, int]]:
        return [(name, number) for number, name in enumerate(self.subject.clf.class_names)]

    def _threat(self, name: str) -> tuple[Any, Any]:
        """The fields for norm and radius, by default those that the classifier was trained for."""
        stored = self.subject.clf.threat
        norm = gr.Radio(
            [(norm_words(norm), norm) for norm in NORMS],
            value="linf" if stored is None else stored.norm,
            label="norm",
        )
        radius = gr.Textbox(
            DEFAULT_RADIUS if stored is None else str(stored.radius), label="radius", elem_id=f"{name}-radius",
            info="in pixel values from 0 to 1, such as 0.1 or 8/255",
        )  # fmt: skip
        return norm, radius

    def _buttons(self, verb: str, name: str) -> tuple[Any, Any]:
        with gr.Row():
            start = gr.Button(verb, variant="primary", elem_id=f"{name}-start", min_width=120)
            stop = gr.Button("Stop", elem_id=f"{name}-stop", min_width=80)
        return start, stop

    def _outputs(self, name: str) -> list[Any]:
        """A line of status above the result."""
        with gr.Column(scale=4, min_width=300):
            status = gr.HTML("", elem_id=f"{name}-status")
            result = gr.HTML("", elem_id=f"{name}-result")
        return [status, result]

    def _connect(
        self,
        start: Any,
        stop: Any,
        outputs: list[Any],
        run: Callable[..., Any],
        inputs: list[Any],
        made: bool = False,
    ) -> None:
        outputs = [*outputs, self.made] if made else outputs
        # All may begin: the jobs let one computation follow the other, and say which one waits.
        start.click(run, inputs, outputs, show_progress="hidden", concurrency_limit=None)
        stop.click(self._stop, None, None, queue=False, show_progress="hidden")

    def _stop(self, request: gr.Request) -> None:
        self.jobs.stop(str(request.session_hash))

    def _run(
        self,
        request: gr.Request,
        work: Callable[[Callable[[str], None]], tuple[Any, ...]],
        made: bool = False,
    ) -> Iterator[list[Any]]:
        """Yields status and result while ``work`` reports, and then what it returns: the result, and new images."""
        unchanged = [gr.skip()] if made else []
        running = self.jobs.run(str(request.session_hash), self.subject.clf, work)
        yield [markup.sentence("Computing.", "note"), gr.skip(), *unchanged]
        try:
            for item in running:
                if isinstance(item, Beat):
                    yield [markup.progress(item), gr.skip(), *unchanged]
                elif isinstance(item, Done):
                    yield ["", *item.result]
                else:
                    yield ["", item, *unchanged]
        except StoppedError as stopped:
            yield [markup.sentence(f"{str(stopped).capitalize()}.", "note"), gr.skip(), *unchanged]
        except UserError as error:
            yield [markup.alert(str(error)), "", *unchanged]
        finally:
            running.close()


def _theme() -> Any:
    """Gradio's plainest theme with the fonts of the reader's system and the colours of the figures."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
    colours: dict[str, str] = {}
    for theme, suffix, soft in ((LIGHT, "", "#f5f6f8"), (DARK, "_dark", "#1e2127")):
        values = {
            "body_background_fill": theme.background, "body_text_color": theme.text,
            "body_text_color_subdued": theme.muted, "background_fill_primary": theme.background,
            "background_fill_secondary": soft, "block_background_fill": theme.background,
            "block_border_color": theme.grid, "block_label_text_color": theme.muted,
            "block_title_text_color": theme.muted, "block_info_text_color": theme.muted,
            "border_color_primary": theme.grid, "input_background_fill": soft, "input_border_color": theme.grid,
            "checkbox_label_background_fill": soft, "checkbox_label_text_color": theme.text,
            "checkbox_label_background_fill_selected": soft, "checkbox_background_color_selected": theme.sets["clean"],
            "button_primary_background_fill": theme.sets["clean"], "button_primary_text_color": theme.background,
            "button_primary_background_fill_hover": theme.sets["clean"], "button_secondary_background_fill": soft,
            "button_secondary_text_color": theme.text, "color_accent_soft": soft,
            "link_text_color": theme.sets["clean"],
        }  # fmt: skip
        colours |= {f"{name}{suffix}": value for name, value in values.items()}
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
    return gr.themes.Base(font=system, font_mono=mono).set(color_accent=LIGHT.sets["clean"], **colours)


def _css() -> str:
    """The style sheet, with the colours of both themes as variables."""
    blocks = []
    for theme, selector in ((LIGHT, ":root"), (DARK, ".dark")):
        colours = {
            "text": theme.text, "muted": theme.muted, "line": theme.grid, "alarm": theme.alarm,
            "accent": theme.sets["clean"], "clean": theme.sets["clean"], "generated": theme.sets["generated"],
        }  # fmt: skip
        variables = " ".join(f"--demo-{name}: {colour};" for name, colour in colours.items())
        blocks.append(f"{selector} {{ {variables} }}")
    return "\n".join([*blocks, Path(__file__).with_name("page.css").read_text(encoding="utf-8")])


@contextmanager
def serving(subject: Subject, port: int, share: bool = False) -> Iterator[tuple[str, str | None]]:
    """A context in which the page is served on this machine; yields its address and the public one of ``share``.

    At the end all computations are stopped, and uploaded files are removed.

    Args:
        subject: the classifier that the page shows.
        port: a free port.
        share: also through a tunnel of gradio, which anybody with the address can use.

    Raises:
        ConfigError: the port cannot be used.
    """
    # Gradio asks its own server whether it answers, which must not go through a proxy.
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST, "localhost")))
    with temporary_folder("trilemma-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = Page(subject)
        try:
            # Standard output is for the addresses.
            with redirect_stdout(sys.stderr):
                _, local, public = page.blocks.launch(
                    server_name=HOST, server_port=port, share=share, prevent_thread_lock=True, quiet=True,
                    ssr_mode=False, footer_links=[], run_history=False, enable_monitoring=False, mcp_server=False,
                    pwa=False, max_file_size=LARGEST_FILE, theme=_theme(), css=_css(), inbrowser=False,
                    app_kwargs={"middleware": [Middleware(LocalOnly)]},
                )  # fmt: skip
        except OSError as error:
            # Another program has taken the port in the meantime.
            raise ConfigError(f"--port {port}: cannot be used ({error}); choose another --port") from None
        try:
            yield local, public or None
        finally:
            page.jobs.stop_all()
            page.blocks.close(verbose=False)
