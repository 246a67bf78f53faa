"""Units of measure, money and time: their spellings, and one name for each."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

from aer_train.verify.counted import SMALL, singulars

_SYMBOLS = """
m cm mm km nm dm µm g kg mg µg s ms µs h N kN J kJ MJ mJ W kW MW mW GW V mV kV A mA µA Pa kPa MPa GPa hPa Hz kHz MHz GHz K L mL µL mol
mmol eV keV MeV GeV T mT Wb F µF nF pF H mH Ω kΩ MΩ C µC nC rad dB bit byte kB MB GB TB cal kcal in ft yd mi lb oz gal mph kph kmh rpm atm
bar Torr mmHg acre ha au pc kpc Mpc arcsec arcmin ly Å M u Bq Gy Sv cd lm lx sr deg degC degF degK am pm
"""
"""Written in this case, and alone of their spellings: mW is not MW."""

_WORDS = {
    "m": "meter metre", "cm": "centimeter centimetre", "mm": "millimeter millimetre", "km": "kilometer kilometre kms",
    "nm": "nanometer nanometre", "µm": "micrometer micrometre micron", "dm": "decimeter decimetre", "in": "inch", "ft": "foot feet",
    "yd": "yard yds", "mi": "mile", "g": "gram gramme gm", "kg": "kilogram kilogramme kilo kgs", "mg": "milligram", "lb": "pound lbs",
    "oz": "ounce", "ton": "ton tonne", "L": "liter litre l", "mL": "milliliter millilitre ml", "gal": "gallon", "quart": "quart qt",
    "tablespoon": "tablespoon tbsp", "teaspoon": "teaspoon tsp", "s": "second sec secs", "ms": "millisecond", "minute": "minute min mins",
    "h": "hour hr hrs", "day": "day", "week": "week wk wks", "month": "month", "year": "year yr yrs", "rad": "radian",
    "deg": "degree degs", "degC": "celsius centigrade", "degF": "fahrenheit", "K": "kelvin kelvins", "dollar": "dollar buck usd US",
    "cent": "cent ¢", "euro": "euro eur €", "pound sterling": "£ gbp", "yen": "yen ¥ jpy", "rupee": "rupee ₹ inr Rs",
    "yuan": "yuan rmb cny", "peso": "peso", "N": "newton", "J": "joule", "kJ": "kilojoule", "W": "watt", "kW": "kilowatt", "V": "volt",
    "A": "amp ampere", "Pa": "pascal", "Hz": "hertz", "Ω": "ohm", "mol": "mole mols", "eV": "electronvolt", "T": "tesla", "cal": "calorie",
    "kcal": "kilocalorie", "acre": "acre", "ha": "hectare", "erg": "erg", "AU": "AU", "ly": "lightyear", "byte": "byte", "bit": "bit",
    "KB": "kilobyte", "MB": "megabyte", "GB": "gigabyte", "am": "am AM", "pm": "pm PM", "rpm": "revolution", "unit": "unit", "": "point",
}  # fmt: skip
_NAMES = {name: name for name in _SYMBOLS.split()} | {word: name for name, words in _WORDS.items() for word in words.split()}
COMPOSED = {"mph": ["mi", "/", "h"], "kph": ["km", "/", "h"], "kmh": ["km", "/", "h"]}
CURRENCY_SIGNS = set("€£¥₹")
SCALES = {
    "dozen": Fraction(12), "dozens": Fraction(12), "hundred": Fraction(10**2), "thousand": Fraction(10**3), "million": Fraction(10**6),
    "billion": Fraction(10**9), "trillion": Fraction(10**12),
}  # fmt: skip
"""Words that multiply the number before them."""

FRACTIONS = r"(?:third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth|millionth)s?"
"""Words that divide it, as a pattern; half and quarter are not among them."""

POWERS_BEFORE = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
POWERS_BEHIND = {"squared": 2, "cubed": 3}


@lru_cache(maxsize=4_000)
def measure(word: str) -> str | None:
    """The one name of a measure, in any of its spellings; None for any other word."""
    if word in _NAMES:
        return _NAMES[word] or None
    lower = word.lower()
    if len(word) == 1 or (len(word) == 2 and word not in (lower, lower.upper())):
        return None
    return next((_NAMES[name] for name in singulars(lower) if _NAMES.get(name) and len(name) > 1), None)


def one_spelling(words: list[str]) -> str:
    """The measures among the words of a unit with their powers, in alphabetical order: m, /, s^2 -> m s^-2."""
    powers: dict[str, int] = {}
    sign, power, last = 1, 1, ""
    words = [part for word in words for part in COMPOSED.get(measure(word) or "", [word])]
    for position, word in enumerate(words):
        after = words[position + 1 : position + 2]
        if word == "in" and after and (after[0] in ("total", "all", "the") or measure(after[0])):
            continue
        name, _, raised = word.partition("^")
        lower = name.lower()
        if word == "/" or (lower in ("a", "an") and position):
            sign = -1
        elif lower in POWERS_BEFORE:
            power = POWERS_BEFORE[lower]
        elif lower in POWERS_BEHIND and last:
            powers[last] *= POWERS_BEHIND[lower]
        elif found := measure(name):
            last = found
            powers[last] = powers.get(last, 0) + sign * power * int(raised or 1)
            sign, power = 1, 1
        elif lower not in SMALL:
            sign, power = 1, 1
    if powers.keys() & {"degC", "degF"}:
        powers.pop("deg", None)  # degrees Celsius
    return " ".join(name if power == 1 else f"{name}^{power}" for name, power in sorted(powers.items()) if name and power)
