"""Shows the library's own source in a chapter, so that the reader reads the code that runs and is tested."""

import ast
import inspect
import textwrap
from pathlib import Path
from types import FunctionType, ModuleType

PACKAGE = Path(__file__).parents[1]


class Source:
    """Source text that a notebook shows highlighted, under the name of its file."""

    def __init__(self, file: str, text: str):
        self.file, self.text = file, text

    def __repr__(self) -> str:
        return f"# {self.file}\n{self.text}"

    def _repr_markdown_(self) -> str:
        return f"`{self.file}`\n```python\n{self.text}\n```"


def show(thing: FunctionType | type | ModuleType, docstring: bool = True) -> Source:
    """Return the source of a function, method, class or module of the library, for a notebook to show.

    Without `docstring` its first docstring is left out. Raises ValueError for what the library does not contain.
    """
    try:
        path = Path(inspect.getsourcefile(inspect.unwrap(thing)))
    except TypeError:
        raise ValueError(f"{thing!r} has no source: show a function, method, class or module of minids.") from None
    if PACKAGE not in path.parents:
        raise ValueError(f"{thing!r} is in {path.name}, which is not a file of minids: show it with inspect.getsource.")
    text = textwrap.dedent(inspect.getsource(inspect.unwrap(thing))).strip()
    return Source(f"minids/{path.relative_to(PACKAGE).as_posix()}", text if docstring else _without_docstring(text))


def _without_docstring(text: str) -> str:
    tree = ast.parse(text)
    body = tree.body if not isinstance(tree.body[0], ast.FunctionDef | ast.ClassDef) else tree.body[0].body
    if not isinstance(body[0], ast.Expr) or not isinstance(getattr(body[0].value, "value", None), str):
        return text
    lines = text.splitlines()
    return "\n".join(lines[: body[0].lineno - 1] + lines[body[0].end_lineno :])
