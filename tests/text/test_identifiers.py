"""Names in code against Python's own tokenizer, and the rule that guesses them against guesses made by hand."""

import io
import keyword
import tokenize

from minids.text.identifiers import Followers, names

CODE = """
class größe_2(Base):  # a comment with words, "and" quotes
    x = r'raw \\'string' + f"{hidden}" + 'it is' ; y1 = 1e5 + 0xFF + 1_000j

    def __init__(self, _args=None, *rest):
        self._args, self.args2 = _args, not rest
        return self.args2[y1](lambda a_b: a_b if None else x)
"""


def test_names_are_those_of_python_s_tokenizer():
    tokens = tokenize.generate_tokens(io.StringIO(CODE).readline)
    expected = [t.string for t in tokens if t.type == tokenize.NAME and not keyword.iskeyword(t.string)]
    if "hidden" in expected:  # Python 3.12 and newer look into f-strings
        expected.remove("hidden")
    found = names(CODE.encode())
    assert [name.text.decode() for name in found] == expected
    for name in found:
        assert CODE.encode()[name.start :].startswith(name.text)
        assert CODE.encode()[: name.start].endswith(name.before)


def test_the_rule_writes_what_followed_above_or_else_in_training_or_else_the_commonest():
    followers = Followers([b"for i in a: b.c", b"b.d; b.d; for k in b", b"import b"])
    text = b"b.x; b.y; b.x; for j in z: import q; for i in z"
    guesses = dict(zip([(name.start, name.text) for name in names(text)], followers.guesses(names(text)), strict=True))
    assert [guess for (_, name), guess in guesses.items() if name in (b"x", b"y")] == [b"d", b"x", b"y"]
    assert [guess for (_, name), guess in guesses.items() if name in (b"j", b"i")] == [b"i", b"j"], "i before k"
    assert [guess for (_, name), guess in guesses.items() if name == b"q"] == [b"b"]
    assert list(Followers([b"b b c"]).guesses(names(b"q"))) == [b"b"]
    assert list(Followers([]).guesses(names(b"q"))) == [b""], "of no code there is no guess"
