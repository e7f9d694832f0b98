"""The rules of the house, each a function from a source file to what is wrong with it."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

SRC = Path(__file__).parent.parent / "src"
PACKAGE = "gossamer"

# Data walks down this list: a module imports from its own entry and from the lines above, never from below,
# and two entries of one line do not know each other. The longest entry that fits decides, so a torch-free
# leaf (a configuration, the tokenizer) may stand above the package it belongs to.
STREET = (
    ("atomic", "machine", "measure", "tokenizer"),
    ("patterns",),
    ("selectors",),
    ("plan",),
    ("reference", "kernels"),
    ("ops",),
    ("repeats", "inputs"),
    ("attention", "runs", "block_sparse"),
    ("hashed", "indexed"),
    ("parallel",),
    ("config",),
    ("nn",),
    ("models",),
    ("training.config", "generation_config"),
    ("training", "generation"),
    ("integrations",),
    ("report", "bench", "doctor", "convert"),
    ("cli",),
    ("",),  # the package itself: the public names and nothing else
)
WITHOUT_TORCH = (
    "patterns",
    "config",
    "training.config",
    "training.preparation",
    "training.tokenising",
    "generation_config",
    "tokenizer",
)

PROMISED = {
    "by the design document": (
        *("SparseAttentionConfig", "SparseAttention", "compute_sparsity", "stable_softmax"),
        *("compute_dynamic_window_size", "get_recommended_config", "monitor_performance"),
        *("GPT2Config", "GPT2", "TransformerBlock", "CausalSelfAttention"),
    ),
    "by the library": (
        *("attend", "explain", "Unsupported", "PerHead"),
        *("Causal", "Window", "Dilated", "Strided", "Sinks", "Tokens", "Blocks", "RandomBlocks", "Documents"),
    ),
}

ASKED_BY_OTHERS = ("get_mask_sizes", "get_seq_length", "get_max_length", "get_max_cache_shape")
"""Names that another library calls: here, a cache's layer in transformers."""

FILE_LINES, KERNEL_FILE_LINES = 400, 600
FUNCTION_LINES, JITTED_LINES = 60, 150
PARAMETERS, POSITIONAL = 8, 6
WIDE = {  # functions that may take more, and why
    "attention.attend": "softmax attention has that many independent settings, all of them keyword-only",
    "attention.explain": "the same settings",
    "block_sparse.attend_blocks": "a layout is a tensor and the edge of a block; the rest is as attend has it",
    "indexed.attend.attend_indexed": "a choice of keys; the rest is as attend has it",
    "indexed.top_keys.top_keys": "what a score is, who is visible and by whom it runs are independent, keyword-only",
    "parallel.attend.attend_shards": "who holds what; the rest is as attend has it, keyword-only",
    "parallel.by_heads.attend_by_heads": "the same",
    "integrations.huggingface.attention._attention": "the arguments that transformers calls attention with",
    "generation.generate": "the settings of sampling under the names that users of other libraries know",
}
UNPICKLERS = ("pickle", "cloudpickle", "dill", "joblib", "shelve")
EVALUATORS = ("eval", "exec", "torch.load", "torch.save")


