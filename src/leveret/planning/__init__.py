"""What a recipe will take, known before it runs."""
