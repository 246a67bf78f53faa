"""A pretrained language model on word problems: where its policy and its prompts come from. The runs are those of `study`."""
