"""Writes a Llama of 125 M parameters with random weights in float32: model.py FOLDER"""

import os
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

folder = sys.argv[1]
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=32000,
    hidden_size=768,
    intermediate_size=2048,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=4,
    max_position_embeddings=8192,
    # Wide enough that the most likely token is not the same everywhere.
    initializer_range=0.05,
    tie_word_embeddings=False,
)
LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder + ".new", safe_serialization=True)
os.rename(folder + ".new", folder)
