"""The wheels for a package index: compress-edge, and compress-edge-gpu, whose ONNX Runtime is the one for CUDA.

    make wheels REPOSITORY=https://host/owner/name

The two ONNX Runtimes hide each other, and an extra can only add to what the base asks for; so which one comes is a matter of the
distribution, as it is of theirs. Both of ours have the same files: one of them is installed. Links of the README are relative in the
sources and would lead nowhere on an index: here they lead to the repository, by the paths that GitHub, GitLab and Gitea share.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("models", "train", "benchmarks", "compress", "src")
NAME, GPU = "compress-edge", "compress-edge-gpu"
LINK = re.compile(r"(!?)(\[[^\]]*\])\((?!https?:|#)([^)]+)\)")


def linked(text: str, repository: str) -> str:
    """Markdown whose relative links lead to the repository, pictures to their bytes."""
    return LINK.sub(lambda found: f"{found[1]}{found[2]}({repository}/{'raw' if found[1] else 'blob'}/HEAD/{found[3]})", text)


def for_cuda(text: str) -> str:
    """Extras are those of the distribution that is installed."""
    return text.replace(f"{NAME}[", f"{GPU}[")


def described(text: str, repository: str, gpu: bool) -> str:
    """pyproject.toml with addresses; for ``gpu`` by its name, and with its runtime."""
    urls = {"Homepage": "", "Documentation": "/blob/HEAD/docs/guide.md", "Changelog": "/blob/HEAD/CHANGELOG.md", "Issues": "/issues"}
    text += "\n[project.urls]\n" + "".join(f'{name} = "{repository}{path}"\n' for name, path in urls.items())
    if not gpu:
        return text
    text = for_cuda(text)
    for old, new in ((f'name = "{NAME}"', f'name = "{GPU}"'), ('"onnxruntime>=', '"onnxruntime-gpu>=')):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def build(repository: str, out: Path, gpu: bool) -> None:
    """One of the two, of a copy of the sources."""
    with tempfile.TemporaryDirectory(prefix="compress-") as name:
        folder = Path(name)
        for package in PACKAGES:
            shutil.copytree(ROOT / package, folder / package, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        shutil.copy(ROOT / "LICENSE", folder)
        readme = linked((ROOT / "README.md").read_text(encoding="utf-8"), repository)
        (folder / "README.md").write_text(for_cuda(readme) if gpu else readme, encoding="utf-8")
        (folder / "pyproject.toml").write_text(described((ROOT / "pyproject.toml").read_text(encoding="utf-8"), repository, gpu))
        for path in folder.rglob("*.py") if gpu else ():
            if not path.is_symlink():
                path.write_text(for_cuda(path.read_text(encoding="utf-8")), encoding="utf-8")
        options = ("--quiet", "--no-deps", "--disable-pip-version-check", "--wheel-dir", str(out))
        subprocess.run([sys.executable, "-m", "pip", "wheel", *options, name], check=True)


def main(arguments: list[str]) -> int:
    """Exit code."""
    repository, out = (arguments[0].rstrip("/") if arguments else ""), Path(arguments[1] if len(arguments) > 1 else "build/wheels")
    where = urlsplit(repository)
    if where.scheme != "https" or not where.netloc or not where.path:
        sys.stderr.write(f"REPOSITORY (={repository}) must be the https address of the sources, such as https://host/owner/name\n")
        return 2
    for gpu in (False, True):
        build(repository, out, gpu)
    sys.stdout.write("".join(f"{path}\n" for path in sorted(out.glob("*.whl"))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
