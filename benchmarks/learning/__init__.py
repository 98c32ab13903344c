"""Does ``make train`` learn? Several seeds of it and one run with learning rate 0, side by side."""
