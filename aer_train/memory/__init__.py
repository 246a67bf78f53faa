"""Memory: what is free, what a token costs, and how much goes through the model at once where no option says so."""
