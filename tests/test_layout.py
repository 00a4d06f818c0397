"""The shape of the code, as tables: who may import whom, how long things may be, what is never done.

The tables are the documentation; a change of the shape is a change of a table.
"""

import ast
import functools
import importlib.util
import os
import subprocess
import sys
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT, run_python

# What lies in which layer, which layers it may import, and which packages from outside. Everything
# stands below what it imports.
LAYERS = {
    # words and files
    "garbage": ((), ()),
    "launcher": ((), ()),
    "streams": ((), ()),
    "errors": (("garbage", "streams"), ()),
    "files": (("errors",), ()),
    "json_files": (("errors", "files"), ()),
    "locks": ((), ()),
    "terminal": (("errors", "json_files"), ("rich",)),
    "yaml_file": (("errors",), ("yaml",)),
    "workers": (("errors",), ()),
    # settings
    "settings": (("errors", "yaml_file"), ("pydantic", "yaml")),
    "command_line": (("errors", "settings"), ()),
    "other_names": ((), ()),
    "config": (("command_line", "errors", "other_names", "settings", "yaml_file"), ("pydantic",)),
    # numbers
    "kernels": ((), ("torch", "triton", "flash_attn", "flash_attn_interface", "xformers")),
    "ops": (("errors", "kernels"), ("torch",)),
    "model": (("errors", "files", "json_files", "ops"), ("torch", "safetensors")),
    # text
    "data": (
        ("errors", "files", "json_files", "locks", "workers", "yaml_file"),
        ("numpy", "pyarrow", "sentencepiece", "tokenizers", "torch"),
    ),
    "remote": (("errors", "locks"), ("openai",)),
    "interactive": (("errors", "json_files", "locks", "remote", "workers"), ("numpy", "yaml")),
    # both
    "inference": (("data", "errors", "model"), ("jinja2", "torch")),
    "data_checks": (("config", "data", "errors", "inference", "model"), ()),
    "prepare": (
        ("config", "data", "data_checks", "errors", "files", "json_files", "terminal"),
        ("rich",),
    ),
    "training": (
        (
            "config", "data", "errors", "files", "json_files", "kernels", "launcher", "locks", "model", "ops",
            "prepare", "terminal",
        ),
        ("matplotlib", "numpy", "rich", "safetensors", "torch", "torchao", "wandb"),
    ),
    "evaluation": (
        (
            "command_line", "data", "errors", "files", "inference", "json_files", "locks", "model", "remote",
            "terminal",
        ),
        ("langdetect", "matplotlib", "numpy", "rich", "sacrebleu", "torch"),
    ),
    "serving": (
        ("data", "errors", "files", "inference", "json_files", "model"),
        ("fastapi", "prompt_toolkit", "pydantic", "rich", "starlette", "uvicorn"),
    ),
    "surgery": (
        ("data", "errors", "files", "json_files", "locks", "model", "terminal"),
        ("numpy", "rich", "safetensors", "sentencepiece", "tokenizers", "torch"),
    ),
    "export_check": (("data", "errors", "inference", "model"), ("tokenizers", "torch", "transformers")),
    "model_card": (("config",), ("yaml",)),
    # the other verbs, which join them
    "dialogues": (
        ("command_line", "errors", "files", "interactive", "remote", "terminal", "workers"),
        ("rich",),
    ),
    "preview": (("config", "data", "errors", "files", "prepare", "terminal"), ("numpy", "rich")),
    "export": (
        (
            "command_line", "config", "data", "errors", "export_check", "files", "json_files", "locks", "model",
            "model_card", "prepare", "terminal", "training",
        ),
        ("rich", "torch"),
    ),
    "evaluate": (
        ("command_line", "errors", "evaluation", "files", "json_files", "terminal"),
        ("rich",),
    ),
    "chat": (("command_line", "errors", "inference", "model", "serving", "terminal"), ("rich",)),
    "delta": (("command_line", "errors", "surgery", "terminal"), ()),
    "extend": (("command_line", "errors", "surgery", "terminal"), ()),
    "merge": (("command_line", "errors", "surgery", "terminal"), ()),
    "train": (
        ("config", "errors", "export", "json_files", "model", "ops", "prepare", "terminal", "training"),
        ("rich", "torch"),
    ),
    "plan": (
        ("command_line", "config", "errors", "model", "prepare", "terminal", "training"),
        ("rich",),
    ),
    "verify": (
        ("config", "errors", "kernels", "model", "ops", "prepare", "terminal", "training"),
        ("rich", "torch"),
    ),
    # the doors: `import fastling` and `fastling VERB`, which import nothing else until it is asked for
    "__init__": (("errors", "garbage", "launcher", "model"), ()),
    "__main__": (("errors", "garbage"), ()),
}  # fmt: skip
# Within data, tensors begin with batches; what comes before runs in processes without torch.
TORCH_IN_DATA = {"fastling/data/batches.py"}

