"""One training loop for pretrain and tune: batches, exact packing, loss where there is a label, checkpoints."""
