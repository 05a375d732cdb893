"""An OpenAI-compatible server over loaded engines: :func:`q2export.runtime.server.app.create_app`."""