@dataclass(frozen=True)
class Source:
    """One file of the package: its dotted name, whether it is a package, and its text."""

    name: str
    text: str
    is_package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def functions(self) -> list[ast.FunctionDef]:
        return [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)]

    @cached_property
    def public(self) -> list[tuple[str, ast.FunctionDef | ast.ClassDef]]:
        """(qualified name, node) of public functions and classes, and of these classes' public methods."""
        return list(_public(self.tree.body, ""))

    @cached_property
    def in_kernels(self) -> bool:
        return self.name.startswith(f"{PACKAGE}.kernels.")

    def absolute(self, node: ast.ImportFrom) -> str:
        """The dotted name that a `from ... import` reads from."""
        parts = self.name.split(".")
        here = parts[: len(parts) - node.level + self.is_package] if node.level else []
        return ".".join([*here, *filter(None, [node.module])])

    @cached_property
    def imports(self) -> list[tuple[int, str]]:
        """(line, dotted name) of each thing imported, wherever in the file the import stands."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [(node.lineno, f"{self.absolute(node)}.{alias.name}") for alias in node.names]
            elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
                found += [(node.lineno, arg.value) for arg in node.args if isinstance(arg, ast.Constant)]
        return found

    @cached_property
    def own_imports(self) -> list[tuple[int, str]]:
        """The same for this package alone, without its name: `(3, "config.SparseAttentionConfig")`."""
        return [(line, name.removeprefix(f"{PACKAGE}.")) for line, name in self.imports if _is_ours(name)]


def _is_ours(name: str) -> bool:
    return name == PACKAGE or name.startswith(f"{PACKAGE}.")


def _public(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not _is_private(node):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, f"{node.name}.")


def _is_private(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Named so, or only the overload of something else."""
    return node.name.startswith("_") or "overload" in map(ast.unparse, node.decorator_list)


def _place(name: str) -> tuple[int, str]:
    """(line of the street, entry) that a dotted name inside the package belongs to."""
    entries = [(line, entry) for line, row in enumerate(STREET) for entry in row if entry]
    matching = [(line, entry) for line, entry in entries if name == entry or name.startswith(f"{entry}.")]
    return max(matching, key=lambda place: len(place[1]), default=(len(STREET) - 1, ""))


def arguments(node: ast.FunctionDef) -> list[str]:
    """Names of the parameters besides self and cls."""
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [argument.arg for argument in every if argument.arg not in ("self", "cls", "mcs")]


def arrows_run_one_way(source: Source) -> Iterator[str]:
    """A module imports from what stands before it on the street."""
    here = _place(source.name.removeprefix(PACKAGE).lstrip("."))
    for line, name in source.own_imports:
        there = _place(name)
        if there[0] > here[0] or (there[0] == here[0] and there[1] != here[1]):
            yield f"{line}: imports {name}, which does not stand before {here[1] or PACKAGE}"


def kernels_stand_alone(source: Source) -> Iterator[str]:
    """A kernel sees plans: no pattern, and no other backend."""
    if not source.in_kernels:
        return
    others = _backends() - {source.name.split(".")[2]}
    for line, name in source.own_imports:
        stage, _, rest = name.partition(".")
        if stage == "patterns" or (stage == "kernels" and rest.split(".")[0] in others):
            yield f"{line}: a kernel imports {name}"


def _backends() -> set[str]:
    """Modules and folders of kernels/ that are a way to compute; the rest is what they share."""
    listed = read(SRC / PACKAGE / "kernels" / "__init__.py").own_imports
    return {name.split(".")[1] for _, name in listed if name.startswith("kernels.") and name.split(".")[-1].isupper()}


def the_oracle_knows_patterns_only(source: Source) -> Iterator[str]:
    """The reference shares no code with what it judges."""
    if source.name == f"{PACKAGE}.reference":
        for line, name in source.own_imports:
            if _place(name)[1] not in ("patterns",):
                yield f"{line}: the oracle imports {name}"


def signatures_are_closed(source: Source) -> Iterator[str]:
    """A public function takes no **kwargs."""
    for name, node in source.public:
        if isinstance(node, ast.FunctionDef) and node.args.kwarg:
            yield f"{node.lineno}: {name} takes **{node.args.kwarg.arg}"


def parameters_are_few(source: Source) -> Iterator[str]:
    """At most 8 parameters; in a public function at most 6 by position."""
    public = {id(node) for _, node in source.public}
    for node in source.functions:
        names = arguments(node)
        positional = len(names) - len(node.args.kwonlyargs)
        wide = len(names) > PARAMETERS and f"{source.name}.{node.name}".partition(".")[2] not in WIDE
        if not _is_called_by_machines(node) and (wide or (id(node) in public and positional > POSITIONAL)):
            yield f"{node.lineno}: {node.name} takes {len(names)} parameters, {positional} by position"


