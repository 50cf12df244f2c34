"""What is done with files, no network being opened first: results are compared, models proved, put behind a port or onto a page."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from ..errors import CompressError
from . import options as of
from .calls import fields_of, some, takes

if TYPE_CHECKING:
    from ..artifacts.project import Console
    from ..benchmarks.compare import Changes
    from ..serve.page.folder import Paged
    from ..serve.service import Served
    from ..stages.verify import Proof


@takes(of.CompareOptions)
def compare(old: Path | str, new: Path | str, **options: Unpack[of.CompareOptions]) -> "Changes":
    """Compare two benchmarks of one machine, for CI: it fails only where an interval lies wholly beyond the limit.

    OLD and NEW are benchmark.json files; candidates are matched by name, runtime and device.
    """
    from ..artifacts.payloads import read_scored
    from ..benchmarks.compare import compare as compared

    slower, less_accurate = options.get("fail_if_slower"), options.get("fail_if_less_accurate")
    files = [Path(one) / "benchmark.json" if (Path(one) / "benchmark.json").is_file() else Path(one) for one in (old, new)]
    for name in ("html", "markdown"):
        if name in options and Path(options[name]).resolve() in [one.resolve() for one in files]:
            raise CompressError(f"{name} (={options[name]}) is one of the results that are compared; name another file")
    was, now = map(read_scored, files)
    found = compared(was, now, slower=slower, less_accurate=less_accurate)
    if "html" in options:
        from ..benchmarks.page.diff import write_diff

        write_diff(was, now, found, Path(options["html"]), slower=slower, less_accurate=less_accurate)
    if "markdown" in options:
        from ..benchmarks.page.diff import as_markdown

        with Path(options["markdown"]).open("a", encoding="utf-8") as file:
            file.write(as_markdown(found))
    return found


@takes(of.VerifyOptions)
def verify(folder: Path | str, **options: Unpack[of.VerifyOptions]) -> "Proof":
    """Prove again, on any machine, that a model computes what it was made to: its hash, and its logits for the images beside it.

    FOLDER holds model.onnx or model.tflite and vectors.npz, as export-onnx, quantize and export-litert wrote them; or it is any .onnx or
    .tflite file, of which less can be proved.
    Or export-c wrote it: then its self-test is compiled here and run, which is to run what lies in that folder, so name one that you trust.
    """
    from ..stages.verify import verify as prove

    return prove(Path(folder), **options)


@takes(of.ServeOptions)
def serve(*sources: Path | str, console: "Console | None" = None, **options: Unpack[of.ServeOptions]) -> "Served":
    """Put models behind a port, with a page to draw on, until Ctrl-C or SIGTERM; what was accepted is answered first.

    SOURCES are .onnx files, artifacts, and folders made by report --ship, as PATH or NAME=PATH. Only this machine can ask, unless --host
    says otherwise. A file that is replaced is loaded and takes over without a lost request. Needs the extra compress-edge[serve].
    """
    from ..artifacts.context import Context
    from ..artifacts.records import checked
    from ..serve.settings import ServeConfig, sources_of

    config = checked(ServeConfig, fields_of(ServeConfig, options), "serve")
    found = sources_of(sources, **some(options, "image_shape", "mean", "std", "model"), runs=str(options.get("runs", "runs")))
    from ..serve.service import serve as served

    return served(found, config, console or Context().console)


@takes(of.PageOptions)
def page(*sources: Path | str, console: "Console | None" = None, **options: Unpack[of.PageOptions]) -> "Paged":
    """Write a folder that any static host can serve: a page to draw on, whose networks run in the browser, without a server of ours.

    SOURCES are .onnx files, artifacts, folders made by report --ship, as PATH or NAME=PATH, or models in --runs, of which the newest file
    is taken. onnxruntime-web comes from the npm registry once, and is checked by its hash; the page itself asks nobody.
    """
    from ..artifacts.context import Context
    from ..serve.page.folder import newest_of, write_page
    from ..serve.settings import sources_of

    runs = Path(options.get("runs", "runs"))
    found = sources_of([newest_of(str(one), runs) for one in sources], runs=str(runs))
    return write_page(found, Path(options.get("out", "page")), console or Context().console, **some(options, "registry", "force"))


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, for editors."""
    from ..stages.run_all import recipe_schema as schema

    return schema()
