"""The papers that studies follow: a package each."""