def _is_called_by_machines(node: ast.FunctionDef) -> bool:
    """A kernel, or an operator, whose flat list of arguments only a compiler or the dispatcher fills in."""
    decorators = map(ast.unparse, node.decorator_list)
    return any(word in decorator for decorator in decorators for word in ("jit", "library.", "register_flop"))


def functions_are_short(source: Source) -> Iterator[str]:
    """At most 60 lines a function, 150 a jitted kernel."""
    for node in source.functions:
        lines = node.end_lineno - node.lineno + 1
        if lines > (JITTED_LINES if _is_jitted(node) else FUNCTION_LINES):
            yield f"{node.lineno}: {node.name} has {lines} lines"


def _is_jitted(node: ast.FunctionDef) -> bool:
    return any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)


def files_are_short(source: Source) -> Iterator[str]:
    """At most 400 lines a file, 600 a kernel's."""
    lines = source.text.count("\n")
    if lines > (KERNEL_FILE_LINES if source.in_kernels else FILE_LINES):
        yield f"{lines} lines"


def the_environment_is_not_asked(source: Source) -> Iterator[str]:
    """No switch hides in an environment variable."""
    for line, name in source.imports:
        if name in ("os.environ", "os.getenv"):
            yield f"{line}: imports {name}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.environ", "os.getenv"):
            yield f"{node.lineno}: reads {ast.unparse(node)}"


def nothing_is_unpickled_or_evaluated(source: Source) -> Iterator[str]:
    """Files are data: no pickle, no torch.load, no eval."""
    for line, name in source.imports:
        if name.split(".")[0] in UNPICKLERS:
            yield f"{line}: imports {name}"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in EVALUATORS:
            yield f"{node.lineno}: calls {ast.unparse(node.func)}"


def nothing_is_left_for_later(source: Source) -> Iterator[str]:
    """No stub and no note to self."""
    for number, line in enumerate(source.text.splitlines(), 1):
        found = re.search(r"\b(TODO|FIXME|XXX|NotImplementedError)\b", line)
        if found:
            yield f"{number}: {found[0]}"


def names_say_what_they_are(source: Source) -> Iterator[str]:
    """No drawer for odds and ends, no getter, no second version."""
    drawers = {"utils", "util", "common", "helpers", "misc"} & set(source.name.split("."))
    if drawers:
        yield f"the module is called {drawers.pop()}"
    for node in ast.walk(source.tree):
        name = getattr(node, "name", "") if isinstance(node, ast.FunctionDef | ast.ClassDef) else ""
        if re.search(r"^_?get_|Manager|Helper|_v\d$|V\d$", name) and name not in (
            *PROMISED["by the design document"],
            *ASKED_BY_OTHERS,
        ):
            yield f"{node.lineno}: {name}"


def public_things_are_described(source: Source) -> Iterator[str]:
    """Every public function and class has a docstring."""
    for name, node in source.public:
        if "." not in name and not ast.get_docstring(node):
            yield f"{node.lineno}: {name} has no docstring"


Rule = Callable[[Source], Iterator[str]]
RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        arrows_run_one_way,
        kernels_stand_alone,
        the_oracle_knows_patterns_only,
        signatures_are_closed,
        parameters_are_few,
        functions_are_short,
        files_are_short,
        the_environment_is_not_asked,
        nothing_is_unpickled_or_evaluated,
        nothing_is_left_for_later,
        names_say_what_they_are,
        public_things_are_described,
    )
}


def read(path: Path) -> Source:
    """The file as a source of the package."""
    parts = path.relative_to(SRC).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    return Source(".".join(parts[: len(parts) - is_package]), path.read_text(), is_package)
