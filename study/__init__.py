"""The study: does adaptive entropy regularization deliver? Which controller holds, and what it buys, on the embedded tasks."""