LONGEST_FILE = 380
LONGEST_FUNCTION = 60
NEVER_IMPORTED = {
    # what runs code when it loads
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve",
    # the network, unless asked for
    "requests", "urllib", "http", "httpx", "socket", "huggingface_hub",
}  # fmt: skip

SOURCES = sorted(
    path
    for folder in ("fastling", "kernels")
    for path in (ROOT / folder).rglob("*.py")
    if path.relative_to(ROOT).parts[:2] not in (("fastling", "kernels"), ("fastling", "configs"))  # links
)
OURS = [
    path
    for folder in ("fastling", "kernels", "benchmarks", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def every(paths):
    return pytest.mark.parametrize("path", paths, ids=name_of)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports_of(path: Path) -> list[str]:
    """Dotted names of all that a file imports, wherever in it."""
    found = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: a relative import"
            # `from fastling import ops` is the file ops, `from fastling.errors import X` the file errors
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [each if file_of(each) else node.module for each in modules]
    return found


def file_of(module: str) -> Path | None:
    """The file of a module of ours."""
    base = ROOT.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def layer_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] == "kernels" else parts[1]


# Imports --------------------------------------------------------------------------------------------


def test_every_file_lies_in_a_layer_and_every_layer_has_files():
    assert {layer_of(path) for path in SOURCES} - {"demo", "configs"} == LAYERS.keys()


@every(SOURCES)
def test_a_file_imports_only_what_its_layer_may(path):
    layer = layer_of(path)
    inside, outside = LAYERS[layer]
    for module in imports_of(path):
        root, _, rest = module.partition(".")
        if root == "fastling":
            assert not rest or rest.split(".")[0] in (*inside, layer), module
        else:
            assert root in sys.stdlib_module_names or root in outside, module
            if layer == "data" and root == "torch":
                assert name_of(path) in TORCH_IN_DATA
                assert not module.startswith("torch.distributed")


def test_layers_stand_below_what_they_import():
    names = list(LAYERS)
    for name, (inside, _) in LAYERS.items():
        assert all(names.index(each) < names.index(name) for each in inside), name


def test_no_file_imports_itself_by_way_of_others():
    graph = {
        name_of(path): {name_of(found) for module in imports_of(path) if (found := file_of(module))}
        for path in SOURCES
        # imported with everything, and importing nothing until it is asked
        if path.name != "__init__.py"
    }
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.slow
def test_nothing_says_import_kernels():
    """The name belongs to a package of Hugging Face; ours is fastling.kernels."""
    for path in OURS:
        assert not any(module.partition(".")[0] == "kernels" for module in imports_of(path)), name_of(path)


def test_kernels_and_configs_are_links_and_kernels_is_no_package_of_its_own():
    assert not (ROOT / "kernels/__init__.py").exists()
    for name in ("kernels", "configs"):
        link = ROOT / "fastling" / name
        assert os.readlink(link) == f"../{name}"
        assert link.resolve() == ROOT / name
    from fastling.kernels import rms_norm

    assert Path(rms_norm.__file__).resolve() == ROOT / "kernels/rms_norm.py"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []], ids=str)
