"""Reports about runs: numbers, figures, and the HTML page that holds them."""
