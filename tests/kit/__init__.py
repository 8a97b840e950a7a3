"""What several test files build on, and no script does."""
