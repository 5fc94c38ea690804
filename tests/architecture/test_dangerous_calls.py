"""Calls that turn data into code, or leave a folder, are nowhere in what reads strangers' files."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("sanitizer", "service", "worker", "migrations")

NEVER = frozenset(
    {
        *("eval", "exec", "compile", "__import__"),
        *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads"),
        *("shelve.open", "dill.load", "joblib.load", "yaml.load", "yaml.unsafe_load"),
        "pandas.read_pickle",
        *("torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
        *("os.system", "os.popen", "tempfile.mktemp", "shutil.unpack_archive"),
    }
)
NEVER_METHODS = frozenset({"extractall"})
"""Of zip and tar files."""
NUMPY_LOADS = frozenset({"np.load", "numpy.load", "npy.read_array"})


def _calls(source: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))


def _faults(source: str) -> list[str]:
    faults = []
    for call in _calls(source):
        name = ast.unparse(call.func)
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name in NEVER or name.rpartition(".")[2] in NEVER_METHODS:
            faults.append(f"line {call.lineno}: {name}")
        if name == "torch.load" and given.get("weights_only") != "True":
            faults.append(f"line {call.lineno}: torch.load without weights_only=True")
        if given.get("shell", "False") != "False":
            faults.append(f"line {call.lineno}: {name} with a shell")
        # numpy refuses pickles by default today, and did not always: it has to be said.
        if given.get("allow_pickle", "not said" if name in NUMPY_LOADS else "False") != "False":
            faults.append(f"line {call.lineno}: {name} without allow_pickle=False")
    return faults


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_turns_data_into_code(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    faults = {
        str(path.relative_to(ROOT)): found
        for path in modules
        if (found := _faults(path.read_text(encoding="utf-8")))
    }
    assert modules
    assert faults == {}


@pytest.mark.parametrize(
    "source",
    [
        "pickle.loads(data)",
        "torch.load(path)",
        "torch.load(path, weights_only=safe)",
        "subprocess.run(command, shell=True)",
        "np.load(path)",
        "npy.read_array(file, allow_pickle=True)",
        "archive.extractall(folder)",
        "eval(text)",
    ],
)
def test_such_a_call_is_seen(source: str) -> None:
    assert len(_faults(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, weights_only=True)",
        "network.eval()",
        "re.compile(text)",
        "np.load(path, mmap_mode='r', allow_pickle=False)",
        "pickle.dump(value, file)",
    ],
)
def test_harmless_call_is_let_pass(source: str) -> None:
    assert _faults(source) == []
