"""What several engines share, in Redis: it may be lost at any moment, and is made anew."""
