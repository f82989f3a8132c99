"""Networks that need rules of their own, and those rules. Recipes name them by import path; `tas` never does."""
