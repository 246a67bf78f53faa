"""What a training step does with judged samples: credit, micro-batches, the loss, the optimizer updates."""
