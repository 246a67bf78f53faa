"""Sentences: which words around a number leave it as it is, which are read, and with which the answer is refused."""

from __future__ import annotations

import pytest

from aer_train.verify.extract import extract
from tests.train.grading import outcome

SAID = [
    # (sentence, gold answer): correct
    ("The answer is negative 5.", "-5"), ("The answer is minus 5.", "-5"), ("The answer is negative $5$.", "-5"), ("Therefore the sum is negative 5.", "-5"), ("The answer is 5 million dollars.", "5000000"), ("The answer is 5 dozen.", "60"), ("Therefore, she buys 5 dozens of eggs.", "60"),
    ("The answer is 5 percent.", r"5\%"), ("The answer is that 5 percent remain.", r"5\%"), ("The answer is five.", "5"), ("The answer is 41, it can't be 42.", "41"), ("The answer is $41$, not $42$.", "41"), ("The answer is 41 rather than 42.", "41"), ("The answer is 41 - this is 6^2+5.", "41"), ("The answer is 41 \u2014 not 42.", "41"),
    ("The answer is 18 because 9 * 2 = 18.", "18"), ("The answer is 24 cm, since 2 * 12 = 24.", "24"), ("The answer is $24$ (in cm).", "24"), ("The answer is 7 (since 3 + 4 = 7).", "7"), ("The answer is 5 apples that she bought.", "5"),
    ("The answer is that there is a total of 12.", "12"), ("The answer is that it has an area of 12.", "12"), ("The answer is that Janet makes $18 every day.", "18"), ("The answer is 5 times a day.", "5"), ("The answer is that she needs 5 more apples.", "5"),
    ("The answer is approximately 5.", "5"), ("There is no doubt that the answer is 5.", "5"), ("Answer: Yes, because 5 is odd.", "yes"), ("The answer, then, is 7.", "7"), ("The answer is 3 and 4.", "3, 4"), ("So our answer is $x=3$ and $y=4$.", "x=3, y=4"),
    ("The answer: D, it doesn't make sense for it to be A or B", "D"), ("The answer is (B) because of that.", "B"), ("The correct option is C.", "C"), ("So the best choice is (A), as it fits.", "A"), ("The answer is option B.", "B"),
    ("Therefore, John is 5 years older than Mary.", "5"), ("So the total is $45 + $5 = $50.", "50"), ("So, 3 + 4 = 7.", "7"), ("Therefore, the number of divisors of 12 is 6.", "6"), ("Thus she walks 5km.", "5"), ("The answer is 5:30 PM.", "5:30 PM"),
    ("Thus, the answer is A (Connor).", "Connor"), ("Thus, the answer is Tokyo (D).", "D"), ("The highest value on the x axis is '30'.", "30"),
    ("Therefore, John has 5 more than Mary.", "5"), ("So the largest number that could be chosen is 5.", "5"), ("So the most likely value is 5.", "5"),
    ("The answer is for sure D, it can't be A or B", "D"), ("$y = 8.8 - 2.8 = 6$ So, the pair $(x, y)$ that solves the system is $(7, 6)$.", "(7,6)"),
    ("The answer is Mr. Watson.", "Mr. Watson"), ("The answer is Dr. Smith. He is 5.", "Dr. Smith"), ("The answer is St. Louis.", "St. Louis"), ("The answer is (B) 9:50 A.M.", "9:50 A.M."), ("The answer is Mr. Gupta's class.", "Mr. Gupta's class"),
    # a response that is one sentence
    ("(A) Sri Lanka.", "Sri Lanka"), ("(A) Sri Lanka.", "A"), ("B) turkey sandwiches", "turkey sandwiches"), ("(B) 9:50 A.M.", "B"), ("8,094 - 1,649 = 6,445.", "6,445"),
    (r"We find that $x \lt 3$.", "x<3"), ("The picture that shows it is (C).", "C"), ("60% of the students enrolled in hip-hop dance.", r"60\%"), ("5 cars drove through the traffic jam.", "5"),
    ("We add them. Therefore, there are 12 distinct sequences. I hope it is correct.", "12"),
]  # fmt: skip
NOT_SAID = [
    # (sentence, a number that it does not say)
    ("(A) Sri Lanka.", "B"), ("(A) Sri Lanka or (B) Peru", "A"), ("(A) is wrong, so it is B", "A"), ("A man has 5 apples", "A"),
    ("The answer is probably 5.", "5"), ("The answer might be 5.", "5"), ("It may be 5.", "5"), ("The answer is 5 more than x.", "5"), ("The answer is 5 less than twice n.", "5"),
    ("Let me think about 5.", "5"), ("We are asked for 12.", "12"), ("Suppose that he has 5 apples.", "5"), ("There are fewer than 5 eggs.", "5"), ("I cannot solve problem 12.", "12"), ("We have 5 apples. Then I stop.", "5"), ("5 cars drove through the", "5"),
    ("The answer is negative 5.", "5"), ("The answer is minus 5.", "5"), ("The answer is less than 5.", "5"), ("The answer is at least 5.", "5"), ("The answer is at most $5$.", "5"), ("The answer is over 5.", "5"), ("The answer is almost 5.", "5"),
    ("The answer is twice 5.", "5"), ("The answer is half of 10.", "10"), ("The answer is a third of 10.", "10"), ("The answer is 5 squared.", "5"), ("The answer is $5$ squared.", "5"), ("The answer is 5 and a half.", "5"), ("The answer is $5$ and a half.", "5"),
    ("The answer is the square root of 5.", "5"), ("The answer is the opposite of 5.", "5"), ("The answer is the number of divisors of 12.", "12"), ("The answer is a multiple of 5.", "5"), ("The answer is the sum of the digits of 12.", "12"), ("The answer is f of 5.", "5"),
    ("The answer is unknown, perhaps 5.", "5"), ("The answer is maybe 5.", "5"), ("The answer is anything but 5.", "5"), ("The answer is any number other than 5.", "5"), ("The answer is 5 or more.", "5"), ("The answer is 5 and up.", "5"), ("The answer is 5 to 6.", "5"),
    ("The answer is 41, it can't be 42.", "42"), ("The answer is $41$, not $42$.", "42"), ("The answer is 41 rather than 42.", "42"), ("The answer is 5 or 6.", "5"), ("The answer is 5, or 6.", "6"), ("The answer is either 5 or 6.", "5"), ("The answer is not 5.", "5"),
    ("The answer is 5 if n is even.", "5"), ("The answer is x where x squared is 25.", "25"), ("The answer is the number whose double is 10.", "10"), ("The answer is 5 percent.", "5"), ("The answer is 5 million.", "5"), ("The answer is 5 dozen.", "5"), ("Therefore, she buys 5 dozens of eggs.", "5"), ("The answer is 5 thousands.", "5"), ("The answer is 5 millionths.", "5"),
    ("The answer is 5 tenths.", "5"), ("The answer is 5 times 6.", "5"), ("The answer is 5 times the radius.", "5"), ("The answer is $5$ less than 7.", "5"), ("The answer is 12 more than 5.", "12"), ("The answer is one less than 5.", "5"), ("The answer is 5 to the power of 2.", "5"),
    (r"The answer is $\frac{1}{2}$ of 10.", r"\frac12"), ("The answer is the 5th one.", "5"), ("The answer is given in step 5.", "5"), ("The answer is a hundred and 5.", "5"), ("The answer is 5 degrees below zero.", "5"), ("The answer is 5x.", "5"), ("The answer is 5 - x where x is even.", "5"), ("The answer is 5 - twice x.", "5"),
    ("Therefore, it cannot be 5.", "5"), ("Therefore she can buy at most 5 apples.", "5"), ("So half of 10.", "10"), ("Therefore 6 is the number of divisors of 12.", "12"), ("Therefore the square of 5.", "5"), ("So it is not 5.", "5"), ("So it takes twice 5.", "5"),
    ("The answer: D, it doesn't make sense for it to be A or B", "A"), ("The answer: D, it doesn't make sense for it to be A or B", "B"), ("The answer is A or B.", "A"), ("The answer is not A.", "A"),
]  # fmt: skip
MARKS = [
    # (response, its answer, why)
    ("The answer to the question is $4$.\n#### A", ["A"], "the later mark counts"),
    ("#### 4\nNo, the answer is 5.", ["5"], "the later mark counts"),
    ("The answer is 4.\nA: 5", ["5"], "the later mark counts"),
    ("The answer is 4.\n#### Conclusion\nWe are done.", ["4"], "a heading is no mark"),
    ("<answer>4</answer> The answer is 5.", ["4"], "tags before sentences"),
    (r"\boxed{4} The answer is 5. #### 6", ["4"], "boxes before all"),
]


@pytest.mark.parametrize("sentence, gold", SAID, ids=[sentence for sentence, _ in SAID])
def test_what_a_sentence_says(sentence: str, gold: str) -> None:
    assert outcome(sentence, gold) == "correct"


@pytest.mark.parametrize("sentence, number", NOT_SAID, ids=[f"{sentence} ({number})" for sentence, number in NOT_SAID])
def test_what_a_sentence_does_not_say(sentence: str, number: str) -> None:
    assert outcome(sentence, number) in ("wrong", "no_answer")


@pytest.mark.parametrize("response, answers, why", MARKS, ids=[f"{why}: {response[:20]}" for response, _, why in MARKS])
def test_the_last_explicit_mark_counts(response: str, answers: list[str], why: str) -> None:
    assert extract(response) == answers
