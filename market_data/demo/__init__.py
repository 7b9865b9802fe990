"""A small, deterministic world of market data for the demo and for tests."""

from market_data.demo.truth import Answer, Delivery, Plant, Question, TableTruth, Truth
from market_data.demo.world import generate

__all__ = ["Answer", "Delivery", "Plant", "Question", "TableTruth", "Truth", "generate"]
