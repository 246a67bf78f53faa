r"""Verified rewards.

verifier (what users call) -> exact (the verdict without symbolic mathematics) -> extract (where the answer is; boxes, prose, qualifiers),
                              equality (what is decided exactly; choice, match)
                           -> pool (deadlines) -> worker (a child process) -> symbolic (values; realsets) -> algebra
latex (one spelling), quantity (exact numbers; units), shape (lists, sets, intervals) and brackets serve both comparisons.

The conventions. They are strict on purpose, because a policy finds every leniency.

Where the answer is:

* Thinking is not the answer: what stands in <think>..</think> is not read, and neither is what follows a <think> that never closes, be
  it the prompt's.
* In this order: \boxed{..}; <answer>..</answer>; the last explicit mark, which is "the answer is x" in its forms or #### x, whichever comes
  later; a response that is nothing but an answer; a last sentence that draws a conclusion (Therefore, ...) or is all of the response, with
  one number in it.
* Different boxes are all kept: they must all be right, or be the parts of a gold list. A box that never closes is none. A minus sign right
  before a box belongs to what is in it.
* Words around a number are read (negative 5, 5 percent, 5 million), or known to leave it as it is (18 eggs, an area of 5), or the number is
  not the answer: less than 5, half of 10, 5 squared, perhaps 5, step 5, the number of divisors of 12.

What is a number:

* A percent sign counts: 50% is neither 50 nor 0.5. A decimal is the number that it is: 0.333 is not 1/3; 0.333... and 0.\bar 3 are.
* Units count where both answers name a measure: 5 cm is not 5 m, nor 5 am 5 pm, nor 25^\circ C 25^\circ F, but each is 5. The signs of the
  dollar and of degrees, and what is counted (eggs, students), change nothing. Only words of a closed list are units: 5 tenths and
  5 \text{ wrong} are not 5. In a gold answer all words are units but those that change the number. A dozen is 12.
* A whole number before a proper fraction of digits is a mixed number; any other juxtaposition is a product: 2\binom52 is 20, (2) 3 is 6.
* A number in another base is not the number without its base, nor its value. A base is a number from 2 to 36.
* Exact and rounded (\frac97 \approx 1.29) are one answer in two forms: either may be the gold answer, and the decimal must be the exact
  value, rounded or cut off after its last digit. Where the gold answer has both forms, the exact one is wanted.

What is equal:

* Expressions are equal when their values are: exactly for rational numbers, and to more digits than can hide a difference for others; with
  symbols, at points of many sizes. What is too large to be evaluated is equal to its own text only.
* Symbols are positive, unless an expression is about signs or sizes (|x|, \max, \lfloor x \rfloor); they are whole numbers in factorials
  and binomials, in exponents of negative numbers, and, named like counters (n, k, m), in floors and remainders.
* i is the imaginary unit and e Euler's number; \log is to base 10. Degrees are an angle inside of sin, cos and their kin only. Odd roots of
  negative numbers are real. An integral is compared, not computed; a series is summed when it has no symbols and converges fast.
* An interval is not a set, a list is not a tuple; a list equals a set of the same values, in any order; a list is not its member. Sets of
  real numbers are compared as sets: x \ne 0 is \mathbb{R} \setminus \{0\}.
* x = 5 is 5, and so is a chain that ends in 5; the gold answer's equation must be met by an equation (up to a factor), or by its right-hand
  side when its left-hand side is a name. A chain of a name and values is its last one: x = 5 + 6 = 11 is x = 11. Inequalities are equal up
  to a factor as well: -x > -1 is x < 1. A ratio is compared part by part. An equation in symbols and numbers with 0 on its right is not 0.
* Names count: x > 1, y > 2 is not y > 1, x > 2, and f(x) = 1 is not g(x) = 1; y is another name of f(x). In a list so do the words for
  what is counted: 5 boys and 6 girls are not 6 boys and 5 girls. p=5, q=2; p=7, q=2 is (5,2), (7,2).
* Words are compared without case and article; a choice is its letter, and (C) 42 is either C or 42, as the gold answer asks.
"""

from aer_train.verify.verifier import Pending, Verifier

__all__ = ["Pending", "Verifier"]
