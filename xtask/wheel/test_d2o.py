"""Tests of the Python module against a stand-in for the program, which records its arguments: `python -m unittest` in this folder."""

import json
import os
import stat
import sys
import sysconfig
import tempfile
import unittest
import warnings
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent / "python"))

import d2o  # noqa: E402

STAND_IN = """#!{python}
import json, sys
from pathlib import Path
here = Path(__file__).parent
(here / "arguments.json").write_text(json.dumps(sys.argv[1:]))
answer = json.loads((here / "answer.json").read_text())
print(answer["stdout"], end="")
print(answer["stderr"], end="", file=sys.stderr)
sys.exit(answer["code"])
"""


class Module(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.bin = Path(folder.name)
        self.program(self.bin)
        patch = mock.patch.object(sysconfig, "get_path", lambda *_: str(self.bin))
        patch.start()
        self.addCleanup(patch.stop)
        self.answer()

    def program(self, folder):
        program = folder / "d2o"
        program.write_text(STAND_IN.format(python=sys.executable))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return program

    def answer(self, result=None, stderr="", code=0):
        text = "" if result is None else json.dumps(result)
        (self.bin / "answer.json").write_text(json.dumps({"stdout": text, "stderr": stderr, "code": code}))

    def arguments(self):
        return json.loads((self.bin / "arguments.json").read_text())

    def test_options_become_flags(self):
        self.answer({"metrics": {}})
        found = d2o.evaluate(
            "-s.npz",
            ref=Path("r.npz"),
            extractor="x.onnx",
            metrics=["fid", "pr"],
            kid_subset_size=10,
            tf32=True,
            quiet=False,
            device=None,
            class_=3,
            seeds=range(5, 50),
        )
        self.assertEqual(found, {"metrics": {}})
        self.assertEqual(
            self.arguments(),
            ["evaluate", "--json=-", "--ref=r.npz", "--extractor=x.onnx", "--metrics=fid", "--metrics=pr"]
            + ["--kid-subset-size=10", "--tf32", "--class=3", "--seeds=5-49", "--", "-s.npz"],
        )

    def test_each_function_runs_its_command(self):
        self.assertEqual(d2o.export("a.pkl", "a.onnx", kind="features"), Path("a.onnx"))
        self.assertEqual(self.arguments(), ["export", "--out=a.onnx", "--kind=features", "--", "a.pkl"])
        self.assertEqual(d2o.generate("a.onnx", "a.npz", seeds=[1, 3, 9]), Path("a.npz"))
        self.assertEqual(self.arguments(), ["generate", "--out=a.npz", "--seeds=1,3,9", "--", "a.onnx"])
        d2o.generate("a.onnx", "a.npz", seeds=range(0, 6, 2))
        self.assertIn("--seeds=0,2,4", self.arguments())
        self.answer([{"file": "a"}, {"file": "b"}])
        self.assertEqual(d2o.inspect("a", "b"), [{"file": "a"}, {"file": "b"}])
        self.assertEqual(self.arguments(), ["inspect", "--json=-", "--", "a", "b"])
        self.answer({"agree": True})
        self.assertEqual(d2o.verify("a.onnx", runtimes=["ort-cpu", "tract"]), {"agree": True})
        self.assertEqual(self.arguments(), ["verify", "--json=-", "--runtimes=ort-cpu", "--runtimes=tract", "--", "a.onnx"])

    def test_failures_carry_the_message(self):
        self.answer(stderr="error: no such file\n", code=2)
        for call in [lambda: d2o.evaluate("a"), lambda: d2o.verify("a"), lambda: d2o.export("a", "b"), lambda: d2o.run("x")]:
            with self.assertRaises(d2o.D2OError) as raised:
                call()
            self.assertEqual((raised.exception.code, str(raised.exception)), (2, "error: no such file"))
            self.assertNotIsInstance(raised.exception, d2o.AnswerNo)
        self.assertEqual(d2o.run("x", check=False).returncode, 2)

    def test_no_is_an_answer(self):
        self.answer({"agree": False}, code=1)
        self.assertEqual(d2o.verify("a.onnx"), {"agree": False})
        self.answer({"metrics": {"fid": {"value": 9}}}, code=1)
        with self.assertRaises(d2o.AnswerNo) as raised:
            d2o.evaluate("a", expect="fid<=1")
        self.assertEqual((raised.exception.code, raised.exception.result["metrics"]["fid"]["value"]), (1, 9))

    def test_warnings_point_at_the_caller(self):
        self.answer({}, stderr="note\nwarning: CUDA cannot be used\n")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            d2o.evaluate("a")
        self.assertEqual([(w.category, str(w.message), w.filename) for w in caught], [(d2o.D2OWarning, "CUDA cannot be used", __file__)])

    def test_json_is_not_an_option(self):
        with self.assertRaises(TypeError):
            d2o.evaluate("a", json="b.json")

    def test_the_environment_comes_before_the_path(self):
        with tempfile.TemporaryDirectory() as other:
            self.program(Path(other))
            with mock.patch.dict(os.environ, {"PATH": other}):
                self.assertEqual(d2o.binary(), self.bin / "d2o")
                (self.bin / "d2o").unlink()
                self.assertEqual(d2o.binary(), Path(other) / "d2o")
                (Path(other) / "d2o").unlink()
                with self.assertRaises(FileNotFoundError):
                    d2o.binary()


if __name__ == "__main__":
    unittest.main()
