"""What a report shows: numbers of a run, its figures, and the page that holds them."""
