r"""One spelling for what LaTeX and Unicode spell in many ways, so that texts of equal answers become equal texts.

Only spelling: nothing here changes a value, drops a unit or a bracket. Every pattern is linear in the length of its text.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑‒﹣－", "-"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\t\r\n\x0b\x0c", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
        **dict.fromkeys("×⨯·⋅∙∗", "*"),
        **dict.fromkeys("’‘′", "'"),
        **{index: f"_{digit}" for index, digit in zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True)},
        **{"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"},
        **{"÷": "/", "⁄": "/", "∕": "/", "％": "%", "…": r"\dots ", "°": r"^\circ ", "º": r"^\circ ", "√": r"\sqrt "},
        **{"π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "μ": r"\mu "},
        **{"σ": r"\sigma ", "φ": r"\phi ", "ϕ": r"\phi ", "ω": r"\omega ", "ρ": r"\rho ", "τ": r"\tau ", "Δ": r"\Delta "},
        **{"∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm "},
        **{"≈": r"\approx ", "⟨": "(", "⟩": ")", "（": "(", "）": ")", "，": ",", "：": ":", "∅": r"\emptyset ", "∖": r"\setminus "},
        **{"ℝ": r"\mathbb{R}", "Ω": r"\Omega ", "µ": r"\mu ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil "},
    }
)
"""Characters that are written for a command or for another character."""

_COMMANDS = {
    **dict.fromkeys(["left", "right", "displaystyle", "textstyle", "scriptstyle", "limits", "nolimits", "nonumber", "mathstrut"], ""),
    **dict.fromkeys([size + side for size in ("big", "Big", "bigg", "Bigg") for side in ("", "l", "r", "m")], ""),
    **dict.fromkeys(["quad", "qquad", "thinspace", "medspace", "thickspace", "enspace", "nobreakspace"], " "),
    **dict.fromkeys(
        ["textbf", "textit", "textrm", "textsf", "texttt", "textnormal", "mathrm", "mathtt", "mbox", "hbox", "emph", "rm"], r"\text"
    ),
    **dict.fromkeys(["dfrac", "tfrac", "cfrac"], r"\frac"),
    **dict.fromkeys(["leq", "leqslant", "leqq"], r"\le"),
    **dict.fromkeys(["geq", "geqslant", "geqq"], r"\ge"),
    **dict.fromkeys(["cdot", "times", "ast"], "*"),
    **dict.fromkeys(["lvert", "rvert", "vert", "mid"], "|"),
    **dict.fromkeys(["ldots", "cdots", "dotsc", "dotsb"], r"\dots"),
    **{"neq": r"\ne", "lt": "<", "gt": ">", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "langle": "(", "rangle": ")"},
    **{"div": "/", "varphi": r"\phi", "varepsilon": r"\epsilon", "vartheta": r"\theta", "degree": r"^\circ", "degrees": r"^\circ"},
    **{"lor": r"\text{ or }", "land": r"\text{ and }", "varnothing": r"\emptyset", "colon": ":", "lparen": "(", "rparen": ")"},
    **{"implies": r"\Rightarrow", "mathop": "", "ensuremath": "", "backslash": r"\setminus", "smallsetminus": r"\setminus"},
    **{"R": r"\mathbb{R}", "reals": r"\mathbb{R}", "Reals": r"\mathbb{R}", "pounds": "£", "textdollar": "", "euro": "€", "texteuro": "€"},
    **dict.fromkeys(["simeq", "sim", "doteq", "cong", "thickapprox"], r"\approx"),
}
"""Commands that are another spelling of something, or only about looks."""

GREEK = "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|upsilon|phi|chi|psi|omega"
"""Small letters that are variables, as a pattern; pi is a number."""

_COMMAND = re.compile(r"\\([A-Za-z]+)")
_SPACE = re.compile(r"(?<!\\)\\[,;:> ]|~")
_DOUBLE_BACKSLASH = re.compile(r"\\\\(?=[A-Za-z{}])")
_ROW_SPACE = re.compile(r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]")
_STYLE = re.compile(
    r"\\(?:mathrm(?=\{[eid]\})|mathbf|boldsymbol|bm|mathit|mathsf|mathnormal|underline|bf|it|(?:text)?color\s*\{\w+\})\s*(?:\{([^{}]*)\}|(?![A-Za-z]))"
)
_NO_BRACKET = re.compile(r"\\(?:left|right)\s*\.(?!\d)")
_NEGATIVE_SPACE = re.compile(r"\s*\\!\s*|\\[hv]?phantom\s*\{[^{}]*\}")
_MATH_SIGN = re.compile(r"\\?\$|(?<!\\)\\[()\[\]]")
_FUNCTION_NAME = re.compile(r"\\operatorname\*?\s*\{\s*([A-Za-z]+)\s*\}")
_MATRIX = re.compile(r"\\(begin|end)\s*\{\s*(?:[pb]?matrix|array|smallmatrix)\s*\}(?:\s*\{[clr| ]*\})?")
_ARGUMENT = r"\s*(?:\{([^{}]*)\}|(\d|[A-Za-z](?![A-Za-z])|\\[A-Za-z]+))"
_DIGIT_ARGUMENTS = re.compile(rf"\\(frac|binom){_ARGUMENT}{_ARGUMENT}")
_SUPERSCRIPTS = re.compile("[⁻⁺⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_RAISED = str.maketrans("⁻⁺⁰¹²³⁴⁵⁶⁷⁸⁹", "-+0123456789")
_ROOT_SIGN = re.compile(r"√ ?(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+|[A-Za-z]))")
_ROOT_ARGUMENT = re.compile(r"\\sqrt\s*(\d|[A-Za-z](?![A-Za-z]))")
_SHORT_GROUP = re.compile(r"([\^_])\s*\{\s*([0-9A-Za-z])\s*\}(?!\d)")  # 2^{6}3 is not 2^63
_RAISED_FIRST = re.compile(
    rf"(?<![A-Za-z\\])([A-Za-z]|\\(?:{GREEK}))"
    r" ?\^ ?(\{[^{}]*\}|\w) ?_ ?(\{[^{}]*\}|\w)"
)  # v^2_0 is v_0^2; the limits of an integral stay
_ESCAPED = re.compile(r"(?<!\\)\\\\begin")  # text that was escaped twice
_PRIMES = re.compile(r"\^\s*\{\s*((?:\\prime\s*)+)\}|\^\s*\\prime(?![A-Za-z])")
_SIGN_ABOVE = re.compile(r"\^\s*\{\s*([-+*])\s*\}")
_BLACKBOARD = re.compile(r"\\mathbb ?(?:\{ ?([A-Z]) ?\}|([A-Z]))")
_OTHER_DIGIT = re.compile(r"[^\x00-\x7f]")
_CIRCLE = re.compile(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ(?![A-Za-z])")
_TEXT_WORD = re.compile(r"\\text\s*\{\s*([^{}]*?)\s*\}", re.DOTALL)
_EMPTY_SET = re.compile(r"\\\{ ?\\\}")
_PERCENT_WORD = re.compile(r"\\?%|\b(?:per\s?cent|pct|percentage(?! point))\b|\\text\s*\{\s*(?:\\?%|per\s?cent)\s*\}", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<=\d) ?\{ ?, ?\} ?(?=\d)|\{,\}")
_GAP = re.compile(r"\s+")
_INNER_GAP = re.compile(r"(?<![0-9.])\s+|\s+(?![0-9.])")


@lru_cache(maxsize=10_000)
def clean(text: str) -> str:
    r"""Return the text in one spelling: \frac{a}{b}, \sqrt{a}, x^2, x_1, *, \le, \text{..} for words, ^\circ, %, single spaces."""
    if not text.isascii():
        text = _ROOT_SIGN.sub(lambda root: rf"\sqrt{{{root[1] or root[2] or root[3]}}}", text)
        text = _SUPERSCRIPTS.sub(lambda raised: f"^{{{raised[0].translate(_RAISED)}}}", text).translate(_CHARACTERS)
        text = _OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0], digit[0])), text)
    text = _GAP.sub(" ", text)
    if "\\" in text or "$" in text or "~" in text:
        if _ESCAPED.search(text):
            text = text.replace("\\\\", "\\")
        elif "\\begin" not in text:
            text = _DOUBLE_BACKSLASH.sub(r"\\", text)
        text = _STYLE.sub(r"\1", _ROW_SPACE.sub(r"\\\\", _NO_BRACKET.sub("", _NEGATIVE_SPACE.sub("", text))))
        text = _FUNCTION_NAME.sub(r"\\\1 ", text)
        text = _MATRIX.sub(r"\\\1{matrix}", text)
        text = _COMMAND.sub(_spelled, text)
        text = _SPACE.sub(" ", _MATH_SIGN.sub("", text))
        text = _DIGIT_ARGUMENTS.sub(_braced, text)
        text = _ROOT_ARGUMENT.sub(r"\\sqrt{\1}", text)
        text = text.replace("\\text{}", "")
        text = _CIRCLE.sub(r"^\\circ ", text)
        text = _PRIMES.sub(lambda primes: "'" * max(1, primes[0].count("prime")), text)
        text = _SIGN_ABOVE.sub(r"^\1", text)
        text = _BLACKBOARD.sub(r"\\mathbb{\1\2}", text)
    for written, spelled in (("...", r"\dots "), ("<=", r"\le "), (">=", r"\ge "), ("!=", r"\ne ")):
        text = text.replace(written, spelled)
    text = _EMPTY_SET.sub(r"\\emptyset", _PERCENT_WORD.sub("%", text))
    if "^" in text and "_" in text:
        text = _RAISED_FIRST.sub(r"\1_\3^\2", text)
    text = _THOUSANDS.sub(",", _SHORT_GROUP.sub(r"\1\2", text))
    return _GAP.sub(" ", text).strip()


def squeeze(text: str) -> str:
    """Return a cleaned text without its spaces, but for those between digits."""
    return _INNER_GAP.sub("", text)


def words(text: str) -> str:
    r"""Return a cleaned text with the content of \text{..} in place of it, lower case: how answers that are words are compared."""
    text = _TEXT_WORD.sub(r" \1 ", text)
    return _GAP.sub(" ", re.sub(r"[{}\"']|\.(?!\d)", "", text)).strip(" ,;:!?").casefold()


def _spelled(match: re.Match[str]) -> str:
    name = match[1]
    spelling = _COMMANDS.get(name)
    if spelling is None:
        return " " + name.removeprefix("q").removeprefix("quad") if name.startswith(("quad", "qquad")) else match[0]
    return spelling


def _braced(match: re.Match[str]) -> str:
    name, *arguments = match.groups()
    first, second = [argument.strip() for argument in arguments if argument is not None]
    return rf"\{name}{{{first}}}{{{second}}}"
