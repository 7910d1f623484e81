"""What is trained: batch, loss, trainable parameters and evaluation of each stage."""
