"""Language models that answer questions about latents: they explain, and they judge.

A question is a chat of two messages (`question.py`). `asking.ask` has a client answer many of them,
within a budget, and a `Ledger` keeps every paid answer. Clients: an OpenAI-compatible endpoint, a
local causal model, and files of answers that another system gave (`files.py`).
"""
