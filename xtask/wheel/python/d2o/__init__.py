"""Python interface of the command ``d2o``.

Every function runs the command in a separate process and returns its JSON as Python objects::

    import d2o

    d2o.export("efficientnet-lite0-57934424.pth", "lite0.onnx", kind="features")
    result = d2o.evaluate("samples.npz", ref="reference.zip", extractor="lite0.onnx", metrics=["fid", "pr"])
    print(result["metrics"]["fid"]["value"])

Keyword arguments are the options of the command line: ``kid_subsets=10`` is ``--kid-subsets=10``, ``overwrite=True`` is ``--overwrite``; ``None`` and
``False`` omit the option; a list repeats the option for each value, and ``seeds`` takes a ``range`` or a list of integers; append an underscore to
names that are Python keywords (``class_=3``). ``d2o COMMAND --help`` lists the options.

Warnings of the command are issued as :class:`D2OWarning`. A run that fails raises :class:`D2OError` with the error message of the command.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "AnswerNo",
    "D2OError",
    "D2OWarning",
    "binary",
    "evaluate",
    "export",
    "generate",
    "inspect",
    "run",
    "verify",
]

StrPath = str | os.PathLike[str]

#: Exit code of a run whose answer is no: a condition is not met, runtimes differ.
_NO = 1


class D2OError(Exception):
    """A failed run of the command.

    Attributes:
        command: The command line.
        code: Exit code: 2 for bad input or usage, failing devices or disks and bugs of d2o, 130 after an interruption, -N if signal N ended it.
        stderr: Standard error of the command.
    """

    def __init__(self, command: list[str], code: int, stderr: str) -> None:
        self.command = command
        self.code = code
        self.stderr = stderr
        super().__init__(stderr.strip() or f"`{' '.join(command)}` ended with exit code {code}")


class AnswerNo(D2OError):
    """A condition of ``expect`` is not met (exit code 1).

    Attributes:
        result: The result, as returned by :func:`evaluate`.
    """

    def __init__(self, command: list[str], stderr: str, result: Any) -> None:
        super().__init__(command, _NO, stderr)
        self.result = result


class D2OWarning(UserWarning):
    """A warning of the command."""


def binary() -> Path:
    """Path of the program that this module runs.

    Searches the environment of this Python, the folder of this package (``pip install --target``), the scripts of the user, then ``PATH``.

    Raises:
        FileNotFoundError: If the program is not found.
    """
    folders = [
        sysconfig.get_path("scripts"),
        os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bin"),
        sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user")),
    ]
    for folder in folders:
        found = shutil.which("d2o", path=folder)
        if found is not None:
            return Path(found)
    found = shutil.which("d2o")
    if found is None:
        looked = ", ".join(f"`{folder}`" for folder in folders)
        raise FileNotFoundError(f"the program `d2o` was not found in {looked} or PATH; `pip install --force-reinstall d2o` installs it")
    return Path(found)


def run(*args: StrPath, cwd: StrPath | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs ``d2o`` with these arguments.

    Args:
        args: Command, options and files, as on the command line.
        cwd: Working folder; the current one if ``None``.
        check: Whether exit codes other than 0 raise an error.

    Returns:
        Exit code (``returncode``), standard output and standard error.

    Raises:
        D2OError: If the exit code is not 0 and ``check`` is set.
        FileNotFoundError: If the program is not installed.
    """
    command = [str(binary()), *(os.fspath(a) for a in args)]
    with subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as process:
        try:
            stdout, stderr = process.communicate()
        except KeyboardInterrupt:
            # The command receives the signal too and stops after the current batch; a second interruption kills it.
            try:
                process.wait()
            except KeyboardInterrupt:
                process.kill()
            raise
    for line in stderr.splitlines():
        if line.startswith("warning: "):
            warnings.warn(line.removeprefix("warning: "), D2OWarning, stacklevel=_outside())
    if check and process.returncode != 0:
        raise D2OError(command, process.returncode, stderr)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def evaluate(
    samples: StrPath | None = None,
    *,
    ref: StrPath | None = None,
    extractor: StrPath | None = None,
    protocol: str | list[str] | None = None,
    metrics: str | list[str] | None = None,
    **options: Any,
) -> Any:
    """Measures a set of samples against a reference (``d2o evaluate``).

    Args:
        samples: Images (npz, npy, HDF5, zip, folder), a feature file, or a generator (X.onnx) together with ``seeds``; ``None`` with ``merge``.
        ref: Reference: statistics (npz), images or a feature file.
        extractor: Feature extractor, exported with ``kind="features"``.
        protocol: Evaluation protocol or protocols, ``edm`` if ``None``.
        metrics: Metrics to compute; if ``None``, ``fid``, ``is`` and ``pr``, where the reference supports them.
        options: Other options of ``d2o evaluate``.

    Returns:
        The result as written by ``d2o evaluate --json``; a list of results for several protocols.

    Raises:
        AnswerNo: If a condition of ``expect`` is not met; its attribute ``result`` holds the result.
        D2OError: If the evaluation failed.
    """
    named = {"ref": ref, "extractor": extractor, "protocol": protocol, "metrics": metrics}
    done, result = _json("evaluate", [] if samples is None else [samples], named | options)
    if done.returncode == _NO:
        raise AnswerNo(done.args, done.stderr, result)
    return result


