"""What every room needs and no user asks for: whole files, journals, progress bars, figures, optional packages."""
