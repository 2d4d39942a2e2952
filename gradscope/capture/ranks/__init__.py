"""One training in several processes: who they are, when they meet, and what their numbers come to together."""
