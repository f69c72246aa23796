"""What makes a good anchor: adapters whose names, their places and their pieces differ, trained and asked alike."""
