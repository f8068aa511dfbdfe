"""prnn's layers in other projects' programs. Each module needs the project it is named after, and imports it."""
