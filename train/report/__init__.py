"""Tables, figures and pages from run folders; reads runs only and imports no network."""
