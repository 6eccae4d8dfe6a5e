"""How fast a network trains, and how near that is to the limits of the devices."""
