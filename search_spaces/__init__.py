"""Networks that need rules of their own, and those rules. `tas` never imports this package: recipes name its members."""
