"""The methods and the fused head inside trainers that others keep.

control     what every adapter needs beside a method: padded tensors to a `TokenBatch` and back, sums over micro-batches and ranks
trl         `AERGRPOTrainer`, `AERMixin`: TRL's GRPOTrainer with a method; `trl_loss` is what its terms do to the loss
trl_head    `use_aer_head`: the fused head in all of TRL's trainers
verl        `python -m aer_kernels.integrations.verl`: verl's trainers with a method; `verl_options` are its options, `verl_trainer` is the
            mixin in the driver, `verl_batch` what it reads, `verl_loss` what the workers add, `verl_head` the fused head there
guard       versions and signatures that the adapters were tested with
sampled     `SampledEntropy`: AER for trainers that take advantages and hand out log-probs alone
tinker      the Tinker cookbook's data for it
"""
