"""Mathematics as it is written, read into a tree, and two trees compared by their values.

tree (what an expression is) <- tokens <- parse (with notation: functions, sums, fractions) ; numbers (bounded arithmetic) <- functions <-
evaluate <- identity (whether two expressions agree). Nothing is simplified: expressions are equal when their values are, exactly for
rational numbers and to hundreds of digits for others, at points of many sizes where there are variables.

Every step has a bound on its work that is known before the work is done: no text of a few hundred characters takes long.
"""
