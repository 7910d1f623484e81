"""DeFI in JAX: forward and inverse dynamics pretraining, joint finetune, export."""
