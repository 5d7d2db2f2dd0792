"""The pipeline: rules wire, scripts call one stage each, helpers are typed and tested."""