def test_the_door_opens_without_torch(arguments):
    """`fastling --help` answers at once: what takes seconds to import is imported by the verbs."""
    code = (
        "import sys, fastling, fastling.__main__ as door\n"
        f"door.dispatch({arguments})\n"
        "heavy = {'torch', 'numpy', 'pyarrow', 'tokenizers', 'pydantic', 'rich', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# Size -----------------------------------------------------------------------------------------------


@every(SOURCES)
def test_files_and_functions_can_be_read_in_one_sitting(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST_FILE
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, f"{node.name}, line {node.lineno}"


@every(SOURCES)
def test_every_file_opens_with_what_it_does(path):
    assert ast.get_docstring(tree_of(path))


# Safety (P13) ---------------------------------------------------------------------------------------


@every(SOURCES)
def test_nothing_unsafe_is_loaded(path):
    """No pickle, no code from data, no network: safetensors, and torch.load with weights_only=True alone."""
    roots = {module.partition(".")[0] for module in imports_of(path)}
    assert not roots & NEVER_IMPORTED
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.Call):
            continue
        called, keywords = (
            ast.unparse(node.func),
            {item.arg: ast.unparse(item.value) for item in node.keywords},
        )
        where = f"line {node.lineno}: {called}"
        assert called not in ("eval", "exec", "compile", "__import__", "os.system", "yaml.load"), where
        assert "trust_remote_code" not in keywords, where
        assert keywords.get("shell", "False") == "False", where
        if called in ("torch.load", "numpy.load"):
            safe = {"torch.load": "weights_only", "numpy.load": "allow_pickle"}[called]
            assert keywords.get(safe) == str(called == "torch.load"), where


def test_templates_are_rendered_in_the_sandbox_only():
    for path in SOURCES:
        jinja = [module for module in imports_of(path) if module.startswith("jinja2")]
        assert set(jinja) <= {"jinja2.sandbox"}, name_of(path)


# Packaging ------------------------------------------------------------------------------------------


def setup_arguments() -> dict[str, ast.expr]:
    calls = [node for node in ast.walk(tree_of(ROOT / "setup.py")) if isinstance(node, ast.Call)]
    (call,) = [node for node in calls if ast.unparse(node.func) == "setup"]
    return {item.arg: item.value for item in call.keywords}


def folders_of_the_package() -> list[Path]:
    """Every folder of fastling/, the links among them."""
    found = [Path(folder) for folder, _, _ in os.walk(ROOT / "fastling", followlinks=True)]
    return [folder for folder in found if folder.name != "__pycache__"]


def test_setup_names_every_package():
    """find_packages would miss the links."""
    named = set(ast.literal_eval(setup_arguments()["packages"]))
    assert named == {".".join(folder.relative_to(ROOT).parts) for folder in folders_of_the_package()}


def test_setup_names_every_file_that_is_not_code():
    patterns = ast.literal_eval(setup_arguments()["package_data"])
    for folder in folders_of_the_package():
        package = ".".join(folder.relative_to(ROOT).parts)
        for path in folder.iterdir():
            if path.is_file() and path.suffix != ".py":
                assert any(fnmatch(path.name, pattern) for pattern in patterns.get(package, ())), path


def test_every_package_that_is_needed_is_declared():
    """What a file imports at its top must come with `pip install fastling`."""
    declared = {
        requirement.partition("[")[0]
        for requirement in ast.literal_eval(setup_arguments()["install_requires"])
    }
    declared = {name.split(">")[0].split("=")[0] for name in declared}
    names = {"yaml": "pyyaml"}
    needed = set()
    for path in SOURCES:
        for node in tree_of(path).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = (
                    [node.module] if isinstance(node, ast.ImportFrom) else [item.name for item in node.names]
                )
                needed |= {module.partition(".")[0] for module in modules}
    # triton comes with torch; the others by extras, whose absence the verbs that need them tell
    extras = {"fastapi", "langdetect", "openai", "sacrebleu", "starlette", "uvicorn"}
    needed -= sys.stdlib_module_names | extras | {"fastling", "triton"}
    assert {names.get(name, name) for name in needed} <= declared


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="setuptools is not installed")
def test_a_wheel_holds_the_kernels_inside_fastling(tmp_path):
    """A top-level `kernels` would overwrite Hugging Face's, and be deleted with it."""
    import shutil
    import zipfile

    source = tmp_path / "source"
    for name in ("fastling", "kernels", "configs"):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    arguments = ("--no-deps", "--no-build-isolation", "--no-index", "-w", tmp_path, source)
    built = run_python("pip", "wheel", *arguments)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0].partition("-")[0] for name in held} == {"fastling"}
    for folder in folders_of_the_package():
        for path in folder.iterdir():
            if path.is_file():
                assert str(path.relative_to(ROOT)) in held
    subprocess.run([sys.executable, "-m", "zipfile", "-e", wheel, tmp_path / "installed"], check=True)
    code = "import fastling.kernels.rms_norm, fastling.config as c; print(c.DEMO_CONFIG.is_file())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert shown.stdout == "True\n"