def verify(model: StrPath, **options: Any) -> Any:
    """Compares the outputs of a graph across runtimes (``d2o verify``).

    Args:
        model: Graph exported by d2o.
        options: Options of ``d2o verify``, e.g. ``runtimes=["ort-cpu", "tract"]``.

    Returns:
        The result as written by ``d2o verify --json``; ``agree`` tells whether the outputs agree within the tolerance.

    Raises:
        D2OError: If the comparison failed.
    """
    return _json("verify", [model], options)[1]


def inspect(*files: StrPath) -> list[dict[str, Any]]:
    """Identifies files (``d2o inspect``).

    Args:
        files: Checkpoints, graphs, image containers or references.

    Returns:
        A description of each file, in order.

    Raises:
        D2OError: If a file cannot be read.
    """
    result = _json("inspect", list(files), {})[1]
    return result if isinstance(result, list) else [result]


def export(source: StrPath, out: StrPath, **options: Any) -> Path:
    """Exports a checkpoint to ONNX and checks the graph (``d2o export``).

    Args:
        source: Checkpoint.
        out: Graph to write.
        options: Options of ``d2o export``, e.g. ``kind="features"``.

    Returns:
        ``out``.

    Raises:
        D2OError: If the export or the check of the graph failed.
    """
    run("export", *_flags({"out": out} | options), "--", source)
    return Path(out)


def generate(model: StrPath, out: StrPath, *, seeds: range | list[int] | str | None = None, **options: Any) -> Path:
    """Generates images with an exported model (``d2o generate``).

    Args:
        model: Graph of a generator or a denoiser.
        out: File (npz, HDF5, zip) or folder to write.
        seeds: Seeds: a range, integers, or text such as ``"0-49999"``.
        options: Other options of ``d2o generate``.

    Returns:
        ``out``.

    Raises:
        D2OError: If the generation failed.
    """
    run("generate", *_flags({"out": out, "seeds": seeds} | options), "--", model)
    return Path(out)


def _json(command: str, files: list[StrPath], options: dict[str, Any]) -> tuple[subprocess.CompletedProcess[str], Any]:
    """A run of `command` and what it wrote as JSON. Exit code 1 is an answer."""
    if "json" in options:
        raise TypeError(f"{command}() returns the JSON: it takes no `json`")
    done = run(command, "--json=-", *_flags(options), "--", *files, check=False)
    if done.returncode not in (0, _NO):
        raise D2OError(done.args, done.returncode, done.stderr)
    return done, json.loads(done.stdout)


def _flags(options: dict[str, Any]) -> Iterator[str]:
    """Options of the command line, `--name=value`, for keyword arguments."""
    for name, value in options.items():
        flag = "--" + name.rstrip("_").replace("_", "-")
        if name == "seeds" and isinstance(value, (range, list, tuple)):
            value = _seeds(value)
        if value is None or value is False:
            continue
        if value is True:
            yield flag
            continue
        for one in value if isinstance(value, (list, tuple)) else [value]:
            yield f"{flag}={os.fspath(one) if isinstance(one, os.PathLike) else one}"


def _seeds(seeds: range | list[int] | tuple[int, ...]) -> str:
    if isinstance(seeds, range) and seeds.step == 1 and len(seeds) > 0:
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(str(int(seed)) for seed in seeds)


def _outside() -> int:
    """The number of stack frames up to the caller of this module, for `warnings.warn` in the caller of this function."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        depth, frame = depth + 1, frame.f_back
    return depth
