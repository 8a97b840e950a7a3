"""A peer that starts with the computer: a unit of systemd for this user (Linux, WSL), an agent of launchd (macOS)."""
