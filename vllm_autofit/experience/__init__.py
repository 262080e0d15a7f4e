"""Records of starts, the folder that keeps them, and the lessons drawn from them."""
