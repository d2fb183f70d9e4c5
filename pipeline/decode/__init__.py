"""From a file to the frames on screen at each tick of the sampling clock."""
