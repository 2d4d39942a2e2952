"""Callbacks for those who let a trainer run their loop. Each module imports the framework that it is named after."""
