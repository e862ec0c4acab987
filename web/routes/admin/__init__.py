"""/admin — what those see and do who steer: one file per page."""
